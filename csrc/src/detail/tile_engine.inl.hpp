// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/tile_engine.hpp, detail/product_tile.inl.hpp and detail/widen.inl.hpp.

#include "detail/interleave.inl.hpp"

/// n elements of a vector from r on, as they are packed; null: n zeros.
template <class T, class P>
void prepare_line(T const* vector, index_t stride, index_t r, index_t n, P const* shift,
                  double const* scale, P* line) {
  if (vector == nullptr) {
    std::fill_n(line, n, P{0});
  } else if (scale != nullptr) {
    for (index_t c = 0; c < n; ++c) {
      double const v = static_cast<double>(widen_one(vector[(r + c) * stride])) * *scale;
      line[c] = static_cast<P>(shift != nullptr ? v - static_cast<double>(shift[r + c]) : v);
    }
  } else {
    widen<T, P>(vector + r * stride, stride, n, line);
    if (shift != nullptr)
#pragma omp simd
      for (index_t c = 0; c < n; ++c) line[c] -= shift[r + c];
  }
}

/// One panel: `count` <= width vectors from `first` on, each read along itself, the rest zeros.
template <class T, class P>
void pack_lines(detail::vector_set<T> const& from, detail::packing<P> const& how, index_t first,
                index_t count, index_t width, P* out) {
  constexpr index_t chunk = 256;
  alignas(64) P lines[4 * chunk];
  static_assert(tile_shape<P>::rows % 4 == 0 && tile_shape<P>::width % 4 == 0);
  for (index_t i = 0; i < width; i += 4)
    for (index_t r = 0; r < from.depth; r += chunk) {
      index_t const n = std::min(chunk, from.depth - r), whole = n / 4 * 4;
      for (index_t j = 0; j < 4; ++j)
        prepare_line<T, P>(i + j < count ? from[first + i + j] : nullptr, from.stride, r, n,
                           how.shift, how.scale != nullptr ? how.scale + first + i + j : nullptr,
                           lines + j * chunk);
      P* const to = out + r * width + i;
      interleave<P>(lines, chunk, whole, width, to);
      for (index_t c = whole; c < n; ++c)
        for (index_t j = 0; j < 4; ++j) to[c * width + j] = lines[j * chunk + c];
    }
}

/// n elements of a row of vectors that lie side by side, and zeros up to the width.
template <class T, class P>
[[gnu::always_inline]] inline void copy_row(T const* in, P shift, index_t n, index_t width,
                                            P* out) {
#pragma omp simd
  for (index_t i = 0; i < n; ++i) out[i] = static_cast<P>(widen_one(in[i])) - shift;
  std::fill(out + n, out + width, P{0});
}

/// `count` vectors from `first` on, panel after panel, the last one filled with zeros. Vectors that
/// lie side by side are read row by row through all panels: a row is as far from the next as
/// memory allows, so the longer it is, the better.
template <class T, class P>
void pack_panels(detail::vector_set<T> const& from, detail::packing<P> const& how, index_t first,
                 index_t count, index_t width, P* out) {
  index_t const panel = width * from.depth;
  if (from.step != 1 || from.ids != nullptr || how.scale != nullptr) {
    for (index_t i = 0; i < count; i += width, out += panel)
      pack_lines<T, P>(from, how, first + i, std::min(width, count - i), width, out);
    return;
  }
  constexpr index_t ahead = 4, line = 64 / static_cast<index_t>(sizeof(T));
  for (index_t r = 0; r < from.depth; ++r, out += width) {
    T const* const in = from.data + first + r * from.stride;
    if (r + ahead < from.depth)
      for (index_t i = 0; i < count; i += line) __builtin_prefetch(in + ahead * from.stride + i);
    P const shift = how.shift != nullptr ? how.shift[r] : P{0};
    P* to = out;
    index_t i = 0;
    if (width == tile_shape<P>::width)  // a constant, so there are no loops
      for (; i + width <= count; i += width, to += panel)
        copy_row<T, P>(in + i, shift, tile_shape<P>::width, tile_shape<P>::width, to);
    for (; i < count; i += width, to += panel)
      copy_row<T, P>(in + i, shift, std::min(width, count - i), width, to);
  }
}

