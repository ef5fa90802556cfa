#pragma once

#include <vector>

#include "subspan/abi.hpp"
#include "subspan/context.hpp"
#include "subspan/view.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

/// x^T y for every pair of matrices of a batch.
///
///   x   [batch, n, p]  any strides (0 for one matrix and many y)
///   y   [batch, n, q]  any strides; x and y may overlap, or be the same
///   out [batch, p, q]  C order
///
/// T: float, double. CPU only. 2 n p q flops. Of every element the products of 256 rows are added up
/// one after the other, and these sums in order, so that bits depend on n, p and q alone, and neither
/// on strides nor on the batch; where min(p, q) > 128, BLAS multiplies, whose sums may depend on
/// strides. NaN and infinity spread as in any sum. Scratch per thread: at most 65536 elements and
/// copies of what BLAS cannot read in place; sums of up to 64 parts of long matrices.
template <class T>
void gram(context const& ctx, strided_view<T const, 3> x, strided_view<T const, 3> y,
          strided_view<T, 3> out);

/// x^T x, of which one triangle is worked out: exactly symmetric, with the bits of gram(x, x) up to
/// p = 128.
template <class T>
void gram(context const& ctx, strided_view<T const, 3> x, strided_view<T, 3> out);

/// x^T x, x^T y and y^T y, each pair read once; the bits of the three single calls.
///
///   xx [batch, p, p], xy [batch, p, q], yy [batch, q, q]  C order
template <class T>
void grams(context const& ctx, strided_view<T const, 3> x, strided_view<T const, 3> y,
           strided_view<T, 3> xx, strided_view<T, 3> xy, strided_view<T, 3> yy);

/// Inner products of the Gram matrices of the rows of many matrices:
///
///   out[l, m] = sum over rows i, j of (x_l x_l^T)[i, j] (x_m x_m^T)[i, j] = |x_l^T x_m|_F^2
///
///   xs  L views [n, d_l], any strides
///   out [L, L], C order, exactly symmetric
///
/// T: float, double. CPU only. n^2 d_l flops for each matrix and n^2 L^2 / 2 for all pairs. No n x n
/// array is stored: tiles of at most 512 x 512 of all x_l x_l^T meet at once. Sums of up to 4096
/// entries are in T, beyond in double. Bits do not depend on the threads. Scratch per thread: the
/// tiles, 2^22 elements or L x 64 x 64; L^2 doubles for each of up to 64 parts.
template <class T>
void gram_inner(context const& ctx, std::vector<strided_view<T const, 2>> const& xs,
                strided_view<double, 2> out);

}  // namespace v0
}  // namespace subspan
