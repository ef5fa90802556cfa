#pragma once

#include "subspan/types.hpp"

/// What adam.cpp compiles once per level.

namespace subspan::detail {

/// What every element of a step shares, rounded to its type.
template <class T>
struct adam_numbers {
  T first;        // 1 - beta1
  T second_keep;  // beta2
  T second;       // 1 - beta2
  T rate;         // -lr / (1 - beta1^step)
  T correction;   // sqrt(1 - beta2^step)
  T eps;
  T decay;  // 1 - lr weight_decay
};

/// Rows of d elements, one after the other.
template <class T>
struct adam_task {
  T *w, *m, *v;
  T const* g;
  index_t d;
  adam_numbers<T> numbers;
  double scale, row_limit;
  bool remove_parallel, unit_rows;
};

template <class T>
struct adam_kernels {
  void (*step)(adam_task<T> const& task, index_t begin, index_t end);
  /// The sum of squares of rows begin to end of g, without what is parallel to w unless it is null.
  double (*squares)(T const* g, T const* w, index_t d, index_t begin, index_t end);
};

}  // namespace subspan::detail
