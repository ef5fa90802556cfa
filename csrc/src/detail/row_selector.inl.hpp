// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/row_selector.hpp, and <immintrin.h> on x86-64.

template <class S>
struct lanes_of {
  typedef S vector __attribute__((vector_size(SUBSPAN_VECTOR_BYTES)));
  typedef typename detail::score_order<S>::key_type bits
      __attribute__((vector_size(SUBSPAN_VECTOR_BYTES)));
  static constexpr int count = SUBSPAN_VECTOR_BYTES / static_cast<int>(sizeof(S));
};
template <class S>
using lanes = typename lanes_of<S>::vector;

/// Any address; `reversal` is 0, or score_order::reversal to select the smallest.
template <class S>
inline lanes<S> load_scores(S const* from, typename detail::score_order<S>::key_type reversal) {
  typename lanes_of<S>::bits bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return (lanes<S>)(bits ^ reversal);
}

/// Bit i: lane i of v is at least lane i of `least`. NaN is not, nor is anything at least NaN.
template <class S>
inline unsigned at_least(lanes<S> v, lanes<S> least) {
#if defined(__x86_64__) && SUBSPAN_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<S, float>)
    return _mm512_cmp_ps_mask((__m512)v, (__m512)least, _CMP_GE_OQ);
  else if constexpr (std::is_same_v<S, double>)
    return _mm512_cmp_pd_mask((__m512d)v, (__m512d)least, _CMP_GE_OQ);
  else if constexpr (sizeof(S) == 4)
    return _mm512_cmpge_epi32_mask((__m512i)v, (__m512i)least);
  else
    return _mm512_cmpge_epi64_mask((__m512i)v, (__m512i)least);
#else
  auto const passes = v >= least;
#if defined(__x86_64__) && SUBSPAN_VECTOR_BYTES == 32
  if constexpr (sizeof(S) == 4)
    return static_cast<unsigned>(_mm256_movemask_ps((__m256)passes));
  else
    return static_cast<unsigned>(_mm256_movemask_pd((__m256d)passes));
#elif defined(__x86_64__)
  if constexpr (sizeof(S) == 4)
    return static_cast<unsigned>(_mm_movemask_ps((__m128)passes));
  else
    return static_cast<unsigned>(_mm_movemask_pd((__m128d)passes));
#else
  unsigned mask = 0;
  for (int i = 0; i < lanes_of<S>::count; ++i) mask |= passes[i] != 0 ? 1u << i : 0u;
  return mask;
#endif
#endif
}
template <class S>
inline unsigned at_least(lanes<S> v, S least) {
  return at_least<S>(v, least - lanes<S>{});
}

#if defined(__x86_64__) && SUBSPAN_VECTOR_BYTES == 64
typedef std::uint32_t narrow_keys __attribute__((vector_size(64)));
typedef std::uint32_t half_keys __attribute__((vector_size(32)));
typedef std::uint64_t narrow_entries __attribute__((vector_size(64)));

/// The entries of `mask` to the front. In registers: compressing stores are slow on Zen 4.
inline int store_masked(narrow_entries entries, __mmask8 mask, std::uint64_t* out) {
  auto const packed = (narrow_entries)_mm512_maskz_compress_epi64(mask, (__m512i)entries);
  __builtin_memcpy(out, &packed, sizeof packed);
  return __builtin_popcount(mask);
}

