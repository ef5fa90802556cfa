// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/tile_engine.inl.hpp, detail/kernel_functions.inl.hpp and detail/kernel_tiles.hpp.

/// Loads and stores of the vectors of a row of a tile.
template <class P>
[[gnu::always_inline]] inline tile_vector<P> load_lanes(P const* from) {
  return *reinterpret_cast<typename tile_shape<P>::in_memory const*>(from);
}
template <class P>
[[gnu::always_inline]] inline void store_lanes(P* to, tile_vector<P> v) {
  *reinterpret_cast<typename tile_shape<P>::in_memory*>(to) = v;
}

template <class P>
inline bool any_negative(tile_vector<P> v) {
#if defined(__x86_64__) && SUBSPAN_VECTOR_BYTES == 64
  return (sizeof(P) == 4 ? _mm512_movepi32_mask((__m512i)v) : _mm512_movepi64_mask((__m512i)v)) !=
         0;
#elif defined(__x86_64__) && SUBSPAN_VECTOR_BYTES == 32
  return _mm256_movemask_epi8((__m256i)(v < P{0})) != 0;
#elif defined(__x86_64__)
  return _mm_movemask_epi8((__m128i)(v < P{0})) != 0;
#else
  return any(v < P{0});
#endif
}

template <class P>
struct store_scores {
  P* tile;
  template <bool>
  [[gnu::always_inline]] void take(typename tile_shape<P>::sums& sum, index_t row0, index_t) {
    store_sums<P>(sum, tile + row0 * tile_shape<P>::width);
  }
};

/// |x|^2 + |y|^2 - 2 <x, y>. Where a score is small beside the norms the rounding errors of all
/// three are large beside it, and the tile is made of differences, too.
template <class P>
struct store_expanded {
  detail::score_task<P> const& task;
  P* tile;

  template <bool>
  [[gnu::always_inline]] void take(typename tile_shape<P>::sums& sum, index_t row0, index_t) {
    using shape = tile_shape<P>;
    constexpr P cancelled = P{1} / 64;
    tile_vector<P> margin{};
#pragma GCC unroll 8
    for (int v = 0; v < shape::vectors; ++v) {
      tile_vector<P> const x = load_lanes<P>(task.x_norms + v * shape::lanes);
#pragma GCC unroll 8
      for (int i = 0; i < shape::rows; ++i) {
        tile_vector<P> const norms = x + task.y_norms[row0 + i], score = norms - 2 * sum[i][v],
                             above = score - cancelled * norms;
        margin = above < margin ? above : margin;
        store_lanes<P>(tile + (row0 + i) * shape::width + v * shape::lanes, score);
      }
    }
    if (any_negative<P>(margin)) [[unlikely]]
      by_differences(row0);
  }

  [[gnu::noinline]] void by_differences(index_t row0) {
    using shape = tile_shape<P>;
    typename shape::sums sum = {};
    accumulate_differences<shape::rows>(task.depth, task.y + row0 * task.depth, task.x, sum);
    store_sums<P>(sum, tile + row0 * shape::width);
  }
};

template <class P>
struct always_by_differences {
  template <int Step>
  [[gnu::always_inline]] static void accumulate_into(typename tile_shape<P>::sums& sum,
                                                     index_t depth, P const* a, P const* b) {
    accumulate_differences<Step>(depth, a, b, sum);
  }
};

template <class P>
void make_scores(detail::score_form form, detail::score_task<P> const& task, P* tile) {
  using shape = tile_shape<P>;
  detail::tile_block<P> const block{
      task.y, detail::divide_up(task.count, shape::rows), task.x, 1, task.depth, 0, 0};
  store_scores<P> store{tile};
  if (form == detail::score_form::products) {
    multiply_tiles<P>(block, store);
  } else if (form == detail::score_form::differences) {
    multiply_tiles<P, always_by_differences<P>>(block, store);
  } else {
    store_expanded<P> expanded{task, tile};
    multiply_tiles<P>(block, expanded);
  }
}

/// out[i] = sum over j of f(tile) v[j].
template <class P>
struct weighing {
  template <class Function>
  static void run(Function f, P const* tile, index_t count, P const* v, P* out) {
    using shape = tile_shape<P>;
    tile_vector<P> sum[shape::vectors] = {};
    for (index_t j = 0; j < count; ++j, tile += shape::width)
#pragma GCC unroll 8
      for (int l = 0; l < shape::vectors; ++l)
        sum[l] += f.value(load_lanes<P>(tile + l * shape::lanes)) * v[j];
#pragma GCC unroll 8
    for (int l = 0; l < shape::vectors; ++l) store_lanes<P>(out + l * shape::lanes, sum[l]);
  }
};

/// The same from a few coordinates, by differences: all in registers.
template <class P>
struct weighing_points {
  template <class Function>
  static void run(Function f, detail::score_task<P> const* task, P const* v, P* out) {
    switch (task->depth) {
      case 1:
        return sum<1>(f, *task, v, out);
      case 2:
        return sum<2>(f, *task, v, out);
      default:
        return sum<3>(f, *task, v, out);
    }
  }

