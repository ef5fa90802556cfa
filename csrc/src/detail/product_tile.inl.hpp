// Compiled once per level, inside the namespace of the level; no include guard on purpose.

/// Register blocking. The accumulators, one row of b and a broadcast must fit the register file,
/// and there must be enough independent sums to cover the latency of a fused multiply-add.
template <class P>
struct tile_shape {
  static constexpr int lanes = SUBSPAN_VECTOR_BYTES / static_cast<int>(sizeof(P));
#if SUBSPAN_REGISTERS == 32 && SUBSPAN_VECTOR_BYTES == 64
  static constexpr int vectors = 2, rows = 8;
#elif SUBSPAN_REGISTERS == 32
  static constexpr int vectors = 4, rows = 4;
#elif SUBSPAN_VECTOR_BYTES == 32
  static constexpr int vectors = 3, rows = 4;
#else
  static constexpr int vectors = 2, rows = 4;
#endif
  static constexpr int width = vectors * lanes;
  static_assert(width % rows == 0);

  typedef P vector __attribute__((vector_size(SUBSPAN_VECTOR_BYTES)));
  typedef P in_memory __attribute__((vector_size(SUBSPAN_VECTOR_BYTES), aligned(sizeof(P))));
  using sums = vector[rows][vectors];  // of one tile, in registers
};

/// sum[i][j] += sum over r < depth of a[r * Step + i] * b[r * width + j], fused where the CPU can, in
/// the order of r: how the depth is cut into calls does not change a bit.
template <int Step, class P>
[[gnu::always_inline]] inline void accumulate(index_t depth, P const* a, P const* b,
                                              typename tile_shape<P>::sums& sum) {
  using shape = tile_shape<P>;
  for (index_t r = 0; r < depth; ++r, a += Step, b += shape::width) {
    typename shape::vector right[shape::vectors];
#pragma GCC unroll 8
    for (int v = 0; v < shape::vectors; ++v)
      right[v] = *reinterpret_cast<typename shape::in_memory const*>(b + v * shape::lanes);
#pragma GCC unroll 8
    for (int i = 0; i < shape::rows; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < shape::vectors; ++v) sum[i][v] += a[i] * right[v];
  }
}

template <class P>
void multiply(index_t depth, P const* a, P const* b, double* c, index_t ldc) {
  using shape = tile_shape<P>;
  typename shape::sums sum = {};
  accumulate<shape::width>(depth, a, b, sum);
  // By way of memory: element by element GCC would take the registers apart one lane at a time.
  alignas(64) P spilled[shape::rows * shape::width];
  __builtin_memcpy(spilled, sum, sizeof spilled);
  for (int i = 0; i < shape::rows; ++i) {
    double* const row = c + i * ldc;
#pragma omp simd
    for (int j = 0; j < shape::width; ++j)
      row[j] += static_cast<double>(spilled[i * shape::width + j]);
  }
}

template <class P>
inline void pack_columns(detail::row_quad<P> const& rows, int count, index_t first, index_t columns,
                         P const* shift, P* out, P* sum, P* square) {
  constexpr int width = tile_shape<P>::width;
  if (count == 4) {
    P const *a = rows.row[0], *b = rows.row[1], *c = rows.row[2], *d = rows.row[3];
    P const wa = rows.scale[0], wb = rows.scale[1], wc = rows.scale[2], wd = rows.scale[3];
#pragma omp simd
    for (index_t j = 0; j < columns; ++j) {
      P const s = shift[first + j];
      P const va = (a[first + j] - s) * wa, vb = (b[first + j] - s) * wb;
      P const vc = (c[first + j] - s) * wc, vd = (d[first + j] - s) * wd;
      out[j] = va;
      out[width + j] = vb;
      out[2 * width + j] = vc;
      out[3 * width + j] = vd;
      sum[first + j] += (wa * va + wb * vb) + (wc * vc + wd * vd);
      square[first + j] += (va * va + vb * vb) + (vc * vc + vd * vd);
    }
    return;
  }
  for (int i = 0; i < count; ++i)
#pragma omp simd
    for (index_t j = 0; j < columns; ++j) {
      P const v = (rows.row[i][first + j] - shift[first + j]) * rows.scale[i];
      out[i * width + j] = v;
      sum[first + j] += rows.scale[i] * v;
      square[first + j] += v * v;
    }
}

template <class P>
void pack(detail::row_quad<P> const& rows, int count, index_t columns, P const* shift, P* panels,
          index_t panel_stride, index_t r, P* sum, P* square) {
  constexpr int width = tile_shape<P>::width;
  index_t first = 0;
  P* out = panels + r * width;
  // The count of columns is a constant in the first call, which the compiler unrolls.
  for (; first + width <= columns; first += width, out += panel_stride)
    pack_columns<P>(rows, count, first, width, shift, out, sum, square);
  if (first < columns)
    pack_columns<P>(rows, count, first, columns - first, shift, out, sum, square);
}

template <class P>
inline constexpr detail::product_kernels<P> product_table{tile_shape<P>::width, tile_shape<P>::rows,
                                                          &multiply<P>, &pack<P>};
