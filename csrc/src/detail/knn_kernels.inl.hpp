// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/knn_kernels.hpp, detail/tile_engine.inl.hpp and detail/row_selector.inl.hpp.

/// What a score by products of this tile may be off by.
template <class P>
inline P tile_error(detail::neighbor_strip<P> const& strip, index_t row0, index_t column0) {
  using shape = tile_shape<P>;
  P const reach = strip.row_reach[row0 / shape::rows] + strip.column_reach[column0 / shape::width];
  return strip.error * reach * reach;
}

template <class P>
[[gnu::always_inline]] inline lanes<P> load_lanes(P const* from) {
  return *reinterpret_cast<typename tile_shape<P>::in_memory const*>(from);
}

/// Scores from sums of products or of differences; halves of NaN leave nothing else.
template <bool Differences, class P>
[[gnu::always_inline]] inline lanes<P> score_of(lanes<P> sum, lanes<P> half, P own) {
  if constexpr (Differences)
    return P(-0.5) * sum + P(0) * (half + own);
  else
    return sum - half - own;
}

template <class P, bool Masked>
struct select_nearest {
  detail::neighbor_strip<P> const& strip;
  detail::row_selector<P>* best;
  P* used;
  bool only_differences;

  bool by_differences(index_t row0, index_t column0) const {
    using shape = tile_shape<P>;
    if (!strip.differences) return false;
    P const error = tile_error<P>(strip, row0, column0);
    P const enough = error * static_cast<P>(1 / detail::k_tolerated);
    bool products = !only_differences;
    for (int i = 0; i < shape::rows; ++i) {
      P const farthest = -best[row0 + i].least();  // infinite at first: then nothing is known
      products &= (farthest >= enough && farthest <= std::numeric_limits<P>::max()) ||
                  std::isnan(strip.row_half[row0 + i]);
    }
    if (products) {
      P& greatest = used[row0 / shape::rows];
      if (error > greatest) greatest = error;
    } else {
      ++strip.difference_tiles[row0 / shape::rows];
    }
    return !products;
  }

  template <bool Differences>
  [[gnu::always_inline]] void take(typename tile_shape<P>::sums& sum, index_t row0,
                                   index_t column0) {
    using shape = tile_shape<P>;
    typename shape::vector half[shape::vectors];
#pragma GCC unroll 8
    for (int v = 0; v < shape::vectors; ++v)
      half[v] = load_lanes<P>(strip.column_half + column0 + v * shape::lanes);
#pragma GCC unroll 8
    for (int i = 0; i < shape::rows; ++i) {
      auto& row = best[row0 + i];
      P const own = strip.row_half[row0 + i];
      unsigned any = 0;
#pragma GCC unroll 8
      for (int v = 0; v < shape::vectors; ++v) {
        sum[i][v] = score_of<Differences, P>(sum[i][v], half[v], own);
        any |= at_least<P>(sum[i][v], row.least());
      }
      if (any != 0) [[unlikely]] {
        // A copy: sums whose address is taken would not stay in registers.
        typename shape::vector scores[shape::vectors];
#pragma GCC unroll 8
        for (int v = 0; v < shape::vectors; ++v) scores[v] = sum[i][v];
        take_row(row, scores, row0 + i, column0);
      }
    }
  }

  [[gnu::noinline]] void take_row(detail::row_selector<P>& row,
                                  typename tile_shape<P>::vector const* scores, index_t index,
                                  index_t column0) const {
    using shape = tile_shape<P>;
    for (int v = 0; v < shape::vectors; ++v) {
      index_t const column = column0 + v * shape::lanes;
      unsigned valid = ~0u;
      if constexpr (Masked) {
        unsigned const passing = at_least<P>(scores[v], row.least());
        valid = 0;
        for (unsigned rest = passing; rest != 0; rest &= rest - 1) {
          int const lane = __builtin_ctz(rest);
          valid |= strip.allows(index, column + lane) ? 1u << lane : 0u;
        }
      }
      push<P>(row, scores[v], static_cast<std::uint32_t>(column), valid);
    }
  }
};

template <class P, class Form>
void select_neighbors(detail::tile_block<P> const& block, detail::neighbor_strip<P> const& strip,
                      detail::row_selector<P>* best, P* used, bool only_differences) {
  if (strip.mask != nullptr) {
    select_nearest<P, true> epilogue{strip, best, used, only_differences};
    multiply_tiles<P, Form>(block, epilogue);
  } else {
    select_nearest<P, false> epilogue{strip, best, used, only_differences};
    multiply_tiles<P, Form>(block, epilogue);
  }
}

template <class P>
struct select_both {
  detail::neighbor_strip<P> const& strip;
  detail::searched_rows<P> rows, columns;  // the same, of x against x

