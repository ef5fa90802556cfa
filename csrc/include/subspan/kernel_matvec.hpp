#pragma once

#include <optional>

#include "subspan/abi.hpp"
#include "subspan/context.hpp"
#include "subspan/view.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

/// K_ij as a function of D, the length of (x_i - y_j) / bandwidth, or of P, the sum over the
/// coordinates of x_i y_j / bandwidth.
enum class kernel_function {
  gaussian,            ///< exp(-D^2 / 2)
  laplacian,           ///< exp(-D), Matern 1/2
  matern32,            ///< (1 + t) exp(-t), t = sqrt(3) D
  matern52,            ///< (1 + t + t^2 / 3) exp(-t), t = sqrt(5) D
  cauchy,              ///< 1 / (1 + D^2)
  rational_quadratic,  ///< (1 + D^2 / (2 alpha))^-alpha
  exp_dot,             ///< exp(P)
  softmax,             ///< exp(P_ij) / sum over k of exp(P_ik)
  linear,              ///< P
  polynomial,          ///< (P + offset)^degree
  distance,            ///< D
  sqdistance,          ///< D^2
};

struct kernel_params {
  kernel_function function = kernel_function::gaussian;
  double alpha = 1;   ///< of rational_quadratic, > 0
  int degree = 3;     ///< of polynomial, >= 1
  double offset = 1;  ///< of polynomial
  double cutoff = 0;  ///< pairs with K_ij below may be left out; of kernels that decrease with D
};

/// Which pairs count: tiles of rows of x against tiles of rows of y, in compressed form. Tile t of rows
/// is rows[t] .. rows[t + 1], and it meets the tiles of columns tiles[offsets[t]] .. before
/// tiles[offsets[t + 1]], which ascend. Bounds ascend from 0 to n and to m.
struct kernel_ranges {
  strided_view<index_t const, 1> rows;     ///< [tiles of rows + 1]
  strided_view<index_t const, 1> columns;  ///< [tiles of columns + 1]
  strided_view<index_t const, 1> offsets;  ///< [tiles of rows + 1]
  strided_view<index_t const, 1> tiles;    ///< [pairs of tiles]
};

/// out_i = sum over j of K_ij v_j, without K.
///
///   x         [batch, n, d]  any strides
///   y         [batch, m, d]  any strides
///   v         [batch, m, e]  any strides
///   bandwidth [d]            > 0; infinity leaves a coordinate out
///   out       [batch, n, e]  C order
///   lse       [batch, n]     C order, optional, of softmax: log(sum over j of exp(P_ij))
///
/// Coordinates are taken from the mean of y (of kernels in P but softmax: from 0), scaled, and
/// rounded to T once. Scores and values are made in T; sums of up to 128 columns in T, and those in
/// double, in an order that m alone decides: the bits depend neither on the threads, nor on the
/// batch, nor on the other rows of x. Squared distances are sums of (x - y)^2 for d <= 8, and
/// wherever |x|^2 + |y|^2 - 2 <x, y> would be less than 1/64 of the first two. A value below 2^-125
/// (double: 2^-1021) counts as 0.
///
/// Where y is x, the same memory, and there are at most three right-hand sides, no cutoff and no
/// ranges, values of symmetric kernels are made once for both of their pairs: half the time. Sums have
/// another order then, which n and d alone decide.
///
/// Ranges leave out all pairs but theirs: the bits are those of the whole product with v_j = 0 where a
/// row does not meet y_j. A row that meets none is 0, also of softmax. Tiles of 128 rows and 128 columns
/// or multiples of them, counted from 0, cost nothing besides; of others some points are packed anew
/// for every 256 rows. Not together with a cutoff.
///
/// With a cutoff in (0, 1) points are sorted into boxes of some dozens, and pairs of boxes are left
/// out if no pair of their points can reach it: the error of out_i is at most cutoff times the sum
/// of |v_j|, and the last bits depend on all of x.
///
/// A row of x with NaN or infinity gives NaN; one of y makes all of its matrix NaN. Sums that are not
/// finite though their arguments are, are refused. m = 0: zeros, and an error for softmax.
///
/// On a CUDA device nothing waits, so an overflow is infinity; a cutoff leaves nothing out, ranges are
/// refused, and y and x cost the same whether they are one or two. Bits are others there, and may
/// depend on the number of right-hand sides, but on nothing else that they do not on the CPU.
///
/// T: float, double. CPU and CUDA. 2 n m (d + e) flops and n m values of the function; linear:
/// 2 (n + m) d e. Scratch: 8 n e bytes, up to 16 MiB of packed y and v, and 256 packed rows of x per
/// thread.
template <class T>
void kernel_matvec(context const& ctx, strided_view<T const, 3> x, strided_view<T const, 3> y,
                   strided_view<T const, 3> v, strided_view<double const, 1> bandwidth,
                   strided_view<T, 3> out, kernel_params const& how = {},
                   std::optional<strided_view<double, 2>> lse = std::nullopt,
                   kernel_ranges const* ranges = nullptr);

