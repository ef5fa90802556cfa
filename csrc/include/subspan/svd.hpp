#pragma once

#include <cstdint>
#include <optional>

#include "subspan/abi.hpp"
#include "subspan/context.hpp"
#include "subspan/view.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

/// What to do about NaN and infinity in the input of a batched decomposition.
enum class nonfinite_policy {
  raise,      ///< error{invalid_argument} that names the first matrix; outputs unspecified
  propagate,  ///< that matrix's outputs are NaN and its info is -1; the others are exact
  ignore,     ///< the caller vouches for it; outputs of a non-finite matrix are unspecified
};

/// Shared by svd, eigh and qr.
struct decomposition_params {
  nonfinite_policy nonfinite = nonfinite_policy::raise;
  bool raise_no_convergence = true;  ///< else only `info` tells
};

/// Thin singular value decomposition of every matrix of a batch, a = u diag(s) vh.
///
///   a    [batch, m, n]  any strides
///   s    [batch, k]     k = min(m, n), descending
///   u    [batch, m, k]  C order; with vh, or neither (values only)
///   vh   [batch, k, n]  C order
///   info [batch]        0, -1 (non-finite input) or the number of unconverged superdiagonals
///
/// T: float, double. CPU: O(m n k) per matrix; the pool works on several matrices at once, and a
/// matrix's result does not depend on the others. k <= 32: one matrix in each SIMD lane, k <= 128:
/// the lanes along its rows, both up to 65536 entries; larger ones of k <= 32 by blocks of rows;
/// else LAPACK gesdd, then gesvd where it fails. CUDA: one-sided Jacobi; all on ctx.stream, which is
/// waited for only if a policy throws.
/// Scratch per thread, in elements, with W = 64 / sizeof(T) and l = max(m, n): about
/// W (2 l k + 2 k^2 + 40 k) in lanes, W (l k + 2 k^2 + 35 k) + 2 l k + 3 k^2 along rows; LAPACK:
/// m n + 4 k^2 + 7 k and its own blocks. By blocks of rows: m n for all threads together.
template <class T>
void svd(context const& ctx, strided_view<T const, 3> a, strided_view<T, 2> s,
         std::optional<strided_view<T, 3>> u, std::optional<strided_view<T, 3>> vh,
         strided_view<std::int32_t, 1> info, decomposition_params params = {});

}  // namespace v0
}  // namespace subspan
