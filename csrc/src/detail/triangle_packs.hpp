#pragma once

#include "detail/pack_batch.hpp"

/// What cholesky.cpp and solve_triangular.cpp hand to their packs.

namespace subspan::detail {

template <class T>
struct cholesky_pack {
  pack_input<T> a;  // [n, n], only the lower triangle is read
  pack_output<T> l;
  std::int32_t* info;
};

/// a x = b.
template <class T>
struct substitution_pack {
  pack_input<T> a;  // [n, n], lower triangular
  pack_input<T> b;  // [n, k]
  pack_output<T> x;
  bool unit_diagonal;
  bool reversed;  // rows and columns came from the last to the first, so info counts from there
  std::int32_t* info;
};

}  // namespace subspan::detail
