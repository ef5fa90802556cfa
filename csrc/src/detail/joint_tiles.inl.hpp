// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/kernel_weighing.inl.hpp and detail/joint_tiles.hpp.

/// score^power for powers from -1 to 2.
template <class P>
struct of_power {
  using V = tile_vector<P>;
  P power;

  [[gnu::always_inline]] V value(V s) const { return raised(s, power); }
  [[gnu::always_inline]] V slope(V s) const { return raised(s, power - P{1}); }
  [[gnu::always_inline]] static V raised(V s, P power) {
    using limits = std::numeric_limits<P>;
    // The logarithm of s or of 1 / s, whichever is not below 0: near 1 both are exact enough, as what
    // counts is the absolute error.
    V const up = s > P{1} ? s : P{1} / s, log = log2_one_plus<P>(up - P{1});
    V const made = exp2_of<P>((s > P{1} ? log : -log) * power);
    V const kept = s < limits::min() ? V{} : s > limits::max() ? s : made;
    return s == s ? kept : s;
  }
};

template <class P>
void raise_tile(P* tile, index_t count, P power) {
  applying<P>::run(of_power<P>{power}, tile, count);
}

template <class P>
void raise_slopes(P* tile, P const* weights, index_t count, P power) {
  applying_slopes<P>::run(of_power<P>{power}, tile, weights, count);
}

template <class P>
void weigh_both(P* tile, index_t count, P const* of_rows, P const* of_columns) {
  using shape = tile_shape<P>;
  for (index_t j = 0; j < count; ++j, tile += shape::width, of_columns += 2)
#pragma GCC unroll 8
    for (int l = 0; l < shape::vectors; ++l) {
      P* const at = tile + l * shape::lanes;
      tile_vector<P> const g = load_lanes<P>(of_rows + l * shape::lanes) + of_columns[0],
                           h = load_lanes<P>(of_rows + shape::width + l * shape::lanes) +
                               of_columns[1];
      store_lanes<P>(at, load_lanes<P>(at) * g + h);
    }
}

template <class P>
void sum_one(P const* tile, index_t count, P* out) {
  using shape = tile_shape<P>;
  tile_vector<P> sum[shape::vectors] = {};
  for (index_t j = 0; j < count; ++j, tile += shape::width)
#pragma GCC unroll 8
    for (int l = 0; l < shape::vectors; ++l) sum[l] += load_lanes<P>(tile + l * shape::lanes);
#pragma GCC unroll 8
  for (int l = 0; l < shape::vectors; ++l) store_lanes<P>(out + l * shape::lanes, sum[l]);
}

template <class P>
void sum_products(P const* tile, P const* other, index_t count, P* out) {
  using shape = tile_shape<P>;
  tile_vector<P> sum[shape::vectors] = {}, both[shape::vectors] = {};
  for (index_t j = 0; j < count; ++j, tile += shape::width, other += shape::width)
#pragma GCC unroll 8
    for (int l = 0; l < shape::vectors; ++l) {
      tile_vector<P> const value = load_lanes<P>(other + l * shape::lanes);
      both[l] += load_lanes<P>(tile + l * shape::lanes) * value;
      sum[l] += value;
    }
#pragma GCC unroll 8
  for (int l = 0; l < shape::vectors; ++l) {
    store_lanes<P>(out + l * shape::lanes, both[l]);
    store_lanes<P>(out + shape::width + l * shape::lanes, sum[l]);
  }
}

template <class P>
inline constexpr detail::joint_kernels<P> joint_table{
    {.size = {tile_shape<P>::rows, tile_shape<P>::width},
     .lanes = tile_shape<P>::lanes,
     .point_panels = 1,
     .scores = &make_scores<P>,
     .weigh = nullptr,
     .weigh_points = nullptr,
     .apply = &apply_function<P>,
     .apply_slopes = &apply_slopes<P>,
     .apply_below = nullptr,
     .apply_logs = nullptr,
     .apply_terms = nullptr,
     .sum = nullptr,
     .sum_both = nullptr,
     .sums = nullptr,
     .sums_of_differences = &sums_of_differences<P>,
     .add_lanes = nullptr,
     .add = &add_to<P>,
     .exp2 = nullptr},
    &raise_tile<P>,
    &raise_slopes<P>,
    &sum_one<P>,
    &sum_products<P>,
    &weigh_both<P>};
