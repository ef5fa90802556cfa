// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// widen.inl.hpp, narrow.inl.hpp, product_tile.inl.hpp, transpose.inl.hpp and, on x86-64, <immintrin.h>.

template <class P>
struct vector_of {
  // Not even aligned to an element: arrays of numpy need not be.
  typedef P type __attribute__((vector_size(SUBSPAN_VECTOR_BYTES), aligned(1), may_alias));
  static constexpr index_t lanes = SUBSPAN_VECTOR_BYTES / sizeof(P);
};
template <class P>
using vector = typename vector_of<P>::type;

typedef std::uint16_t half_words
    __attribute__((vector_size(SUBSPAN_VECTOR_BYTES / 2), aligned(1), may_alias));
typedef std::uint32_t words __attribute__((vector_size(SUBSPAN_VECTOR_BYTES)));

inline vector<float> load(float const* p) { return *reinterpret_cast<vector<float> const*>(p); }
inline vector<double> load(double const* p) { return *reinterpret_cast<vector<double> const*>(p); }
inline vector<float> load(bfloat16 const* p) {
  auto const wide = __builtin_convertvector(*reinterpret_cast<half_words const*>(p), words);
  return (vector<float>)(wide << 16);
}
inline vector<float> load(half const* p) {
#if SUBSPAN_VECTOR_BYTES == 64
  // Masked, because GCC takes the plain form for a use of something uninitialised.
  auto const packed = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(p));
  return (vector<float>)_mm512_maskz_cvtph_ps(0xffff, packed);
#elif SUBSPAN_VECTOR_BYTES == 32
  return (vector<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<__m128i const*>(p)));
#else
  // As widen_one.
  auto const wide = __builtin_convertvector(*reinterpret_cast<half_words const*>(p), words);
  auto const scaled = (vector<float>)((wide & 0x7fffu) << 13) * 5.192296858534828e33f;
  auto const nonfinite = (words)((wide & 0x7c00u) == 0x7c00u) & 0x7f800000u;
  return (vector<float>)((words)scaled | nonfinite | (wide & 0x8000u) << 16);
#endif
}

