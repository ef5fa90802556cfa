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

/// The smaller and the greater of both in one instruction; the second if one is NaN.
template <class P>
[[gnu::always_inline]] inline tile_vector<P> least_of(tile_vector<P> a, tile_vector<P> b) {
#if defined(__x86_64__) && SUBSPAN_VECTOR_BYTES == 64
  if constexpr (sizeof(P) == 4)
    return (tile_vector<P>)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
  else
    return (tile_vector<P>)_mm512_maskz_min_pd(0xff, (__m512d)a, (__m512d)b);
#else
  return a < b ? a : b;
#endif
}
template <class P>
[[gnu::always_inline]] inline tile_vector<P> most_of(tile_vector<P> a, tile_vector<P> b) {
#if defined(__x86_64__) && SUBSPAN_VECTOR_BYTES == 64
  if constexpr (sizeof(P) == 4)
    return (tile_vector<P>)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
  else
    return (tile_vector<P>)_mm512_maskz_max_pd(0xff, (__m512d)a, (__m512d)b);
#else
  return a > b ? a : b;
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

/// |x|^2 + |y|^2 - 2 <x, y>. A score that is small beside the norms has lost digits that all three
/// had, and is made of differences.
template <class P>
struct store_expanded {
  static constexpr P cancelled = P{1} / 64, suspect = cancelled * (1 + P{1} / 65536);

  detail::score_task<P> const& task;
  P* tile;

  template <bool>
  [[gnu::always_inline]] void take(typename tile_shape<P>::sums& sum, index_t row0, index_t) {
    using shape = tile_shape<P>;
    bool any = false;
#pragma GCC unroll 8
    for (int v = 0; v < shape::vectors; ++v) {
      tile_vector<P> const x = load_lanes<P>(task.x_norms + v * shape::lanes);
      tile_vector<P> margin = tile_vector<P>{} + std::numeric_limits<P>::max();
#pragma GCC unroll 8
      for (int i = 0; i < shape::rows; ++i) {
        P const y = task.y_norms[row0 + i];
        tile_vector<P> const score = (x + y) - 2 * sum[i][v];
        margin = least_of<P>(score - suspect * y, margin);
        store_lanes<P>(tile + (row0 + i) * shape::width + v * shape::lanes, score);
      }
      any |= any_negative<P>(margin - suspect * x);
    }
    if (any) [[unlikely]]
      by_differences(row0);
  }

  /// Pair by pair: what becomes of one depends on no other.
  [[gnu::noinline]] void by_differences(index_t row0) {
    using shape = tile_shape<P>;
    typename shape::sums sum = {};
    accumulate_differences<shape::rows>(task.depth, task.y + row0 * task.depth, task.x, sum);
#pragma GCC unroll 8
    for (int v = 0; v < shape::vectors; ++v) {
      tile_vector<P> const x = load_lanes<P>(task.x_norms + v * shape::lanes);
#pragma GCC unroll 8
      for (int i = 0; i < shape::rows; ++i) {
        P* const at = tile + (row0 + i) * shape::width + v * shape::lanes;
        tile_vector<P> const score = load_lanes<P>(at),
                             limit = cancelled * (x + task.y_norms[row0 + i]);
        store_lanes<P>(at, score < limit ? sum[i][v] : score);
      }
    }
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
