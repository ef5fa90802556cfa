// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/knn_in_place.hpp, detail/widen.inl.hpp, detail/row_selector.inl.hpp and
// detail/knn_kernels.inl.hpp.

/// The lower or upper halves of a and b, lane by lane in turn.
template <bool Upper, class V, std::size_t... I>
[[gnu::always_inline]] inline V interleave_halves(V a, V b, std::index_sequence<I...>) {
  constexpr std::size_t lanes = sizeof...(I), from = Upper ? lanes / 2 : 0;
  return __builtin_shufflevector(a, b, (from + I / 2 + I % 2 * lanes)...);
}

/// Lane i is the sum of the lanes of v[i], of as many vectors as a vector has lanes. v is used up.
template <class P>
[[gnu::always_inline]] inline lanes<P> sums_of_lanes(lanes<P>* v) {
  constexpr auto all = std::make_index_sequence<static_cast<std::size_t>(lanes_of<P>::count)>();
#pragma GCC unroll 4
  for (int n = lanes_of<P>::count / 2; n > 0; n /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i)
      v[i] = interleave_halves<false>(v[i], v[i + n], all) +
             interleave_halves<true>(v[i], v[i + n], all);
  return v[0];
}

/// Q queries against as many rows as a vector has lanes, one row after the other: that is how memory
/// is read fastest. (By a list of pointers to the rows a single query takes half as long again.)
template <class P, int Q, bool Products>
void meet_rows(P const* row, index_t step, P const* queries, index_t padded, lanes<P>* scores) {
  constexpr int width = lanes_of<P>::count;
  lanes<P> sums[Q][width];
  for (int i = 0; i < width; ++i, row += step) {
    lanes<P> sum[Q] = {};
    for (index_t r = 0; r < padded; r += width) {
      auto const y = load_lanes<P>(row + r);
#pragma GCC unroll 4
      for (int k = 0; k < Q; ++k) {
        auto const x = load_lanes<P>(queries + k * padded + r);
        if constexpr (Products) {
          sum[k] += x * y;
        } else {
          auto const difference = x - y;
          sum[k] += difference * difference;
        }
      }
    }
#pragma GCC unroll 4
    for (int k = 0; k < Q; ++k) sums[k][i] = sum[k];
  }
  for (int k = 0; k < Q; ++k)
    scores[k] = Products ? sums_of_lanes<P>(sums[k]) : -sums_of_lanes<P>(sums[k]);
}

template <class T, class P>
void scan_in_place(detail::in_place_scan<T, P> const& scan, index_t begin, index_t end, P* scratch,
                   detail::row_selector<P>* best, P& reach) {
  constexpr index_t width = lanes_of<P>::count, most = 4;
  static_assert(detail::k_exact_step % width == 0);
  using meeting = void (*)(P const*, index_t, P const*, index_t, lanes<P>*);
  constexpr meeting by_differences[] = {&meet_rows<P, 1, false>, &meet_rows<P, 2, false>,
                                        &meet_rows<P, 3, false>, &meet_rows<P, 4, false>};
  constexpr meeting by_products[] = {&meet_rows<P, 1, true>, &meet_rows<P, 2, true>,
                                     &meet_rows<P, 3, true>, &meet_rows<P, 4, true>};
  index_t const padded = scan.padded, depth = scan.rows.depth;
  bool const in_place = std::is_same_v<T, P> && depth == padded && scan.rows.ids == nullptr;
  std::fill_n(scratch, width * padded, P{0});
  lanes<P> greatest = {};
  for (index_t c = begin; c < end; c += width) {
    index_t const count = std::min(width, end - c);
    bool const here = in_place && count == width;
    P const* rows = scratch;
    if constexpr (std::is_same_v<T, P>)
      if (here) rows = scan.rows[c];
    index_t const step = here ? scan.rows.step : padded;
    for (index_t i = 0; i < count && !here; ++i)
      widen<T, P>(scan.rows[c + i], 1, depth, scratch + i * padded);
    unsigned const valid = (1u << count) - 1;
    for (index_t k = 0; k < scan.count; k += most) {
      index_t const n = std::min(most, scan.count - k);
      lanes<P> scores[most];
      (scan.products ? by_products : by_differences)[n - 1](rows, step, scan.queries + k * padded,
                                                            padded, scores);
      for (index_t j = 0; j < n; ++j)
        push<P>(best[k + j], scores[j], static_cast<std::uint32_t>(c), valid);
    }
    if (scan.products) {  // |y|^2 is what is between y and zero
      lanes<P> negative;
      by_differences[0](rows, step, scan.queries + scan.count * padded, padded, &negative);
      greatest = -negative > greatest ? -negative : greatest;
    }
  }
  for (index_t i = 0; i < width; ++i) reach = std::max(reach, P(greatest[i]));
}
