#pragma once

#include "detail/gram_block.hpp"

/// What mttkrp.cpp compiles once per level.

namespace subspan::detail {

/// Matrices have `columns` columns beside each other. A weight counts for one column.
template <class T>
struct mttkrp_kernels {
  /// The sums of a block, written or added to what is there; y_column is 1.
  void (*multiply)(gram_block<T> const& block);
  void (*multiply_add)(gram_block<T> const& block);
  /// out[c] += weight[c] sum over t of a[t, c] b[t, c]
  void (*dot_rows)(index_t rows, index_t columns, T const* a, T const* b, T const* weight, T* out);
  /// out[t, c] += weight[c] a[t, c]
  void (*add_rows)(index_t rows, index_t columns, T const* a, T const* weight, T* out);
  /// out[t, c] = weight[c] a[t, c]
  void (*scale_rows)(index_t rows, index_t columns, T const* a, T const* weight, T* out);
};

}  // namespace subspan::detail