template <class P>
inline P fold(vector<P> v) {
  constexpr index_t lanes = vector_of<P>::lanes;
  alignas(64) P lane[lanes];
  *reinterpret_cast<vector<P>*>(lane) = v;
#pragma GCC unroll 4
  for (index_t half = lanes / 2; half > 0; half /= 2)
#pragma omp simd
    for (index_t i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

/// `Count` rows at once: their weighted sum, added to `from`, and their products with `with`. What
/// is summed stays in the first cache; each element is a chain of (fused) products in the order of
/// the rows, so that the grouping does not show.
template <class S, class P, int Count, bool Sums, bool Dots>
inline void gather_some(S const* const* row, S const* const* ahead, P const* weight, P const* with,
                        P const* from, P* to, index_t n, P* dots) {
  constexpr index_t lanes = vector_of<P>::lanes;
  // Vectors that are one cache line of a row.
  constexpr index_t line = std::max<index_t>(1, 64 / (lanes * sizeof(S)));
  vector<P> dot[Count] = {};
  auto const step = [&](auto const* const* rows, P const* factors, P const* before, P* after,
                        index_t c) {
    vector<P> sum{}, factor{};
    if constexpr (Sums) sum = load(before + c);
    if constexpr (Dots) factor = load(factors + c);
#pragma GCC unroll 8
    for (int r = 0; r < Count; ++r) {
      vector<P> const v = load(rows[r] + c);
      if constexpr (Sums) sum += weight[r] * v;
      if constexpr (Dots) dot[r] += factor * v;
    }
    if constexpr (Sums) *reinterpret_cast<vector<P>*>(after + c) = sum;
  };
  index_t c = 0;
  for (; c + line * lanes <= n; c += line * lanes) {
#pragma GCC unroll 8
    for (int r = 0; r < Count; ++r) __builtin_prefetch(ahead[r] + c);
#pragma GCC unroll 8
    for (index_t v = 0; v < line; ++v) step(row, with, from, to, c + v * lanes);
  }
  for (; c + lanes <= n; c += lanes) step(row, with, from, to, c);
  if (c < n) {
    // What is left, with zeros to a whole vector: the same arithmetic, so the same bits.
    P padded[Count][lanes] = {}, factors[lanes] = {}, sums[lanes] = {};
    P const* rows[Count];
    for (int r = 0; r < Count; ++r) {
      rows[r] = padded[r];
      widen<S, P>(row[r] + c, 1, n - c, padded[r]);
    }
    if constexpr (Dots) std::copy(with + c, with + n, factors);
    if constexpr (Sums) std::copy(from + c, from + n, sums);
    step(rows, factors, sums, sums, 0);
    if constexpr (Sums) std::copy(sums, sums + (n - c), to + c);
  }
  if constexpr (Dots)
    for (int r = 0; r < Count; ++r) dots[r] += fold<P>(dot[r]);
}

constexpr int k_rows_at_once = 4;
constexpr index_t k_rows_ahead = 8;

template <class S, class P, bool Sums, bool Dots>
void gather(detail::row_list<S, P> const& list, P const* with, P const* from, P* to, index_t n,
            P* dots) {
  for (index_t p = 0; p < list.count;) {
    auto const count = static_cast<int>(std::min<index_t>(k_rows_at_once, list.count - p));
    S const *row[k_rows_at_once], *ahead[k_rows_at_once];
    for (int r = 0; r < count; ++r) {
      row[r] = list.rows + list.index[p + r] * list.stride;
      // What comes soon is fetched meanwhile; behind the end of this list there is another one.
      index_t const next = std::min(p + k_rows_ahead + r, list.count + list.beyond - 1);
      ahead[r] = list.rows + list.index[next] * list.stride;
    }
    P const* const weight = list.weight + p;
    P* const products = Dots ? dots + p : nullptr;
    switch (count) {
      case 1:
        gather_some<S, P, 1, Sums, Dots>(row, ahead, weight, with, from, to, n, products);
        break;
      case 2:
        gather_some<S, P, 2, Sums, Dots>(row, ahead, weight, with, from, to, n, products);
        break;
      case 3:
        gather_some<S, P, 3, Sums, Dots>(row, ahead, weight, with, from, to, n, products);
        break;
      default:
        gather_some<S, P, 4, Sums, Dots>(row, ahead, weight, with, from, to, n, products);
    }
    from = to;
    p += count;
  }
}

/// `to` or `dots` may be null: then they are not wanted.
template <class S, class P>
void gather_any(detail::row_list<S, P> const& list, P const* with, P const* from, P* to, index_t n,
                P* dots) {
  if (dots == nullptr)
    gather<S, P, true, false>(list, with, from, to, n, dots);
  else if (to == nullptr)
    gather<S, P, false, true>(list, with, from, to, n, dots);
  else
    gather<S, P, true, true>(list, with, from, to, n, dots);
}

/// Rows [rows, n] of any strides to C order in P, less `shift` where there is one.
template <class T, class P>
void pack_rows(T const* in, index_t row_stride, index_t stride, index_t rows, index_t n,
               P const* shift, P* out) {
  constexpr index_t tile = 16;  // rows whose elements may share a cache line
  for (index_t first = 0; first < rows; first += tile, in += tile * row_stride, out += tile * n) {
    index_t const count = std::min(tile, rows - first);
    if (stride == 1) {
      for (index_t r = 0; r < count; ++r) widen<T, P>(in + r * row_stride, 1, n, out + r * n);
    } else {
      for (index_t c = 0; c < n; ++c)
        for (index_t r = 0; r < count; ++r)
          out[r * n + c] = static_cast<P>(widen_one(in[r * row_stride + c * stride]));
    }
    if (shift != nullptr)
      for (index_t r = 0; r < count; ++r)
#pragma omp simd
        for (index_t c = 0; c < n; ++c) out[r * n + c] -= shift[c];
  }
}

/// Rounds a row to storage; past the caches where `streamed`.
template <class P, class T>
void store_row(P const* in, index_t n, T* out, bool streamed) {
  index_t c = 0;
#if defined(__x86_64__)
  constexpr index_t block = 64 / sizeof(T);
  auto const address = reinterpret_cast<std::uintptr_t>(out);
  if (streamed && address % sizeof(T) == 0) {
    for (; c < n && reinterpret_cast<std::uintptr_t>(out + c) % 16 != 0; ++c)
      out[c] = narrow_one<T>(in[c]);
    for (; c + block <= n; c += block) {
      alignas(64) T line[block];
#pragma omp simd
      for (index_t i = 0; i < block; ++i) line[i] = narrow_one<T>(in[c + i]);
      auto const* const from = reinterpret_cast<__m128i const*>(line);
      auto* const to = reinterpret_cast<__m128i*>(out + c);
      for (int i = 0; i < 4; ++i) _mm_stream_si128(to + i, _mm_load_si128(from + i));
    }
  }
#endif
  (void)streamed;
#pragma omp simd
  for (index_t i = c; i < n; ++i) out[i] = narrow_one<T>(in[i]);
}

/// Rounds `count` rows of a tile to columns of `out`. Rows may be read up to a whole vector.
template <class P, class T>
void store_columns(P const* tile, index_t tile_stride, index_t count, index_t n, T* out,
                   index_t stride, bool streamed) {
  constexpr index_t lanes = vector_of<P>::lanes;
  static_assert(detail::k_columns_at_once % lanes == 0);
  alignas(64) P lines[lanes][detail::k_columns_at_once];
  for (index_t c = 0; c < n; c += lanes) {
    for (index_t j = 0; j < count; j += lanes) {
      typename tile_shape<P>::vector square[lanes];
#pragma GCC unroll 16
      for (index_t l = 0; l < lanes; ++l)
        square[l] = load(tile + std::min(j + l, count - 1) * tile_stride + c);
      transpose<P>(square);
#pragma GCC unroll 16
      for (index_t l = 0; l < lanes; ++l) *reinterpret_cast<vector<P>*>(lines[l] + j) = square[l];
    }
    for (index_t l = 0; l < std::min(lanes, n - c); ++l, out += stride)
      store_row<P, T>(lines[l], count, out, streamed);
  }
}

/// Of dense weights, in panels, with packed rows.
template <class P>
void multiply_dense(index_t depth, P const* a, P const* b, P* sums, index_t stride, index_t count,
                    index_t columns) {
  using shape = tile_shape<P>;
  typename shape::sums sum = {};
  accumulate<shape::rows>(depth, a, b, sum);
  alignas(64) P spilled[shape::rows * shape::width];
  __builtin_memcpy(spilled, sum, sizeof spilled);
  for (index_t i = 0; i < count; ++i)
#pragma omp simd
    for (index_t c = 0; c < columns; ++c) sums[i * stride + c] += spilled[i * shape::width + c];
}

template <class T>
inline constexpr detail::list_sums_kernels<T> list_sums_table{
    &gather_any<T, detail::wide<T>>,    &gather_any<detail::wide<T>, detail::wide<T>>,
    &widen<T, detail::wide<T>>,         &pack_rows<T, detail::wide<T>>,
    &store_row<detail::wide<T>, T>,     &store_columns<detail::wide<T>, T>,
    &multiply_dense<detail::wide<T>>,   tile_shape<detail::wide<T>>::rows,
    tile_shape<detail::wide<T>>::width,
};
