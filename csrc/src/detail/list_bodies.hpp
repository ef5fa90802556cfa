#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "detail/device_storage.hpp"

/// The bodies of the kernels of sparse codes: weighted sums of gathered rows, by a warp for each list
/// and slice of columns. A list is summed in parts of k_list_part pairs, each in order, as on the
/// CPU, so that it does not show which of them were summed elsewhere. Nothing here is a barrier of
/// the block.

namespace subspan::gpu {

inline constexpr index_t k_list_part = 1024;

SUBSPAN_DEVICE index_t less_of(index_t a, index_t b) { return a < b ? a : b; }

/// A row to be added and its weight; row < 0: there is none, and the weight is NaN.
template <class P>
struct weighted_row {
  index_t row;
  P weight;
};

/// Pairs [begin, end) of a list; one that is not valid is NaN.
struct list_range {
  index_t begin, end;
  bool valid;
};

/// A sparse code as it came: a list is a row of it, and names features. What names none is NaN,
/// because nothing on the device can refuse it.
template <class T>
struct code_lists {
  using P = wide<T>;
  T const* values;
  index_t value_stride;
  std::int64_t const* indices;
  index_t index_stride;
  std::int64_t const* offsets;  // [rows + 1], or null: `each` pairs in a row
  index_t offset_stride, each, lists, pairs, features;

  SUBSPAN_DEVICE index_t feature(index_t p) const {
    std::int64_t const f = indices[p * index_stride];
    return f >= 0 && f < features ? f : index_t{-1};
  }
  SUBSPAN_DEVICE P weight(index_t p) const { return storage<T>::widen(values[p * value_stride]); }
  SUBSPAN_DEVICE weighted_row<P> at(index_t p) const {
    index_t const f = feature(p);
    return {f, f < 0 ? std::numeric_limits<P>::quiet_NaN() : weight(p)};
  }
  SUBSPAN_DEVICE list_range range(index_t row) const {
    if (offsets == nullptr) return {row * each, (row + 1) * each, true};
    index_t const begin = offsets[row * offset_stride], end = offsets[(row + 1) * offset_stride];
    bool const ends = (row > 0 || begin == 0) && (row + 1 < lists || end == pairs);
    return {begin, end, ends && begin >= 0 && begin <= end && end <= pairs};
  }
  /// The row that holds pair p: the last that begins at or before it. Within 0..lists - 1 for any
  /// offsets.
  SUBSPAN_DEVICE index_t row_of(index_t p) const {
    if (offsets == nullptr) return p / each;
    index_t low = 0, high = lists - 1;
    while (low < high) {
      index_t const middle = high - (high - low) / 2;
      if (offsets[middle * offset_stride] <= p)
        low = middle;
      else
        high = middle - 1;
    }
    return low;
  }
};

/// The same pairs by feature, each in the order of the rows: a list is a feature and names rows.
template <class Real>
struct feature_lists {
  using P = Real;
  std::uint32_t const* keys;     // [pairs] ascending: features; `lists` for what names none
  std::uint32_t const* rows;     // [pairs]
  P const* weights;              // [pairs]
  std::uint32_t const* offsets;  // [lists + 1]
  index_t lists, pairs;

  SUBSPAN_DEVICE weighted_row<P> at(index_t p) const { return {rows[p], weights[p]}; }
  SUBSPAN_DEVICE list_range range(index_t j) const { return {offsets[j], offsets[j + 1], true}; }
  /// `lists` for none.
  SUBSPAN_DEVICE index_t list_at(index_t p) const { return keys[p]; }
};

/// One list of all rows, with their weights or 1.
template <class Real>
struct all_rows {
  using P = Real;
  P const* weights;
  index_t pairs;
  static constexpr index_t lists = 1;

