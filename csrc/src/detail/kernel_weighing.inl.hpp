// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/kernel_tiles.inl.hpp.
//
// Values of scores, and their sums with one right-hand side. Each has a form for both sides: of x with
// itself a value serves its row and its column. Sums over y stay in the lanes; those over x are kept
// lane by lane, too, for as many panels as there are, and added up at the end.

/// out[i] = sum over j of f(tile) v[j].
template <class P>
struct weighing {
  template <class Function>
  static void run(Function f, P const* tile, index_t count, P const* v,
                  detail::other_side<P> const* other, P* out) {
    if (other != nullptr)
      sum<true>(f, tile, count, v, other, out);
    else
      sum<false>(f, tile, count, v, other, out);
  }

  template <bool Both, class Function>
  static void sum(Function f, P const* tile, index_t count, P const* v,
                  detail::other_side<P> const* other, P* out) {
    using shape = tile_shape<P>;
    tile_vector<P> sum[shape::vectors] = {}, weight[shape::vectors] = {};
    if constexpr (Both)
#pragma GCC unroll 8
      for (int l = 0; l < shape::vectors; ++l)
        weight[l] = load_lanes<P>(other->v + l * shape::lanes);
    P* columns = Both ? other->columns : nullptr;
    for (index_t j = 0; j < count; ++j, tile += shape::width) {
      tile_vector<P> column{};
      if constexpr (Both) column = load_lanes<P>(columns);
#pragma GCC unroll 8
      for (int l = 0; l < shape::vectors; ++l) {
        tile_vector<P> const value = f.value(load_lanes<P>(tile + l * shape::lanes));
        sum[l] += value * v[j];
        if constexpr (Both) column += value * weight[l];
      }
      if constexpr (Both) {
        store_lanes<P>(columns, column);
        columns += shape::lanes;
      }
    }
#pragma GCC unroll 8
    for (int l = 0; l < shape::vectors; ++l) store_lanes<P>(out + l * shape::lanes, sum[l]);
  }
};

/// The same from a few coordinates, by differences, with nothing stored in between. With many
/// registers two panels of x share what is loaded of y, and two points y take turns; one that fills
/// its panel up has a weight of 0.
template <class P>
struct weighing_points {
  using shape = tile_shape<P>;
  static constexpr bool roomy = SUBSPAN_REGISTERS == 32 && shape::vectors == 2;
  static constexpr int panels = roomy ? 2 : 1, vectors = panels * shape::vectors,
                       together = roomy ? 2 : 1;
  static_assert(shape::rows % together == 0);

  template <class Function>
  static void run(Function f, detail::score_task<P> const* task, P const* v,
                  detail::other_side<P> const* other, P* out) {
    if (other != nullptr)
      sum<true>(f, *task, v, other, out);
    else
      sum<false>(f, *task, v, other, out);
  }