  bool by_differences(index_t row0, index_t column0) const {
    using shape = tile_shape<P>;
    if (!strip.differences) return false;
    P const error = tile_error<P>(strip, row0, column0);
    P const enough = error * static_cast<P>(1 / detail::k_tolerated);
    constexpr P most = std::numeric_limits<P>::max();  // beyond: nothing is known yet
    bool products = true;
    for (int i = 0; i < shape::rows; ++i)
      products &= -rows.least[row0 + i] >= enough && -rows.least[row0 + i] <= most;
    for (int v = 0; v < shape::vectors; ++v) {
      auto const bars = load_lanes<P>(columns.least + column0 + v * shape::lanes);
      products &= at_least<P>(bars, -most) == all_lanes && at_least<P>(-bars, enough) == all_lanes;
    }
    if (products) {
      auto const note = [&](P& greatest) {
        if (error > greatest) greatest = error;
      };
      note(rows.used[row0 / shape::rows]);
      for (int c = 0; c < shape::width; c += shape::rows)
        note(columns.used[(column0 + c) / shape::rows]);
    } else {
      ++strip.difference_tiles[row0 / shape::rows];
    }
    return !products;
  }

  template <bool Differences>
  [[gnu::always_inline]] void take(typename tile_shape<P>::sums& sum, index_t row0,
                                   index_t column0) {
    using shape = tile_shape<P>;
    typename shape::vector half[shape::vectors], bars[shape::vectors];
#pragma GCC unroll 8
    for (int v = 0; v < shape::vectors; ++v) {
      half[v] = load_lanes<P>(strip.column_half + column0 + v * shape::lanes);
      bars[v] = load_lanes<P>(columns.least + column0 + v * shape::lanes);
    }
#pragma GCC unroll 8
    for (int i = 0; i < shape::rows; ++i) {
      P const own = strip.row_half[row0 + i], bar = rows.least[row0 + i];
      unsigned any = 0;
#pragma GCC unroll 8
      for (int v = 0; v < shape::vectors; ++v) {
        sum[i][v] = score_of<Differences, P>(sum[i][v], half[v], own);
        any |= at_least<P>(sum[i][v], bar) | at_least<P>(sum[i][v], bars[v]);
      }
      if (any != 0) [[unlikely]] {
        // A copy: sums whose address is taken would not stay in registers.
        typename shape::vector scores[shape::vectors];
#pragma GCC unroll 8
        for (int v = 0; v < shape::vectors; ++v) scores[v] = sum[i][v];
        take_row(scores, row0 + i, column0);
      }
    }
  }

  [[gnu::noinline]] void take_row(typename tile_shape<P>::vector const* scores, index_t row,
                                  index_t column0) const {
    using shape = tile_shape<P>;
    for (int v = 0; v < shape::vectors; ++v) {
      index_t const first = column0 + v * shape::lanes;
      push<P>(rows.best[row], scores[v], static_cast<std::uint32_t>(first));
      P lanes[shape::lanes];
      __builtin_memcpy(lanes, scores + v, sizeof lanes);
      for (unsigned mask = at_least<P>(scores[v], load_lanes<P>(columns.least + first)); mask != 0;
           mask &= mask - 1) {
        int const lane = __builtin_ctz(mask);
        auto& column = columns.best[first + lane];
        column.add(lanes[lane], static_cast<std::uint32_t>(row));
        if (column.least() > columns.least[first + lane])
          columns.least[first + lane] = column.least();
      }
    }
    if (rows.best[row].least() > rows.least[row]) rows.least[row] = rows.best[row].least();
  }

  static constexpr unsigned all_lanes =
      static_cast<unsigned>((std::uint64_t{1} << tile_shape<P>::lanes) - 1);
};

template <class P, class Form>
void select_of_both(detail::tile_block<P> const& block, detail::neighbor_strip<P> const& strip,
                    detail::searched_rows<P> const& rows, detail::searched_rows<P> const& columns) {
  select_both<P> epilogue{strip, rows, columns};
  multiply_tiles<P, Form>(block, epilogue);
}

template <class P>
struct find_within {
  detail::neighbor_strip<P> const& strip;
  P const* bars;
  P limit;
  index_t depth;
  std::vector<detail::near_pair>& found;

  bool by_differences(index_t row0, index_t column0) const {
    bool const yes = strip.differences && !(tile_error<P>(strip, row0, column0) <=
                                            static_cast<P>(detail::k_tolerated) * limit);
    if (yes) ++strip.difference_tiles[row0 / tile_shape<P>::rows];
    return yes;
  }