  SUBSPAN_DEVICE weighted_row<P> at(index_t p) const {
    return {p, weights == nullptr ? P(1) : weights[p]};
  }
  SUBSPAN_DEVICE list_range range(index_t) const { return {0, pairs, true}; }
  SUBSPAN_DEVICE index_t list_at(index_t) const { return 0; }
};

/// The first place in keys[0..count) that holds at least `key`.
SUBSPAN_DEVICE index_t lower_bound(std::uint32_t const* keys, index_t count, std::uint32_t key) {
  index_t low = 0, high = count;
  while (low < high) {
    index_t const middle = low + (high - low) / 2;
    if (keys[middle] < key)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/// Columns of a lane. Aligned: a pack (rows start at multiples of 16 bytes and hold whole packs);
/// else as many that lie 32 apart.
template <class T, bool Aligned>
struct lane_columns {
  static constexpr int width = pack<T>::width;
  static constexpr int slice = width * k_warp;  // columns of a warp
  index_t first;                                // of the lane
  index_t columns;

  template <class Lanes>
  SUBSPAN_DEVICE lane_columns(Lanes const& lanes, index_t from, index_t count)
      : first(from + lanes.lane() * (Aligned ? width : 1)), columns(count) {}
  SUBSPAN_DEVICE index_t at(int e) const { return first + e * (Aligned ? 1 : k_warp); }
  SUBSPAN_DEVICE bool inside(int e) const { return at(e) < columns; }

  /// Elements of a row; zeros beyond it.
  SUBSPAN_DEVICE pack<T> load(T const* row) const {
    if constexpr (Aligned) {
      if (inside(0)) return *reinterpret_cast<pack<T> const*>(row + first);
      return pack<T>{};
    } else {
      pack<T> out{};
      SUBSPAN_UNROLL
      for (int e = 0; e < width; ++e)
        if (inside(e)) out.at[e] = row[at(e)];
      return out;
    }
  }
  template <class P, class Out>
  SUBSPAN_DEVICE void store(P const (&sum)[width], Out* row) const {
    if constexpr (Aligned && std::is_same_v<Out, T>) {
      pack<T> out;
      SUBSPAN_UNROLL
      for (int e = 0; e < width; ++e) out.at[e] = storage<T>::narrow(sum[e]);
      if (inside(0)) *reinterpret_cast<pack<T>*>(row + first) = out;
    } else {
      SUBSPAN_UNROLL
      for (int e = 0; e < width; ++e)
        if (inside(e)) row[at(e)] = storage<Out>::narrow(sum[e]);
    }
  }
};

/// out[j] = init + the sum over the pairs of list j of weight (rows[row] - shift), for the columns of
/// `rows`. Columns of a row lie side by side.
template <class T, class Lists, class Out = T>
struct list_sum {
  using P = wide<T>;
  Lists lists;
  row_view<T> rows;
  vector_view<T> init, shift;
  P* parts;  // [ceil(pairs / k_list_part), columns]: where parts of lists but the first begin; or null
  Out* out;  // [lists, columns], out_stride apart
  index_t out_stride;
};

/// sum += the rows of pairs [begin, end), in order.
template <bool Aligned, class T, class Lists, class Out, class Lanes>
SUBSPAN_DEVICE void add_rows(Lanes const& lanes, list_sum<T, Lists, Out> const& call,
                             lane_columns<T, Aligned> const& columns, index_t begin, index_t end,
                             wide<T> (&sum)[pack<T>::width]) {
  using P = wide<T>;
  constexpr int width = pack<T>::width, ahead = 8;  // rows in flight
  static_assert(k_warp % ahead == 0);
  P shift[width];
  SUBSPAN_UNROLL
  for (int e = 0; e < width; ++e)
    shift[e] = columns.inside(e) ? call.shift.at(columns.at(e)) : P(0);
  SUBSPAN_NO_UNROLL
  for (index_t p = begin; p < end; p += k_warp) {
    int const count = static_cast<int>(less_of(k_warp, end - p));
    weighted_row<P> const mine =
        lanes.lane() < count ? call.lists.at(p + lanes.lane()) : weighted_row<P>{-1, P(0)};
    SUBSPAN_NO_UNROLL
    for (int i = 0; i < count; i += ahead) {
      pack<T> row[ahead];
      P weight[ahead];
      SUBSPAN_UNROLL
      for (int a = 0; a < ahead; ++a) {
        index_t const from = lanes.shuffle(mine.row, i + a);
        weight[a] = lanes.shuffle(mine.weight, i + a);
        row[a] = from < 0 ? pack<T>{} : columns.load(call.rows.data + from * call.rows.stride);
      }
      SUBSPAN_UNROLL
      for (int a = 0; a < ahead; ++a) {
        if (i + a >= count) break;
        SUBSPAN_UNROLL
        for (int e = 0; e < width; ++e)
          sum[e] = std::fma(weight[a], storage<T>::widen(row[a].at[e]) - shift[e], sum[e]);
      }
    }
  }
}

/// The part of a list, not its first, that begins in pairs [part k_list_part, ...): there is at most
/// one, because two such parts of different lists would both need the k_list_part pairs before.
template <bool Aligned, class T, class Lists, class Out, class Lanes>
SUBSPAN_DEVICE void sum_part(Lanes const& lanes, list_sum<T, Lists, Out> const& call, index_t part,
                             index_t first_column) {
  index_t const position = part * k_list_part, j = call.lists.list_at(position);
  if (j >= call.lists.lists) return;
  list_range const range = call.lists.range(j);
  index_t const before = (position - range.begin + k_list_part - 1) / k_list_part;
  index_t const begin = range.begin + before * k_list_part;
  if (before == 0 || begin >= range.end) return;
  lane_columns<T, Aligned> const columns(lanes, first_column, call.rows.columns);
  wide<T> sum[pack<T>::width] = {};
  add_rows(lanes, call, columns, begin, less_of(begin + k_list_part, range.end), sum);
  SUBSPAN_UNROLL
  for (int e = 0; e < pack<T>::width; ++e)
    if (columns.inside(e)) call.parts[part * call.rows.columns + columns.at(e)] = sum[e];
}

/// List j; the parts but the first are taken from call.parts, or summed where there are none.
template <bool Aligned, class T, class Lists, class Out, class Lanes>
SUBSPAN_DEVICE void sum_list(Lanes const& lanes, list_sum<T, Lists, Out> const& call, index_t j,
                             index_t first_column) {
  using P = wide<T>;
  constexpr int width = pack<T>::width;
  lane_columns<T, Aligned> const columns(lanes, first_column, call.rows.columns);
  list_range const range = call.lists.range(j);
  P sum[width];
  SUBSPAN_UNROLL
  for (int e = 0; e < width; ++e) {
    sum[e] = columns.inside(e) ? call.init.at(columns.at(e)) : P(0);
    if (!range.valid) sum[e] = std::numeric_limits<P>::quiet_NaN();
  }
  if (range.valid) {
    add_rows(lanes, call, columns, range.begin, less_of(range.begin + k_list_part, range.end), sum);
    SUBSPAN_NO_UNROLL
    for (index_t p = range.begin + k_list_part; p < range.end; p += k_list_part) {
      P part[width] = {};
      if (call.parts == nullptr) {
        add_rows(lanes, call, columns, p, less_of(p + k_list_part, range.end), part);
      } else {
        P const* const found = call.parts + p / k_list_part * call.rows.columns;
        SUBSPAN_UNROLL
        for (int e = 0; e < width; ++e)
          if (columns.inside(e)) part[e] = found[columns.at(e)];
      }
      SUBSPAN_UNROLL
      for (int e = 0; e < width; ++e) sum[e] += part[e];
    }
  }
  columns.store(sum, call.out + j * call.out_stride);
}

/// The sum of the weights of list j, the same in all lanes.
template <class Lists, class Lanes>
SUBSPAN_DEVICE typename Lists::P sum_weights(Lanes const& lanes, Lists const& lists, index_t j) {
  list_range const range = lists.range(j);
  typename Lists::P sum = 0;
  for (index_t p = range.begin + lanes.lane(); p < range.end; p += k_warp)
    sum += lists.at(p).weight;
  return lane_sum(lanes, sum);
}

/// Two rows whose elements, of any strides, are multiplied and added by a warp.
template <bool Aligned, class T, class Lanes>
SUBSPAN_DEVICE wide<T> row_product(Lanes const& lanes, T const* a, index_t a_stride, T const* b,
                                   index_t b_stride, index_t count) {
  using columns_type = lane_columns<T, Aligned>;
  wide<T> sum = 0;
  SUBSPAN_NO_UNROLL
  for (index_t from = 0; from < count; from += columns_type::slice) {
    columns_type const columns(lanes, from, count);
    if constexpr (Aligned) {
      pack<T> const left = columns.load(a), right = columns.load(b);
      SUBSPAN_UNROLL
      for (int e = 0; e < pack<T>::width; ++e)
        sum = std::fma(storage<T>::widen(left.at[e]), storage<T>::widen(right.at[e]), sum);
    } else {
      SUBSPAN_UNROLL
      for (int e = 0; e < pack<T>::width; ++e)
        if (index_t const c = columns.at(e); columns.inside(e))
          sum =
              std::fma(storage<T>::widen(a[c * a_stride]), storage<T>::widen(b[c * b_stride]), sum);
    }
  }
  return lane_sum(lanes, sum);
}

/// The product of the rows that sorted pair q brings together, by a warp; NaN where it names none.
template <bool Aligned, class T, class Lanes>
SUBSPAN_DEVICE wide<T> pair_product(Lanes const& lanes, feature_lists<wide<T>> const& lists,
                                    index_t q, matrix_view<T const> const& with,
                                    matrix_view<T const> const& rows) {
  index_t const j = lists.list_at(q);
  if (j >= lists.lists) return std::numeric_limits<wide<T>>::quiet_NaN();
  return row_product<Aligned>(lanes, with.data + j * with.row_stride, with.column_stride,
                              rows.data + index_t{lists.rows[q]} * rows.row_stride,
                              rows.column_stride, rows.columns);
}

/// row . with, by a warp: elements `stride` apart, and of the computing type.
template <class T, class Lanes>
SUBSPAN_DEVICE wide<T> weighted_sum(Lanes const& lanes, T const* row, index_t stride,
                                    wide<T> const* with, index_t count) {
  constexpr int ahead = 8;
  wide<T> sum = 0;
  SUBSPAN_NO_UNROLL
  for (index_t from = lanes.lane(); from < count; from += ahead * k_warp) {
    T element[ahead];
    wide<T> factor[ahead];
    SUBSPAN_UNROLL
    for (int a = 0; a < ahead; ++a) {
      index_t const c = less_of(from + a * k_warp, count - 1);
      element[a] = row[c * stride];
      factor[a] = with[c];
    }
    SUBSPAN_UNROLL
    for (int a = 0; a < ahead; ++a)
      if (from + a * k_warp < count) sum = std::fma(storage<T>::widen(element[a]), factor[a], sum);
  }
  return lane_sum(lanes, sum);
}

/// One tile of to(i, j) = from(i, j), 32 x 32 by a block of 256 threads: each side is walked along
/// its shorter stride. `memory`: 32 x 33 elements.
template <class T, class Lanes>
SUBSPAN_DEVICE void copy_tile(Lanes const& lanes, T* memory, matrix_view<T const> const& from,
                              matrix_view<T> const& to, index_t top, index_t left) {
  constexpr int side = k_warp;
  auto const walk = [&](auto const& m, auto const& visit) {
    auto const size = [](index_t v) { return v < 0 ? -v : v; };
    bool const down = size(m.row_stride) < size(m.column_stride);
    for (int s = lanes.warp(); s < side; s += lanes.warps()) {
      int const i = down ? lanes.lane() : s, j = down ? s : lanes.lane();
      if (top + i < m.rows && left + j < m.columns)
        visit(m.data[(top + i) * m.row_stride + (left + j) * m.column_stride],
              memory[i * (side + 1) + j]);
    }
  };
  walk(from, [](T const& element, T& kept) { kept = element; });
  lanes.sync();
  walk(to, [](T& element, T const& kept) { element = kept; });
  lanes.sync();
}

}  // namespace subspan::gpu
