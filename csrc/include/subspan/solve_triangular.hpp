#pragma once

#include <cstdint>

#include "subspan/abi.hpp"
#include "subspan/context.hpp"
#include "subspan/svd.hpp"
#include "subspan/view.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

struct solve_triangular_params {
  bool lower = true;           ///< the triangle of a that counts; the other is not read
  bool transposed = false;     ///< a^T x = b
  bool unit_diagonal = false;  ///< the diagonal is taken for ones and not read
  nonfinite_policy nonfinite = nonfinite_policy::raise;
  bool raise_singular = true;  ///< else only `info` tells
};

/// Solves a x = b for every triangular matrix of a batch, by substitution.
///
///   a    [batch, n, n]  any strides (0 for one matrix and many right-hand sides)
///   b    [batch, n, k]  any strides
///   x    [batch, n, k]  C order
///   info [batch]        0, -1 (non-finite a or b), or j > 0: element j of the diagonal (from 1) is
///                       zero; x is NaN where info is not 0
///
/// T: float, double. CPU only. Up to n = 64 and k = 64 one system per SIMD lane where there are
/// enough of them, else and up to 256 with the lanes along the rows of x, above BLAS trsm; n^2 k
/// flops per system. Scratch per thread: about n (n + k + 2) vectors, n (k + 2) elements, or at most
/// n^2 elements.
template <class T>
void solve_triangular(context const& ctx, strided_view<T const, 3> a, strided_view<T const, 3> b,
                      strided_view<T, 3> x, strided_view<std::int32_t, 1> info,
                      solve_triangular_params params = {});

}  // namespace v0
}  // namespace subspan
