// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/encode_kernels.hpp, detail/row_selector.inl.hpp, detail/tile_engine.inl.hpp and, for the
// table, detail/encode_in_place.inl.hpp.

/// All tiles of a block through an epilogue.
template <class P, class Form = by_products<P>, class Epilogue>
void pass_tiles(detail::encode_block<P> const& block, Epilogue& epilogue) {
  using shape = tile_shape<P>;
  if (block.sums == nullptr) return multiply_tiles<P, Form>(block, epilogue);
  P const* made = block.sums;
  for (index_t q = 0; q < block.column_panels; ++q)
    for (index_t p = 0; p < block.row_panels; ++p, made += shape::rows * shape::width) {
      typename shape::sums sum;
      load_sums<P>(made, sum);
      epilogue.template take<false>(sum, block.row0 + p * shape::rows,
                                    block.column0 + q * shape::width);
    }
}

template <class P, bool Rectified>
struct select_largest {
  detail::row_selector<P>* rows;
  P const* bias;

  template <bool>
  [[gnu::always_inline]] void take(typename tile_shape<P>::sums& sum, index_t row0,
                                   index_t column0) {
    using shape = tile_shape<P>;
    typename shape::vector add[shape::vectors];
#pragma GCC unroll 8
    for (int v = 0; v < shape::vectors; ++v)
      add[v] =
          *reinterpret_cast<typename shape::in_memory const*>(bias + column0 + v * shape::lanes);
#pragma GCC unroll 8
    for (int i = 0; i < shape::rows; ++i) {
      auto& row = rows[row0 + i];
      unsigned mask[shape::vectors], any = 0;
#pragma GCC unroll 8
      for (int v = 0; v < shape::vectors; ++v) {
        sum[i][v] += add[v];
        if constexpr (Rectified)
          sum[i][v] = sum[i][v] < 0 ? P{0} - typename shape::vector{} : sum[i][v];
        any |= mask[v] = at_least<P>(sum[i][v], row.least());
      }
      if (any != 0) [[unlikely]] {
        // A copy: sums whose address is taken would not stay in registers.
        typename shape::vector scores[shape::vectors];
#pragma GCC unroll 8
        for (int v = 0; v < shape::vectors; ++v) scores[v] = sum[i][v];
        take_row(row, scores, column0);
      }
    }
  }

  [[gnu::noinline]] static void take_row(detail::row_selector<P>& row,
                                         typename tile_shape<P>::vector const* scores,
                                         index_t column0) {
    using shape = tile_shape<P>;
    for (int v = 0; v < shape::vectors; ++v)
      push<P>(row, scores[v], static_cast<std::uint32_t>(column0 + v * shape::lanes));
  }
};

template <class P, class Form>
void select_block(detail::encode_block<P> const& block, detail::row_selector<P>* best,
                  P const* bias, bool rectified) {
  if (rectified) {
    select_largest<P, true> epilogue{best, bias};
    pass_tiles<P, Form>(block, epilogue);
  } else {
    select_largest<P, false> epilogue{best, bias};
    pass_tiles<P, Form>(block, epilogue);
  }
}

/// Passes the few entries that reach the bar of their column to `hit(row, column, value)`.
template <class P, class Bar, class Hit>
struct filter_entries {
  P const* bias;
  index_t rows;  // of the strip
  Bar bar_of;    // of the columns of a vector
  Hit hit;

  template <bool>
  [[gnu::always_inline]] void take(typename tile_shape<P>::sums& sum, index_t row0,
                                   index_t column0) {
    using shape = tile_shape<P>;
#pragma GCC unroll 8
    for (int v = 0; v < shape::vectors; ++v) {
      index_t const column = column0 + v * shape::lanes;
      auto const add = *reinterpret_cast<typename shape::in_memory const*>(bias + column);
      typename shape::vector const bar = bar_of(column);
#pragma GCC unroll 8
      for (int i = 0; i < shape::rows; ++i) {
        typename shape::vector const z = sum[i][v] + add;
        if (unsigned const mask = at_least<P>(z, bar); mask != 0 && row0 + i < rows) [[unlikely]]
          take_lanes(z, mask, row0 + i, column);
      }
    }
  }

  [[gnu::noinline]] void take_lanes(typename tile_shape<P>::vector z, unsigned mask, index_t row,
                                    index_t column) {
    P scores[tile_shape<P>::lanes];
    __builtin_memcpy(scores, &z, sizeof scores);
    for (; mask != 0; mask &= mask - 1) {
      int const lane = __builtin_ctz(mask);
      hit(static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(column + lane), scores[lane]);
    }
  }
};

template <class P>
void select_of_batch(detail::encode_block<P> const& block, index_t first_row, index_t rows,
                     P const* bias, detail::batch_selector<P>& best) {
  using vector = typename tile_shape<P>::vector;
  auto const bar = [&](index_t) { return best.least() - vector{}; };
  auto const hit = [&](std::uint32_t row, std::uint32_t column, P z) {
    best.add(z, static_cast<std::uint32_t>(first_row) + row, column);
  };
  filter_entries<P, decltype(bar), decltype(hit)> epilogue{bias, rows, bar, hit};
  pass_tiles<P>(block, epilogue);
}

template <class P>
void hits_above(detail::encode_block<P> const& block, index_t rows, P const* bias, P const* bars,
                std::vector<detail::code_hit<P>>& hits) {
  auto const bar = [&](index_t column) {
    return *reinterpret_cast<typename tile_shape<P>::in_memory const*>(bars + column);
  };
  using order = detail::score_order<P>;
  auto const hit = [&](std::uint32_t row, std::uint32_t column, P z) {
    // Where subnormal numbers are flushed, 0 passes for the number above it: only bits tell.
    if (order::key(z) >= order::key(bars[column])) hits.push_back({row, column, z});
  };
  filter_entries<P, decltype(bar), decltype(hit)> epilogue{bias, rows, bar, hit};
  pass_tiles<P>(block, epilogue);
}

template <class T, class P>
inline constexpr detail::encode_kernels<T, P> encode_table{
    {tile_shape<P>::rows, tile_shape<P>::width},
    [](P z) { return narrow_one<T>(z); },
    [](T x) { return static_cast<P>(widen_one(x)); },
    &pack_panels<T, P>,
    &sums_in_place<T, P>,
    &select_block<P, by_products<P>>,
    &select_of_batch<P>,
    &hits_above<P>};