/// The gradient of sum over i of <g_i, out_i> in x. That in y is the one of x with x and y, g and v
/// exchanged; that in v is a product with x and y exchanged, and g for v. Not for softmax, and of all
/// pairs whatever the cutoff.
///
///   g    [batch, n, e]  any strides
///   of_x [batch, n, d]  C order
///
/// At distance 0, where those of `laplacian` and `distance` have none, derivatives count as 0. In the
/// other respects as above; 2 n m (2 d + e) flops.
template <class T>
void kernel_matvec_backward(context const& ctx, strided_view<T const, 3> x,
                            strided_view<T const, 3> y, strided_view<T const, 3> v,
                            strided_view<T const, 3> g, strided_view<double const, 1> bandwidth,
                            strided_view<T, 3> of_x, kernel_params const& how = {},
                            kernel_ranges const* ranges = nullptr);

/// out_ie = log(sum over j of K_ij v_je), of kernels that are nowhere 0: all but softmax, linear,
/// polynomial and the distances. Neither values nor sums underflow, whatever the distances.
///
///   v   [batch, m, e]  any strides; >= 0, and where it is 0 the point does not count
///   out [batch, n, e]  C order; -infinity where nothing counts
///   parts [batch, n, 2 e]  C order, optional: out is the first e times log 2 plus the logarithms of
///                          the others; 0 and 0 where nothing counts
///
/// In the other respects as kernel_matvec, without a cutoff; e times the cost of one.
template <class T>
void kernel_logsumexp(context const& ctx, strided_view<T const, 3> x, strided_view<T const, 3> y,
                      strided_view<T const, 3> v, strided_view<double const, 1> bandwidth,
                      strided_view<T, 3> out, kernel_params const& how = {},
                      std::optional<strided_view<double, 3>> parts = std::nullopt,
                      kernel_ranges const* ranges = nullptr);

/// What gradients of kernel_logsumexp are made of: with an exponent a and a factor p of every x_i, b
/// and q of every y_j, and w_ij = 2^(a_i + b_j) p_i q_j K_ij,
///
///   sums_i = sum over j of w_ij
///   of_x_i = the sum over j of the gradients of w_ij in x_i, for constant a and p
///
///   terms_x [batch, n, 2], terms_y [batch, m, 2]  (a, p) and (b, q), any strides
///   sums    [batch, n, 1]  C order, optional
///   of_x    [batch, n, d]  C order, optional
///
/// With b = log2 v_j, a less than 0 by the first of the parts of row i, and p over the second, no
/// power exceeds 1. For gradients in y and v the sides are exchanged, and so is `exchanged` true:
/// then scores and exponents are rounded as those of the sums were.
template <class T>
void kernel_logsumexp_backward(context const& ctx, strided_view<T const, 3> x,
                               strided_view<T const, 3> y, strided_view<double const, 3> terms_x,
                               strided_view<double const, 3> terms_y,
                               strided_view<double const, 1> bandwidth,
                               std::optional<strided_view<T, 3>> sums,
                               std::optional<strided_view<T, 3>> of_x, bool exchanged,
                               kernel_params const& how = {},
                               kernel_ranges const* ranges = nullptr);

}  // namespace v0
}  // namespace subspan