/// |v|^2 of the vectors of a panel, in double.
template <class P>
void panel_squares(P const* panel, index_t depth, index_t width, double* out) {
  std::fill_n(out, width, 0.0);
  for (index_t r = 0; r < depth; ++r, panel += width)
#pragma omp simd
    for (index_t c = 0; c < width; ++c)
      out[c] += static_cast<double>(panel[c]) * static_cast<double>(panel[c]);
}

/// As `accumulate`, of (a - b)^2.
template <int Step, class P>
[[gnu::always_inline]] inline void accumulate_differences(index_t depth, P const* a, P const* b,
                                                          typename tile_shape<P>::sums& sum) {
  using shape = tile_shape<P>;
  for (index_t r = 0; r < depth; ++r, a += Step, b += shape::width) {
    typename shape::vector right[shape::vectors];
#pragma GCC unroll 8
    for (int v = 0; v < shape::vectors; ++v)
      right[v] = *reinterpret_cast<typename shape::in_memory const*>(b + v * shape::lanes);
#pragma GCC unroll 8
    for (int i = 0; i < shape::rows; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < shape::vectors; ++v) {
        auto const difference = a[i] - right[v];
        sum[i][v] += difference * difference;
      }
  }
}

// Register by register: sums whose address is taken would not stay in registers.
template <class P>
[[gnu::always_inline]] inline void load_sums(P const* from, typename tile_shape<P>::sums& sum) {
  using shape = tile_shape<P>;
#pragma GCC unroll 8
  for (int i = 0; i < shape::rows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < shape::vectors; ++v)
      sum[i][v] = *reinterpret_cast<typename shape::in_memory const*>(from + i * shape::width +
                                                                      v * shape::lanes);
}
template <class P>
[[gnu::always_inline]] inline void store_sums(typename tile_shape<P>::sums const& sum, P* to) {
  using shape = tile_shape<P>;
#pragma GCC unroll 8
  for (int i = 0; i < shape::rows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < shape::vectors; ++v)
      *reinterpret_cast<typename shape::in_memory*>(to + i * shape::width + v * shape::lanes) =
          sum[i][v];
}

/// How the elements of two packed panels come into the sums.
template <class P>
struct by_products {
  template <int Step>
  [[gnu::always_inline]] static void accumulate_into(typename tile_shape<P>::sums& sum,
                                                     index_t depth, P const* a, P const* b) {
    accumulate<Step>(depth, a, b, sum);
  }
};

/// All tiles of a block through an epilogue, panel of columns by panel of columns.
template <class P, class Form = by_products<P>, class Epilogue>
void multiply_tiles(detail::tile_block<P> const& block, Epilogue& epilogue) {
  using shape = tile_shape<P>;
  using sums = typename shape::sums;
  static_assert(detail::k_rows_of_task % shape::rows == 0);
  constexpr index_t most = detail::k_rows_of_task / shape::rows;
  constexpr bool choosy = requires { epilogue.by_differences(index_t{}, index_t{}); };
  index_t const depth = block.depth;
  alignas(64) P partial[most * shape::rows * shape::width];
  bool differences[most];

  for (index_t q = 0; q < block.column_panels; ++q) {
    P const* const right = block.right + q * shape::width * depth;
    index_t const column = block.column0 + q * shape::width;
    index_t r = 0;
    do {
      index_t const n = std::min(detail::k_tile_depth, depth - r);
      for (index_t p = 0; p < block.row_panels; ++p) {
        index_t const row = block.row0 + p * shape::rows;
        P const* const a = block.left + p * shape::rows * depth + r * shape::rows;
        P const* const b = right + r * shape::width;
        P* const rest = partial + p * shape::rows * shape::width;
        auto const step = [&]<bool Differences>() {
          sums sum = {};
          if (r > 0) load_sums<P>(rest, sum);
          if constexpr (Differences)
            accumulate_differences<shape::rows>(n, a, b, sum);
          else
            Form::template accumulate_into<shape::rows>(sum, n, a, b);
          if (r + n < depth)
            store_sums<P>(sum, rest);
          else
            epilogue.template take<Differences>(sum, row, column);
        };
        if constexpr (choosy) {
          if (r == 0) differences[p] = epilogue.by_differences(row, column);
          if (differences[p]) {
            step.template operator()<true>();
            continue;
          }
        }
        step.template operator()<false>();
      }
      r += n;
    } while (r < depth);
  }
}
