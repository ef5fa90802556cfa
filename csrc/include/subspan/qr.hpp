#pragma once

#include <cstdint>

#include "subspan/abi.hpp"
#include "subspan/context.hpp"
#include "subspan/svd.hpp"
#include "subspan/view.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

/// Thin QR decomposition of every matrix of a batch, a = q r, by Householder reflections.
///
///   a    [batch, m, n]  any strides
///   q    [batch, m, k]  C order, k = min(m, n), orthonormal columns
///   r    [batch, k, n]  C order, upper triangular; signs of the diagonal as they come
///   info [batch]        0 or -1 (non-finite input)
///
/// T: float, double. CPU: O(m n k) per matrix; in lanes, along rows, by blocks of rows or by LAPACK
/// geqrf and orgqr, as svd. CUDA: as svd. Scratch per thread: about m n + 2 m k + k n elements, in
/// lanes 64 / sizeof(T) times that.
template <class T>
void qr(context const& ctx, strided_view<T const, 3> a, strided_view<T, 3> q, strided_view<T, 3> r,
        strided_view<std::int32_t, 1> info, decomposition_params params = {});

}  // namespace v0
}  // namespace subspan
