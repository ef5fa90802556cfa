// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/tile_engine.hpp, detail/product_tile.inl.hpp and detail/widen.inl.hpp.

/// One panel: `count` <= width vectors from `first` on, the rest zeros.
template <class T, class P>
void pack_panel(detail::vector_set<T> const& from, detail::packing<P> const& how, index_t first,
                index_t count, index_t width, P* out) {
  constexpr index_t chunk = 64;
  P line[chunk];
  if (count < width) std::fill_n(out, width * from.depth, P{0});
  if (from.step == 1 && from.ids == nullptr && how.scale == nullptr) {
    for (index_t r = 0; r < from.depth; ++r, out += width) {
      T const* const in = from.data + first + r * from.stride;
      P const shift = how.shift != nullptr ? how.shift[r] : P{0};
#pragma omp simd
      for (index_t i = 0; i < count; ++i) out[i] = static_cast<P>(widen_one(in[i])) - shift;
    }
    return;
  }
  for (index_t r = 0; r < from.depth; r += chunk) {
    index_t const n = std::min(chunk, from.depth - r);
    for (index_t i = 0; i < count; ++i) {
      T const* const in = from[first + i] + r * from.stride;
      if (how.scale != nullptr) {
        double const scale = how.scale[first + i];
        for (index_t c = 0; c < n; ++c) {
          double const v = static_cast<double>(widen_one(in[c * from.stride])) * scale;
          line[c] =
              static_cast<P>(how.shift != nullptr ? v - static_cast<double>(how.shift[r + c]) : v);
        }
      } else {
        widen<T, P>(in, from.stride, n, line);
        if (how.shift != nullptr)
#pragma omp simd
          for (index_t c = 0; c < n; ++c) line[c] -= how.shift[r + c];
      }
      P* const column = out + r * width + i;
      for (index_t c = 0; c < n; ++c) column[c * width] = line[c];
    }
  }
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

/// All tiles of a block through an epilogue, panel of columns by panel of columns.
template <class P, class Epilogue>
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
            accumulate<shape::rows>(n, a, b, sum);
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