  /// What the computed score of a pair at the limit may fall short by.
  template <bool Differences>
  P slack(index_t row0, index_t column0) const {
    constexpr P unit = std::numeric_limits<P>::epsilon() / 2;
    P const tiny = static_cast<P>(depth) * std::numeric_limits<P>::min();
    if constexpr (!Differences) return tile_error<P>(strip, row0, column0) * P(1.01) + tiny;
    // Both rows are off by their packing; then d roundings of the sum.
    P const reach = strip.row_reach[row0 / tile_shape<P>::rows] +
                    strip.column_reach[column0 / tile_shape<P>::width];
    P const rounded = 2 * unit * reach, root = std::sqrt(2 * limit);
    return (P(1.01) * (root + rounded) * rounded +
            2 * unit * static_cast<P>(depth + 4) * (root + rounded) * (root + rounded)) +
           tiny;
  }

  template <bool Differences>
  [[gnu::always_inline]] void take(typename tile_shape<P>::sums& sum, index_t row0,
                                   index_t column0) {
    using shape = tile_shape<P>;
    P const less = slack<Differences>(row0, column0);
    typename shape::vector half[shape::vectors];
#pragma GCC unroll 8
    for (int v = 0; v < shape::vectors; ++v)
      half[v] = load_lanes<P>(strip.column_half + column0 + v * shape::lanes);
#pragma GCC unroll 8
    for (int i = 0; i < shape::rows; ++i) {
      P const own = strip.row_half[row0 + i];
      P const bar = bars[row0 + i] - less;
#pragma GCC unroll 8
      for (int v = 0; v < shape::vectors; ++v) {
        auto const score = score_of<Differences, P>(sum[i][v], half[v], own);
        if (unsigned const mask = at_least<P>(score, bar); mask != 0) [[unlikely]]
          take_lanes(mask, row0 + i, column0 + v * shape::lanes);
      }
    }
  }

  [[gnu::noinline]] void take_lanes(unsigned mask, index_t row, index_t column0) const {
    for (; mask != 0; mask &= mask - 1) {
      index_t const column = column0 + __builtin_ctz(mask);
      if (strip.mask == nullptr || strip.allows(row, column))
        found.push_back({static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(column)});
    }
  }
};

template <class P>
void find_neighbors(detail::tile_block<P> const& block, detail::neighbor_strip<P> const& strip,
                    P const* bars, P limit, std::vector<detail::near_pair>& found) {
  find_within<P> epilogue{strip, bars, limit, block.depth, found};
  multiply_tiles<P>(block, epilogue);
}

// ---- distances in double -----------------------------------------------------------------------
//
// Sixteen sums side by side, whatever the level: the order of the additions is part of the
// definition.

typedef double eight_doubles __attribute__((vector_size(64)));

template <class T>
void widen_exact(T const* row, index_t stride, index_t depth, double* out) {
  widen<T, double>(row, stride, depth, out);
  std::fill(out + depth,
            out + (depth + detail::k_exact_step - 1) / detail::k_exact_step * detail::k_exact_step,
            0.0);
}

template <class T, class Term>
inline double sum_exact(double const* x, T const* y, index_t stride, index_t depth, Term&& term) {
  constexpr index_t step = detail::k_exact_step;
  eight_doubles sum[2] = {};
  double line[step];
  for (index_t r = 0; r < depth; r += step) {
    if (index_t const n = std::min(step, depth - r); n < step) {
      std::fill_n(line, step, 0.0);
      widen<T, double>(y + r * stride, stride, n, line);
    } else {
      widen<T, double>(y + r * stride, stride, step, line);
    }
    for (int half = 0; half < 2; ++half) {
      eight_doubles a, b;
      __builtin_memcpy(&a, x + r + 8 * half, sizeof a);
      __builtin_memcpy(&b, line + 8 * half, sizeof b);
      term(sum[half], a, b);
    }
  }
  eight_doubles const both = sum[0] + sum[1];
  return ((both[0] + both[4]) + (both[2] + both[6])) + ((both[1] + both[5]) + (both[3] + both[7]));
}

template <class T>
double exact_difference(double const* x, T const* y, index_t stride, index_t depth) {
  return sum_exact(x, y, stride, depth,
                   [](eight_doubles& sum, eight_doubles const& a, eight_doubles const& b) {
                     eight_doubles const difference = a - b;
                     sum += difference * difference;
                   });
}

template <class T>
double exact_product(double const* x, T const* y, index_t stride, index_t depth) {
  return sum_exact(
      x, y, stride, depth,
      [](eight_doubles& sum, eight_doubles const& a, eight_doubles const& b) { sum += a * b; });
}

template <class T, class P>
inline constexpr detail::knn_kernels<T, P> knn_table{{tile_shape<P>::rows, tile_shape<P>::width},
                                                     &pack_panels<T, P>,
                                                     &panel_squares<P>,
                                                     &select_neighbors<P, by_products<P>>,
                                                     &select_of_both<P, by_products<P>>,
                                                     &find_neighbors<P>};
template <class T>
inline constexpr detail::exact_kernels<T> exact_table{&widen_exact<T>, &exact_difference<T>,
                                                      &exact_product<T>};
