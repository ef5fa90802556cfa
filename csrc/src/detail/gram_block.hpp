#pragma once

#include "subspan/types.hpp"

/// What gram.cpp compiles once per level.

namespace subspan::detail {

/// out[i * pitch + j] = sum over r < depth of x(r, i) y(r, j), i < rows, j < columns; of every element
/// the terms of 256 rows are added up in their order, and these sums in theirs.
template <class T>
struct gram_block {
  T const* x;
  index_t x_row, x_column;  // strides
  T const* y;
  index_t y_row, y_column;
  index_t depth, rows, columns;
  /// Of row i only the first `corner` + i + 1 elements are wanted; others may be left as they were.
  index_t corner;
  T* out;
  index_t pitch;
};

template <class T>
struct gram_kernel {
  index_t scratch;  // elements
  void (*run)(gram_block<T> const& block, T* scratch);
};

}  // namespace subspan::detail