  template <bool Both, class Function>
  static void sum(Function f, detail::score_task<P> const& task, P const* v,
                  detail::other_side<P> const* other, P* out) {
    tile_vector<P> total[vectors] = {};
    P* columns = Both ? other->columns : nullptr;
    for (index_t j = 0; j < task.count; j += together) {
      tile_vector<P> score[together][vectors] = {};
      P const* y = task.y + j / shape::rows * shape::rows * task.depth + j % shape::rows;
      for (index_t c = 0; c < task.depth; ++c, y += shape::rows)
#pragma GCC unroll 8
        for (int l = 0; l < vectors; ++l) {
          tile_vector<P> const x =
              load_lanes<P>(task.x + l / shape::vectors * shape::width * task.depth +
                            c * shape::width + l % shape::vectors * shape::lanes);
#pragma GCC unroll 8
          for (int q = 0; q < together; ++q) {
            tile_vector<P> const difference = y[q] - x;
            score[q][l] += difference * difference;
          }
        }
#pragma GCC unroll 8
      for (int q = 0; q < together; ++q) {
        tile_vector<P> column{};
        if constexpr (Both) column = load_lanes<P>(columns);
#pragma GCC unroll 8
        for (int l = 0; l < vectors; ++l) {
          tile_vector<P> const value = f.value(score[q][l]);
          total[l] += value * v[j + q];
          if constexpr (Both) column += value * load_lanes<P>(other->v + l * shape::lanes);
        }
        if constexpr (Both) {
          store_lanes<P>(columns, column);
          columns += shape::lanes;
        }
      }
    }
#pragma GCC unroll 8
    for (int l = 0; l < vectors; ++l) store_lanes<P>(out + l * shape::lanes, total[l]);
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

/// tile = log2 f(tile) + of_y, and not below `lowest`, for infinities do not subtract.
template <class P>
struct applying_logs {
  template <class Function>
  static void run(Function f, P* tile, index_t count, P const* of_y) {
    using shape = tile_shape<P>;
    constexpr P lowest = float_format<P>::lowest;
    if constexpr (requires { f.log_value(tile_vector<P>{}); })
      for (index_t j = 0; j < count; ++j)
#pragma GCC unroll 8
        for (int l = 0; l < shape::vectors; ++l, tile += shape::lanes) {
          tile_vector<P> const all = f.log_value(load_lanes<P>(tile)) + of_y[j];
          store_lanes<P>(tile, all < lowest ? lowest - tile_vector<P>{} : all);
        }
  }
};

/// tile = f(tile) 2^(of_x + of_y) factor_x factor_y, or f' in place of f, where f alone may be too small
/// for its type.
template <class P>
struct applying_terms {
  template <class Function>
  static void run(Function f, P* tile, index_t count, detail::tile_terms<P> const* terms,
                  bool slopes) {
    using shape = tile_shape<P>;
    if constexpr (requires { f.log_value(tile_vector<P>{}); })
      for (index_t j = 0; j < count; ++j)
#pragma GCC unroll 8
        for (int l = 0; l < shape::vectors; ++l, tile += shape::lanes) {
          tile_vector<P> const score = load_lanes<P>(tile),
                               of_x = load_lanes<P>(terms->of_x + l * shape::lanes),
                               factor = load_lanes<P>(terms->factor_x + l * shape::lanes);
          tile_vector<P> const log = f.log_value(score), of_y = terms->of_y[j] - tile_vector<P>{},
                               first = terms->x_first ? of_x : of_y,
                               second = terms->x_first ? of_y : of_x;
          tile_vector<P> value = exp2_of<P>((log + first) + second);
          if (slopes) value *= f.log_slope(score);
          store_lanes<P>(tile, value * (factor * terms->factor_y[j]));
        }
  }
};

template <class P>
void weigh_scores(kernel_params const& how, P const* tile, index_t count, P const* v,
                  detail::other_side<P> const* other, P* out) {
  with_function<P, weighing<P>>(how, tile, count, v, other, out);
}
template <class P>
void weigh_points(kernel_params const& how, detail::score_task<P> const& task, P const* v,
                  detail::other_side<P> const* other, P* out) {
  with_function<P, weighing_points<P>>(how, &task, v, other, out);
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
void apply_logs(kernel_params const& how, P* tile, index_t count, P const* of_y) {
  with_function<P, applying_logs<P>>(how, tile, count, of_y);
}
template <class P>
void apply_terms(kernel_params const& how, P* tile, index_t count,
                 detail::tile_terms<P> const& terms, bool slopes) {
  with_function<P, applying_terms<P>>(how, tile, count, &terms, slopes);
}
template <class P>
void sum_tile(P const* tile, index_t count, P const* v, P* out) {
  weighing<P>::run(of_score<P>{}, tile, count, v, nullptr, out);
}

/// As with two sides above, of values, where some of the points have met already.
template <class P>
void sum_both(P const* tile, index_t count, P const* v, detail::other_side<P> const& other,
              P* out) {
  using shape = tile_shape<P>;
  P* columns = other.columns;
  tile_vector<P> number[shape::vectors], weight[shape::vectors], sum[shape::vectors] = {};
  for (int l = 0; l < shape::vectors; ++l) {
    for (int i = 0; i < shape::lanes; ++i) number[l][i] = static_cast<P>(l * shape::lanes + i);
    weight[l] = load_lanes<P>(other.v + l * shape::lanes);
  }
  for (index_t j = 0; j < count; ++j, columns += shape::lanes) {
    P const meets = static_cast<P>(j + other.behind);
    tile_vector<P> column = load_lanes<P>(columns);
    for (int l = 0; l < shape::vectors; ++l, tile += shape::lanes) {
      tile_vector<P> const value = load_lanes<P>(tile);
      sum[l] = number[l] <= meets ? sum[l] + value * v[j] : sum[l];
      column = number[l] < meets ? column + value * weight[l] : column;
    }
    store_lanes<P>(columns, column);
  }
  for (int l = 0; l < shape::vectors; ++l) store_lanes<P>(out + l * shape::lanes, sum[l]);
}

/// Vectors of 16 bytes: the sums of each of them, side by side.
template <class P>
struct short_vector {
  static constexpr int lanes = 16 / static_cast<int>(sizeof(P));
  typedef P type __attribute__((vector_size(16)));
  typedef P in_memory __attribute__((vector_size(16), aligned(sizeof(P))));

  [[gnu::always_inline]] static type sums(type const* v) {
    if constexpr (lanes == 4) {
      type const low = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5) +
                       __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7),
                 high = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5) +
                        __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
      return __builtin_shufflevector(low, high, 0, 1, 4, 5) +
             __builtin_shufflevector(low, high, 2, 3, 6, 7);
    } else {
      return __builtin_shufflevector(v[0], v[1], 0, 2) + __builtin_shufflevector(v[0], v[1], 1, 3);
    }
  }
};