template <class S>
inline index_t append_narrow(lanes<S> v, std::uint32_t first, unsigned mask, std::uint64_t* out) {
  constexpr std::uint32_t sign = detail::score_order<S>::sign;
  auto keys = (narrow_keys)v;
  if constexpr (std::is_floating_point_v<S>) {
    narrow_keys const magnitude = keys & ~sign;
    keys = keys >= sign ? sign - magnitude : sign + magnitude;
  } else {
    keys ^= sign;
  }
  narrow_keys const low =
      ~first - narrow_keys{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  half_keys k[2], l[2];
  __builtin_memcpy(k, &keys, sizeof k);
  __builtin_memcpy(l, &low, sizeof l);
  int taken = 0;
  for (int half = 0; half < 2; ++half, mask >>= 8)
    taken += store_masked(__builtin_convertvector(k[half], narrow_entries) << 32 |
                              __builtin_convertvector(l[half], narrow_entries),
                          static_cast<__mmask8>(mask), out + taken);
  return taken;
}
#endif

/// The lanes of `mask` go to the end of the buffer.
template <class S>
inline void append(detail::row_selector<S>& row, lanes<S> v, std::uint32_t first, unsigned mask) {
  using order = detail::score_order<S>;
  using key_type = typename order::key_type;
  auto* const out = row.end();
#if defined(__x86_64__) && SUBSPAN_VECTOR_BYTES == 64
  if constexpr (sizeof(S) == 4) return row.appended(append_narrow<S>(v, first, mask, out));
#endif
  S scores[lanes_of<S>::count];
  __builtin_memcpy(scores, &v, sizeof scores);
  index_t taken = 0;
  for (; mask != 0; mask &= mask - 1) {
    int const lane = __builtin_ctz(mask);
    out[taken++] =
        detail::make_entry<key_type>(order::key(scores[lane]), first + static_cast<unsigned>(lane));
  }
  row.appended(taken);
}

/// A vector of scores with the indices first, first + 1, .... Lanes that are not in `valid` do not count.
template <class S>
inline void push(detail::row_selector<S>& row, lanes<S> v, std::uint32_t first,
                 unsigned valid = ~0u) {
  if (unsigned const mask = at_least<S>(v, row.least()) & valid; mask != 0) [[unlikely]]
    append<S>(row, v, first, mask);
}

// ---- a few elements, all against all ---------------------------------------------------------
//
// Up to a hundred elements are ranked faster by counting for each how many are greater, a vector of
// elements at a time, than by any sort: there is no branch that could be mispredicted.

inline constexpr index_t k_few = 128;

/// Lane by lane, how many of n elements are greater.
template <class E>
inline auto count_greater(E const* elements, index_t n, lanes<E> mine) {
  auto greater = mine < mine;  // zeros
  for (index_t j = 0; j < n; ++j) greater -= elements[j] > mine;
  return greater;
}

/// The k greatest of n entries in descending order, 1 <= k <= n. Behind `entries` there is room for a
/// vector.
inline void rank_entries(std::uint64_t* entries, index_t n, index_t k, std::uint64_t* out) {
  constexpr index_t width = lanes_of<std::uint64_t>::count;
  for (index_t i = 0; i < n; i += width) {
    lanes<std::uint64_t> mine;
    __builtin_memcpy(&mine, entries + i, sizeof mine);
    auto const greater = count_greater(entries, n, mine);
    std::int64_t rank[width];
    __builtin_memcpy(rank, &greater, sizeof rank);
    for (index_t lane = 0; lane < std::min(width, n - i); ++lane)
      if (rank[lane] < k) out[rank[lane]] = entries[i + lane];
  }
}

/// The k-th greatest of n scores without NaN; n is a multiple of the lanes.
template <class S>
S kth_of_few(S const* scores, index_t n, index_t k) {
  constexpr index_t width = lanes_of<S>::count;
  auto const wanted = static_cast<typename detail::score_order<S>::signed_bits>(k);
  S candidates[width];
  std::fill_n(candidates, width, detail::score_order<S>::highest);
  for (index_t i = 0; i < n; i += width) {
    auto const mine = load_scores<S>(scores + i, 0);
    auto const greater = count_greater<S>(scores, n, mine);
    lanes<S> least = load_scores<S>(candidates, 0);
    least = (greater < wanted && mine < least) ? mine : least;
    __builtin_memcpy(candidates, &least, sizeof least);
  }
  return *std::min_element(candidates, candidates + width);
}

// ---- rows in memory --------------------------------------------------------------------------
//
// A row that can be read twice needs no luck with its order. Its *summary* holds, lane by lane, the
// maxima of k_stack vectors each. Split into 2 k or more groups, it bounds the k-th best score from
// below before anything is appended: so many groups reach the bound, and each has a score that does.
// Then only the few stacks whose summary reaches the bound are looked at again.

inline constexpr int k_stack = 4;  // vectors

template <class S>
constexpr index_t stack_size = k_stack * lanes_of<S>::count;

/// With 2 k groups about 1.4 k scores of a random order reach the bound; an order that puts the best
/// into few groups only weakens it. A multiple of the lanes.
template <class S>
constexpr index_t group_count(index_t k) {
  constexpr index_t width = lanes_of<S>::count;
  return (std::max<index_t>(2 * k, 64) + width - 1) / width * width;
}

/// Writes the summary of so many stacks; NaN does not count.
template <class S>
void summarize(S const* scores, index_t stacks, typename detail::score_order<S>::key_type reversal,
               S* summary) {
  constexpr int width = lanes_of<S>::count;
  for (index_t c = 0; c < stacks; ++c, scores += stack_size<S>, summary += width) {
    lanes<S> best = detail::score_order<S>::lowest - lanes<S>{};
#pragma GCC unroll 4
    for (int i = 0; i < k_stack; ++i) {
      lanes<S> const v = load_scores<S>(scores + i * width, reversal);
      best = v > best ? v : best;
    }
    __builtin_memcpy(summary, &best, sizeof best);
  }
}

/// Raises the threshold by what the summary tells, and says whether any stack reaches it. Scratch:
/// group_count(k).
template <class S>
bool raise_by(detail::row_selector<S>& row, S const* summary, index_t stacks, S* maxima) {
  constexpr int width = lanes_of<S>::count;
  index_t const k = row.k(), all = stacks * width;
  index_t const groups = std::min(group_count<S>(k), all);
  S const least = row.least();
  if (groups < k) return true;
  std::fill_n(maxima, groups, detail::score_order<S>::lowest);
  for (index_t from = 0; from < all; from += groups) {
    index_t const count = std::min(groups, all - from);
#pragma omp simd
    for (index_t g = 0; g < count; ++g) {
      S const v = summary[from + g];
      maxima[g] = v > maxima[g] ? v : maxima[g];
    }
  }
  index_t reach = 0;
#pragma omp simd reduction(+ : reach)
  for (index_t g = 0; g < groups; ++g) reach += maxima[g] >= least ? 1 : 0;
  if (reach >= k) {
    if (groups <= k_few) {
      row.raise(kth_of_few<S>(maxima, groups, k));
    } else {
      std::nth_element(maxima, maxima + (k - 1), maxima + groups, std::greater<>());
      row.raise(maxima[k - 1]);
    }
  }
  return reach > 0;
}

/// The stacks whose summary reaches the threshold, without a branch on the data; returns how many.
template <class S>
index_t list_stacks(S const* summary, index_t stacks, S least, std::uint32_t* list) {
  index_t found = 0;
  for (index_t c = 0; c < stacks; ++c) {
    list[found] = static_cast<std::uint32_t>(c);
    found += at_least<S>(load_scores<S>(summary + c * lanes_of<S>::count, 0), least) != 0 ? 1 : 0;
  }
  return found;
}

template <class S>
void push_stack(detail::row_selector<S>& row, S const* scores, std::uint32_t first,
                typename detail::score_order<S>::key_type reversal) {
  constexpr int width = lanes_of<S>::count;
  for (int i = 0; i < k_stack; ++i) {
    lanes<S> const v = load_scores<S>(scores + i * width, reversal);
    append<S>(row, v, first + static_cast<std::uint32_t>(i * width), at_least<S>(v, row.least()));
  }
}
