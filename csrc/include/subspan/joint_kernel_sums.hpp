#pragma once

#include "subspan/abi.hpp"
#include "subspan/context.hpp"
#include "subspan/kernel_matvec.hpp"
#include "subspan/view.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

/// Sums over all pairs of two kernels at once, K of x and y and L of z and w, without either matrix:
///
///   joint(s, i)  = sum over j of K(x_i, y_j) L(z_si, w_sj)
///   first(i)     = sum over j of K(x_i, y_j)
///   second(s, i) = sum over j of L(z_si, w_sj)
///
///   x [n, d], y [m, d]                     any strides
///   z [count, n, q], w [count, m, q]       any strides; every s meets the same K
///   bandwidth_x [d], bandwidth_z [q]       > 0; infinity leaves a coordinate out
///   joint, second [count, n], first [n]    double, C order
///
/// Kernels are functions of the distance (kernel_matvec.hpp); of `distance` alpha is an exponent, D^alpha.
/// A value of K is made once for all s.
///
/// Coordinates, distances and values are made as in kernel_matvec; sums of up to 128 columns in T, and
/// those in double, in an order that m alone decides: the bits depend neither on the threads nor on the
/// other rows of x and z. A row with NaN or infinity gives NaN to its sums, and in y or w to all. A
/// distance that overflows is infinite.
///
/// Where d = q = 1, both kernels are distances with alpha = 1, and y is x and w is z (the same memory),
/// all is in double and takes n log n steps.
///
/// T: float, double. CPU only. 2 n m (d + count q) flops and n m (1 + count) values. Scratch:
/// 8 n (1 + 2 count) bytes, up to 16 MiB of packed y and w, and 256 packed rows of x and z per thread.
template <class T>
void joint_kernel_sums(context const& ctx, strided_view<T const, 2> x, strided_view<T const, 2> y,
                       strided_view<T const, 3> z, strided_view<T const, 3> w,
                       strided_view<double const, 1> bandwidth_x,
                       strided_view<double const, 1> bandwidth_z, strided_view<double, 2> joint,
                       strided_view<double, 1> first, strided_view<double, 2> second,
                       kernel_params const& of_x, kernel_params const& of_z);

/// The gradient in x of sums over i and j of weights_ij K_ij, with
///
///   weights_ij = (g_i + g'_j) L_ij + (h_i + h'_j)
///
///   z [n, q], w [m, q]                     any strides
///   of_rows [n, 2]                         g_i and h_i
///   of_columns [m, 2]                      g'_j and h'_j
///   gradient [n, d]                        C order
///
/// So a loss with the gradients g in joint and h in first has these of_rows and zeros for of_columns;
/// where y is x and w is z, as each pair is there twice, the same for both. At distance 0, where
/// `laplacian` and powers of the distance below 2 have no derivative, it counts as 0. In the other
/// respects as above; 2 n m (2 d + q) flops.
template <class T>
void joint_kernel_sums_backward(context const& ctx, strided_view<T const, 2> x,
                                strided_view<T const, 2> y, strided_view<T const, 2> z,
                                strided_view<T const, 2> w, strided_view<double const, 2> of_rows,
                                strided_view<double const, 2> of_columns,
                                strided_view<double const, 1> bandwidth_x,
                                strided_view<double const, 1> bandwidth_z,
                                strided_view<T, 2> gradient, kernel_params const& of_x,
                                kernel_params const& of_z);

}  // namespace v0
}  // namespace subspan
