#pragma once

#include <type_traits>

#include "subspan/view.hpp"

/// Weighted sums of gathered rows: what is asked for, and the kernels that do it.

namespace subspan::detail {

/// Sums of T are made in this type.
template <class T>
using wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// Rows that belong together, for one call of a kernel.
template <class S, class P>
struct row_list {
  S const* rows;
  index_t stride;
  index_t const* index;
  P const* weight;
  index_t count;
  index_t beyond;  // further entries of index, which are likely to come next
};

inline constexpr index_t k_columns_at_once = 64;

template <class T>
struct list_sums_kernels {
  using P = wide<T>;
  void (*gather)(row_list<T, P> const&, P const* with, P const* from, P* to, index_t n, P* dots);
  void (*gather_packed)(row_list<P, P> const&, P const* with, P const* from, P* to, index_t n,
                        P* dots);
  void (*widen)(T const* in, index_t stride, index_t n, P* out);
  void (*pack)(T const* in, index_t row_stride, index_t stride, index_t rows, index_t n,
               P const* shift, P* out);
  void (*store)(P const* in, index_t n, T* out, bool streamed);
  void (*store_columns)(P const* tile, index_t tile_stride, index_t count, index_t n, T* out,
                        index_t stride, bool streamed);

  /// sums[i * stride + c] += sum over r < depth of a[r * tile_rows + i] b[r * width + c], for
  /// i < count and c < columns.
  void (*multiply)(index_t depth, P const* a, P const* b, P* sums, index_t stride, index_t count,
                   index_t columns);
  int tile_rows, width;
};

/// out[j] = init + sum over the pairs p of list j of weight[p] (rows[index[p]] - shift), and
/// dots[p] += with[j] . (rows[index[p]] - shift).
template <class T>
struct list_sums_call {
  using P = wide<T>;
  index_t const* offsets = nullptr;  // [lists + 1]
  index_t const* index = nullptr;    // [pairs]
  P const* weight = nullptr;         // [pairs]; not read where there is no out
  index_t lists = 0;
  strided_view<T const, 2> rows;    // [*, d]
  P const* shift = nullptr;         // [d]
  P const* init = nullptr;          // [d]
  strided_view<T const, 2> with{};  // [lists, d], or ...
  P const* with_one = nullptr;      // [d] for all lists
  P* dots = nullptr;                // [pairs], set before
  T* out = nullptr;                 // [lists, d] in C order, or ...
  bool columns = false;             // ... its transpose
};

}  // namespace subspan::detail
