// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/pack_levels.inl.hpp and detail/triangle_packs.hpp.
//
// Lower triangles in packs: ways in and out, and the products of their rows.

/// Rows and columns of a block whose entries stay in registers while products are subtracted.
constexpr int k_block = SUBSPAN_REGISTERS == 32 ? 4 : 3;

/// Elements [0, n) of `count` <= W lines, line l at from + l * line, go to every step-th vector.
template <class V>
void load_strip(lane_type<V> const* from, index_t line, index_t stride, index_t n, index_t count,
                V* to, index_t step) {
  using T = lane_type<V>;
  constexpr index_t width = lane_count<V>;
  if (stride < 0) {
    from += (n - 1) * stride, to += (n - 1) * step;
    stride = -stride, step = -step;
  }
  T* const out = reinterpret_cast<T*>(to);
  index_t const next = step * width, whole = n / 4 * 4;
  index_t l = 0;
  if (stride == 1 && width >= 4)
    for (; l + 4 <= count; l += 4) {
      interleave<T>(from + l * line, line, whole, next, out + l);
      for (index_t j = whole; j < n; ++j)
        for (index_t c = l; c < l + 4; ++c) out[j * next + c] = from[c * line + j];
    }
  for (; l < count; ++l)
    for (index_t j = 0; j < n; ++j) out[j * next + l] = from[l * line + j * stride];
  for (; l < width; ++l)
    for (index_t j = 0; j < n; ++j) out[j * next + l] = 0;
}

/// The way back.
template <class V>
void store_strip(V const* from, index_t step, index_t n, index_t count, lane_type<V>* to,
                 index_t line, index_t stride) {
  using T = lane_type<V>;
  constexpr index_t width = lane_count<V>;
  if (stride < 0) {
    from += (n - 1) * step, to += (n - 1) * stride;
    stride = -stride, step = -step;
  }
  T const* const in = reinterpret_cast<T const*>(from);
  index_t const next = step * width, whole = n / 4 * 4;
  index_t l = 0;
  if (stride == 1 && width >= 4)
    for (; l + 4 <= count; l += 4) {
      for (index_t j = 0; j < whole; j += 4)
        interleave<T>(in + j * next + l, next, 4, line, to + l * line + j);
      for (index_t j = whole; j < n; ++j)
        for (index_t c = l; c < l + 4; ++c) to[c * line + j] = in[j * next + c];
    }
  for (; l < count; ++l)
    for (index_t j = 0; j < n; ++j) to[l * line + j * stride] = in[j * next + l];
}

/// Whether strips of a [rows, columns] matrix run along its rows: that way which is contiguous.
inline bool runs_along_rows(index_t rows, index_t columns, index_t row_stride, index_t col_stride) {
  return columns > 1 && (rows == 1 || std::abs(col_stride) <= std::abs(row_stride));
}

/// The lower triangles of a task.
template <class V>
void load_triangle(detail::pack_input<lane_type<V>> const& a, V* to, index_t pitch) {
  index_t const n = a.rows;
  bool const along_rows = runs_along_rows(n, n, a.row_stride, a.col_stride);
  for (index_t i = 0; i < n; ++i)
    if (along_rows)
      load_strip<V>(a.data + i * a.row_stride, a.next, a.col_stride, i + 1, a.count, to + i * pitch,
                    1);
    else
      load_strip<V>(a.data + i * (a.row_stride + a.col_stride), a.next, a.row_stride, n - i,
                    a.count, to + i * (pitch + 1), pitch);
}

template <class V>
void load_rectangle(detail::pack_input<lane_type<V>> const& b, V* to, index_t pitch) {
  if (runs_along_rows(b.rows, b.cols, b.row_stride, b.col_stride))
    for (index_t i = 0; i < b.rows; ++i)
      load_strip<V>(b.data + i * b.row_stride, b.next, b.col_stride, b.cols, b.count,
                    to + i * pitch, 1);
  else
    for (index_t j = 0; j < b.cols; ++j)
      load_strip<V>(b.data + j * b.col_stride, b.next, b.row_stride, b.rows, b.count, to + j,
                    pitch);
}

template <class V>
void store_rectangle(V const* from, index_t rows, index_t columns, index_t pitch, index_t count,
                     detail::pack_output<lane_type<V>> const& to) {
  if (runs_along_rows(rows, columns, to.row_stride, to.col_stride))
    for (index_t i = 0; i < rows; ++i)
      store_strip<V>(from + i * pitch, 1, columns, count, to.data + i * to.row_stride, to.next,
                     to.col_stride);
  else
    for (index_t j = 0; j < columns; ++j)
      store_strip<V>(from + j, pitch, rows, count, to.data + j * to.col_stride, to.next,
                     to.row_stride);
}

template <class V>
lane_mask<V> is_finite(V x) {
  return magnitude(x) <= std::numeric_limits<lane_type<V>>::max();
}

/// Of matrix `lane` of a task, with or without its diagonal.
template <class T>
bool is_finite_triangle(detail::pack_input<T> const& a, index_t lane, bool unit_diagonal = false) {
  bool finite = true;
  for (index_t i = 0; i < a.rows; ++i)
    for (index_t j = 0; j < i + (unit_diagonal ? 0 : 1); ++j)
      finite &= std::abs(a.data[lane * a.next + i * a.row_stride + j * a.col_stride]) <=
                std::numeric_limits<T>::max();
  return finite;
}

template <class T>
bool is_finite_rectangle(detail::pack_input<T> const& b, index_t lane) {
  bool finite = true;
  for (index_t i = 0; i < b.rows; ++i)
    for (index_t j = 0; j < b.cols; ++j)
      finite &= std::abs(b.data[lane * b.next + i * b.row_stride + j * b.col_stride]) <=
                std::numeric_limits<T>::max();
  return finite;
}

/// A window on the vectors of a pack.
template <class V>
struct pack_view {
  V* data;
  index_t row, column;  // strides

  V& operator()(index_t i, index_t j) const { return data[i * row + j * column]; }
};

/// sum[r][c] -= x(r, k) y(k, c), k < depth.
template <int Rows, int Columns, class V>
inline void subtract_products(pack_view<V> x, pack_view<V> y, index_t depth,
                              V (&sum)[Rows][Columns]) {
  for (index_t k = 0; k < depth; ++k) {
    V right[Columns];
    for (int c = 0; c < Columns; ++c) right[c] = y(k, c);
    for (int r = 0; r < Rows; ++r) {
      V const left = x(r, k);
      for (int c = 0; c < Columns; ++c) sum[r][c] -= left * right[c];
    }
  }
}