  template <int Depth, class Function>
  static void sum(Function f, detail::score_task<P> const& task, P const* v, P* out) {
    using shape = tile_shape<P>;
    tile_vector<P> x[Depth][shape::vectors], sum[shape::vectors] = {};
#pragma GCC unroll 4
    for (int c = 0; c < Depth; ++c)
#pragma GCC unroll 8
      for (int l = 0; l < shape::vectors; ++l)
        x[c][l] = load_lanes<P>(task.x + c * shape::width + l * shape::lanes);
    P const* y = task.y;
    index_t j = 0;
    for (; j + shape::rows <= task.count; j += shape::rows, y += Depth * shape::rows)
      for (int i = 0; i < shape::rows; ++i) add<Depth>(f, x, y + i, v[j + i], sum);
    for (; j < task.count; ++j, ++y) add<Depth>(f, x, y, v[j], sum);
#pragma GCC unroll 8
    for (int l = 0; l < shape::vectors; ++l) store_lanes<P>(out + l * shape::lanes, sum[l]);
  }

  /// One point y of a panel.
  template <int Depth, class Function, class Points, class Sums>
  [[gnu::always_inline]] static void add(Function f, Points const& x, P const* y, P v, Sums& sum) {
    using shape = tile_shape<P>;
#pragma GCC unroll 8
    for (int l = 0; l < shape::vectors; ++l) {
      tile_vector<P> score{};
#pragma GCC unroll 4
      for (int c = 0; c < Depth; ++c) {
        tile_vector<P> const difference = y[c * shape::rows] - x[c][l];
        score += difference * difference;
      }
      sum[l] += f.value(score) * v;
    }
  }
};

/// tile = f(tile)
template <class P>
struct applying {
  template <class Function>
  static void run(Function f, P* tile, index_t count) {
    for (index_t at = 0; at < count * tile_shape<P>::width; at += tile_shape<P>::lanes)
      store_lanes<P>(tile + at, f.value(load_lanes<P>(tile + at)));
  }
};

/// tile = f'(tile) weights
template <class P>
struct applying_slopes {
  template <class Function>
  static void run(Function f, P* tile, P const* weights, index_t count) {
    for (index_t at = 0; at < count * tile_shape<P>::width; at += tile_shape<P>::lanes)
      store_lanes<P>(tile + at, f.slope(load_lanes<P>(tile + at)) * load_lanes<P>(weights + at));
  }
};

template <class P>
void weigh_scores(kernel_params const& how, P const* tile, index_t count, P const* v, P* out) {
  with_function<P, weighing<P>>(how, tile, count, v, out);
}
template <class P>
void weigh_points(kernel_params const& how, detail::score_task<P> const& task, P const* v, P* out) {
  with_function<P, weighing_points<P>>(how, &task, v, out);
}
template <class P>
void apply_function(kernel_params const& how, P* tile, index_t count) {
  with_function<P, applying<P>>(how, tile, count);
}
template <class P>
void apply_slopes(kernel_params const& how, P* tile, P const* weights, index_t count) {
  with_function<P, applying_slopes<P>>(how, tile, weights, count);
}
template <class P>
void sum_tile(P const* tile, index_t count, P const* v, P* out) {
  weighing<P>::run(of_score<P>{}, tile, count, v, out);
}

template <class P>
void apply_below(P* tile, index_t count, P* greatest, P* change) {
  using shape = tile_shape<P>;
#pragma GCC unroll 8
  for (int l = 0; l < shape::vectors; ++l) {
    P* const column = tile + l * shape::lanes;
    tile_vector<P> const before = load_lanes<P>(greatest + l * shape::lanes);
    tile_vector<P> most = before;
    for (index_t j = 0; j < count; ++j)
      most = larger(load_lanes<P>(column + j * shape::width), most);
    store_lanes<P>(greatest + l * shape::lanes, most);
    store_lanes<P>(change + l * shape::lanes, exp2_minus<P>(most - before));
    for (index_t j = 0; j < count; ++j) {
      P* const at = column + j * shape::width;
      store_lanes<P>(at, exp2_minus<P>(most - load_lanes<P>(at)));
    }
  }
}

template <class P>
void sums_of_tile(P const* tile, index_t count, P const* v, P* out) {
  typename tile_shape<P>::sums sum = {};
  accumulate<tile_shape<P>::rows>(count, v, tile, sum);
  store_sums<P>(sum, out);
}

template <class P>
void sums_of_differences(P const* tile, index_t count, P const* x, P const* y, P* out) {
  using shape = tile_shape<P>;
  typename shape::sums sum = {};
  for (index_t j = 0; j < count; ++j, tile += shape::width, y += shape::rows) {
    tile_vector<P> weight[shape::vectors];
#pragma GCC unroll 8
    for (int v = 0; v < shape::vectors; ++v) weight[v] = load_lanes<P>(tile + v * shape::lanes);
#pragma GCC unroll 8
    for (int k = 0; k < shape::rows; ++k)
#pragma GCC unroll 8
      for (int v = 0; v < shape::vectors; ++v)
        sum[k][v] += (load_lanes<P>(x + k * shape::width + v * shape::lanes) - y[k]) * weight[v];
  }
  store_sums<P>(sum, out);
}

template <class P>
P exp2_of_one(P x) {
  return exp2_of<P>(x - tile_vector<P>{})[0];
}

template <class P>
inline constexpr detail::kernel_kernels<P> kernel_table{{tile_shape<P>::rows, tile_shape<P>::width},
                                                        &make_scores<P>,
                                                        &weigh_scores<P>,
                                                        &weigh_points<P>,
                                                        &apply_function<P>,
                                                        &apply_slopes<P>,
                                                        &apply_below<P>,
                                                        &sum_tile<P>,
                                                        &sums_of_tile<P>,
                                                        &sums_of_differences<P>,
                                                        &exp2_of_one<P>};
