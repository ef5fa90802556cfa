#pragma once

#include <cstdint>
#include <optional>

#include "subspan/abi.hpp"
#include "subspan/context.hpp"
#include "subspan/svd.hpp"
#include "subspan/view.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

/// Eigenvalues and eigenvectors of every symmetric matrix of a batch, a = v diag(w) v^T.
///
///   a       [batch, n, n]  any strides; only the lower triangle is read
///   values  [batch, n]     ascending
///   vectors [batch, n, n]  C order, column j belongs to value j; absent: values only
///   info    [batch]        0, -1 (non-finite input) or the number of unconverged elements
///
/// T: float, double. CPU: O(n^3) per matrix; the pool works on several matrices at once. n <= 32: one
/// in each SIMD lane, n <= 128: the lanes along its rows, n <= 1024 without vectors: panels of
/// reflections, else LAPACK syevd. CUDA: Jacobi, as svd. Scratch per thread, in elements, with W = 64
/// / sizeof(T): about W (2 n^2 + 22 n) in lanes, W (n^2 + 19 n) + 2 n^2 along rows, n^2 + 64 n by panels
/// and 2 n for each matrix; LAPACK: 3 n^2 with vectors, n^2 without.
template <class T>
void eigh(context const& ctx, strided_view<T const, 3> a, strided_view<T, 2> values,
          std::optional<strided_view<T, 3>> vectors, strided_view<std::int32_t, 1> info,
          decomposition_params params = {});

}  // namespace v0
}  // namespace subspan
