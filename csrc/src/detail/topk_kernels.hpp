#pragma once

#include <type_traits>

#include "detail/row_selector.hpp"

/// What topk.cpp compiles once per level.

namespace subspan::detail {

/// The type in which elements of T are compared: every value of T has an exact one.
template <class T>
using score_of = std::conditional_t<
    std::is_same_v<T, half> || std::is_same_v<T, bfloat16>, float,
    std::conditional_t<std::is_integral_v<T>,
                       std::conditional_t<sizeof(T) == 8, std::int64_t, std::int32_t>, T>>;

/// One row of x. `reversal` is 0 for the largest, score_order::reversal for the smallest.
template <class T>
struct source {
  T const* data;
  index_t stride;
  typename score_order<score_of<T>>::key_type reversal;
};

template <class T>
struct topk_kernels {
  using score = score_of<T>;
  using key = typename score_order<score>::key_type;
  index_t (*scratch)(index_t k);  // scores that `scan` needs
  void (*scan)(source<T> const& row, index_t begin, index_t end, row_selector<score>& best,
               score* scratch);
  void (*keys)(source<T> const& row, index_t begin, index_t count, key* out);
  void (*rank)(std::uint64_t* entries, index_t n, index_t k, std::uint64_t* out);
};

}  // namespace subspan::detail
