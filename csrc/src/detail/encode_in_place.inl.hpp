// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/encode_kernels.hpp, detail/tile_engine.inl.hpp and detail/transpose.inl.hpp. A few rows against columns that are read
// where they lie: packing them would cost more than multiplying. Sums run over the depth as those
// of the tiles do, one fused multiply-add after the other, so they have the same bits.

/// Lines of the depth against `Rows` rows: sums[q][i] += left[s][i] line[s][q] for s < Depth.
template <int Rows, int Depth, class T, class P>
void add_lines(P const* const* line, T const* const* ahead, P const* left, index_t panels, P* sums,
               index_t stride) {
  using shape = tile_shape<P>;
  for (index_t q = 0; q < panels; ++q)
    for (index_t c = q * shape::width; c < (q + 1) * shape::width; c += shape::lanes) {
      typename shape::vector right[Depth];
#pragma GCC unroll 8
      for (int s = 0; s < Depth; ++s) {
        __builtin_prefetch(ahead[s] + c);
        right[s] = *reinterpret_cast<typename shape::in_memory const*>(line[s] + c);
      }
      P* const out = sums + q * stride + c % shape::width;
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) {
        auto& in_memory = *reinterpret_cast<typename shape::in_memory*>(out + i * shape::width);
        typename shape::vector sum = in_memory;
#pragma GCC unroll 8
        for (int s = 0; s < Depth; ++s) sum += left[s * shape::rows + i] * right[s];
        in_memory = sum;
      }
    }
}

/// Columns that lie side by side: line by line of the depth, with the sums in the first cache.
template <int Rows, class T, class P>
void sums_by_lines(detail::vector_set<T> const& w, index_t first, index_t count, P const* left,
                   P* sums, index_t stride) {
  using shape = tile_shape<P>;
  constexpr index_t at_once = 4;
  static_assert(detail::k_columns_in_place % shape::width == 0);
  index_t const panels = detail::divide_up(count, shape::width);
  bool const as_it_is = std::is_same_v<T, P> && count % shape::width == 0;
  alignas(64) P wide[at_once][detail::k_columns_in_place] = {};
  for (index_t r = 0; r < w.depth; r += at_once, left += at_once * shape::rows) {
    index_t const n = std::min(at_once, w.depth - r);
    P const* line[at_once];
    T const* ahead[at_once];
    for (index_t s = 0; s < n; ++s) {
      T const* const in = w.data + first + (r + s) * w.stride;
      ahead[s] = w.data + first + std::min(r + s + at_once, w.depth - 1) * w.stride;
      line[s] = wide[s];
      if constexpr (std::is_same_v<T, P>)
        if (as_it_is) line[s] = in;
      if (!as_it_is) widen<T, P>(in, 1, count, wide[s]);
    }
    if (n == at_once)
      add_lines<Rows, at_once>(line, ahead, left, panels, sums, stride);
    else
      for (index_t s = 0; s < n; ++s)
        add_lines<Rows, 1>(line + s, ahead + s, left + s * shape::rows, panels, sums, stride);
  }
}

/// Columns whose elements lie side by side: turned in registers, a square at a time.
template <int Rows, class T, class P>
void sums_by_columns(detail::vector_set<T> const& w, index_t first, index_t count, P const* left,
                     P* sums, index_t stride) {
  using shape = tile_shape<P>;
  constexpr index_t lanes = shape::lanes, ahead = 512 / static_cast<index_t>(sizeof(T));
  for (index_t j = 0; j < count; j += lanes) {
    T const* column[lanes];
    for (index_t l = 0; l < lanes; ++l) column[l] = w[first + std::min(j + l, count - 1)];
    typename shape::vector sum[Rows] = {};
    auto const add = [&](typename shape::vector right, index_t r) {
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) sum[i] += left[r * shape::rows + i] * right;
    };
    index_t r = 0;
    for (; r + lanes <= w.depth; r += lanes) {
      typename shape::vector square[lanes];
#pragma GCC unroll 16
      for (index_t l = 0; l < lanes; ++l) {
        __builtin_prefetch(column[l] + r + ahead);
        if constexpr (std::is_same_v<T, P>) {
          square[l] = *reinterpret_cast<typename shape::in_memory const*>(column[l] + r);
        } else {
          alignas(64) P wide[lanes];
          widen<T, P>(column[l] + r, 1, lanes, wide);
          __builtin_memcpy(&square[l], wide, sizeof wide);
        }
      }
      transpose<P>(square);
#pragma GCC unroll 16
      for (index_t s = 0; s < lanes; ++s) add(square[s], r + s);
    }
    for (; r < w.depth; ++r) {
      typename shape::vector right{};
      for (index_t l = 0; l < lanes; ++l) right[l] = static_cast<P>(widen_one(column[l][r]));
      add(right, r);
    }
    P* const out = sums + j / shape::width * stride + j % shape::width;
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
      *reinterpret_cast<typename shape::in_memory*>(out + i * shape::width) = sum[i];
  }
}

/// Products of a panel of rows, `rows` of which exist, with columns first.. of w.
template <class T, class P>
void sums_in_place(detail::vector_set<T> const& w, index_t first, index_t count, P const* left,
                   index_t rows, P* sums, index_t stride) {
  using shape = tile_shape<P>;
  for (index_t j = 0; j < count; j += shape::width)
    std::fill_n(sums + j / shape::width * stride, shape::rows * shape::width, P{0});
  auto const run = [&]<int Rows>() {
    if (w.step == 1)
      sums_by_lines<Rows, T, P>(w, first, count, left, sums, stride);
    else
      sums_by_columns<Rows, T, P>(w, first, count, left, sums, stride);
  };
  if (rows == 1)
    run.template operator()<1>();
  else if (rows == 2)
    run.template operator()<2>();
  else if (rows <= 4)
    run.template operator()<4>();
  else
    run.template operator()<shape::rows>();
}