/// As many points y at a time as 16 bytes hold: those beyond `count` are made, and left out.
template <class P>
void add_lanes(P const* columns, index_t count, double* out) {
  using short_type = short_vector<P>;
  constexpr int each = short_type::lanes, parts = tile_shape<P>::lanes / each;
  static_assert(detail::k_run % each == 0);
  for (index_t j = 0; j < count; j += each) {
    typename short_type::type sum[each];
#pragma GCC unroll 4
    for (int i = 0; i < each; ++i, columns += tile_shape<P>::lanes) {
      typename short_type::type part[parts];
#pragma GCC unroll 4
      for (int p = 0; p < parts; ++p)
        part[p] = *reinterpret_cast<typename short_type::in_memory const*>(columns + p * each);
#pragma GCC unroll 4
      for (int half = parts / 2; half > 0; half /= 2)
#pragma GCC unroll 4
        for (int p = 0; p < half; ++p) part[p] += part[p + half];
      sum[i] = part[0];
    }
    auto const made = short_type::sums(sum);
    for (int i = 0; i < each && j + i < count; ++i) out[j + i] += static_cast<double>(made[i]);
  }
}

template <class P>
void add_to(P const* made, index_t count, double* sums) {
#pragma omp simd
  for (index_t i = 0; i < count; ++i) sums[i] += static_cast<double>(made[i]);
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
      most = most_of<P>(load_lanes<P>(column + j * shape::width), most);
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
                                                        tile_shape<P>::lanes,
                                                        weighing_points<P>::panels,
                                                        &make_scores<P>,
                                                        &weigh_scores<P>,
                                                        &weigh_points<P>,
                                                        &apply_function<P>,
                                                        &apply_slopes<P>,
                                                        &apply_below<P>,
                                                        &apply_logs<P>,
                                                        &apply_terms<P>,
                                                        &sum_tile<P>,
                                                        &sum_both<P>,
                                                        &sums_of_tile<P>,
                                                        &sums_of_differences<P>,
                                                        &add_lanes<P>,
                                                        &add_to<P>,
                                                        &exp2_of_one<P>};
