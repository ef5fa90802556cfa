#pragma once

#include "subspan/abi.hpp"
#include "subspan/context.hpp"
#include "subspan/view.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

struct topk_params {
  bool largest = true;  ///< false: the k smallest
  bool sorted = true;   ///< best first; false: in ascending order of the index
};

/// The k largest (or smallest) elements of every row, with their indices.
///
///   x       [outer, inner, n]  any strides; two axes of rows, so that transposed batches need no
///                              copy
///   values  [outer, inner, k]  C order; the elements of x, bit for bit
///   indices [outer, inner, k]  C order
///
/// A total order decides: the better value, of equal values (-0.0 equals 0.0) the smaller index;
/// NaN comes after all numbers, in either direction.
///
/// 1 <= k <= n < 2^32. T: half, bfloat16, float, double, int8, uint8, int16, int32, int64. CPU
/// and CUDA, with the same results.
/// O(n) for each row, and O(k log k) or O(k) for the order. Scratch per thread: about 3 k entries of
/// 8 bytes (16 for types of 64 bits) and 40 KiB where k is small against n; 2 k entries otherwise,
/// and up to n where nearly all elements are equal; up to 2^22 elements for rows that lie crosswise.
/// CUDA: nothing waits for the device; none for k to 2048 (1024 for types of 64 bits) but for rows that
/// are cut into parts, up to 1 GiB or one row's keys and indices twice beyond.
template <class T>
void topk(context const& ctx, strided_view<T const, 3> x, strided_view<T, 3> values,
          strided_view<index_t, 3> indices, topk_params params = {});

}  // namespace v0
}  // namespace subspan
