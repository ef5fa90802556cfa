#pragma once

#include <cstdint>

#include "subspan/abi.hpp"
#include "subspan/context.hpp"
#include "subspan/svd.hpp"
#include "subspan/view.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

struct cholesky_params {
  nonfinite_policy nonfinite = nonfinite_policy::raise;
  bool raise_not_definite = true;  ///< else only `info` tells
};

/// Cholesky factor of every matrix of a batch, a = l l^T.
///
///   a    [batch, n, n]  any strides, symmetric positive definite; only the lower triangle is read
///   l    [batch, n, n]  C order, lower triangular, positive diagonal, zeros above it
///   info [batch]        0, -1 (non-finite input), or j > 0: the leading minor of order j is not
///                       positive; l is NaN where info is not 0
///
/// T: float, double. CPU only. Rows and columns are scaled by powers of two that bring the diagonal
/// into [1, 4), which changes no bit but where something would overflow or underflow. Up to n = 64
/// one matrix per SIMD lane where there are enough of them, else and up to n = 511 with the lanes
/// along the rows of one matrix, above LAPACK potrf; n^3 / 3 flops per matrix. Scratch per thread:
/// about n (n + 3) vectors up to n = 64, n^2 elements up to 511, above n.
template <class T>
void cholesky(context const& ctx, strided_view<T const, 3> a, strided_view<T, 3> l,
              strided_view<std::int32_t, 1> info, cholesky_params params = {});

}  // namespace v0
}  // namespace subspan
