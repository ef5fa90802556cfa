// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/packs.inl.hpp.
//
// Householder reflections of one matrix with the lanes along its rows, for matrices that are too
// large for packs. Rows start at whole vectors and are padded with zeros; a reflection's vector is
// zero outside its range, so that every loop runs over whole vectors. Rows are updated by the last
// reflection and gathered for the next in one pass.

template <class T>
constexpr int k_row_lanes = SUBSPAN_VECTOR_BYTES / static_cast<int>(sizeof(T));
template <class T>
using row_vector = pack<T, k_row_lanes<T>>;

/// Vectors that n entries take, and four at least, which is what a transposition works on.
template <class T>
constexpr index_t vectors_of(index_t n) {
  return ((n + 3) / 4 * 4 + k_row_lanes<T> - 1) / k_row_lanes<T>;
}
/// Distance of rows: an odd number of vectors, so that a column is not in one set of the cache.
template <class T>
constexpr index_t row_pitch(index_t n) {
  return (vectors_of<T>(n) | 1) * k_row_lanes<T>;
}

template <class T>
row_vector<T>* vectors_at(T* row) {
  return reinterpret_cast<row_vector<T>*>(row);
}
template <class T>
row_vector<T> const* vectors_at(T const* row) {
  return reinterpret_cast<row_vector<T> const*>(row);
}

template <class V>
inline lane_type<V> sum_of_lanes(V v) {
  if constexpr (lane_count<V> == 16)
    return sum_of_lanes(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                        __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  else if constexpr (lane_count<V> == 8)
    return sum_of_lanes(__builtin_shufflevector(v, v, 0, 1, 2, 3) +
                        __builtin_shufflevector(v, v, 4, 5, 6, 7));
  else if constexpr (lane_count<V> == 4)
    return (v[0] + v[2]) + (v[1] + v[3]);
  else
    return v[0] + v[1];
}

/// The reflection of x[begin, n), zeros before: x becomes v, v[begin] = 1. As make_reflection(). Or
/// with another entry of them, the pivot, that becomes 1.
template <class T>
struct row_reflection {
  T tau = 0, beta = 0;

  row_reflection(T* x, index_t begin, index_t n) : row_reflection(x, begin, begin, n) {}
  row_reflection(T* x, index_t pivot, index_t begin, index_t n) {
    using V = row_vector<T>;
    V* const v = vectors_at(x);
    index_t const first = begin / k_row_lanes<T>, last = vectors_of<T>(n);
    V most{};
    for (index_t i = first; i < last; ++i) most = larger(magnitude(v[i]), most);
    T greatest = 0;
    for (int l = 0; l < k_row_lanes<T>; ++l) greatest = std::max<T>(greatest, most[l]);
    V const power = power_of_two(all_lanes<V>(greatest)), down = 1 / power;
    T const alpha = x[pivot] * down[0];
    x[pivot] = 0;
    V sum{};
    for (index_t i = first; i < last; ++i) {
      v[i] *= down;
      sum += v[i] * v[i];
    }
    T const square = sum_of_lanes(sum);
    beta = alpha;
    if (square > 0) {
      beta = alpha > 0 ? -std::sqrt(alpha * alpha + square) : std::sqrt(alpha * alpha + square);
      tau = (beta - alpha) / beta;
      T const scale = 1 / (alpha - beta);
      for (index_t i = first; i < last; ++i) v[i] *= scale;
    }
    beta *= power[0];
    x[pivot] = 1;
  }
};

/// A change of rows: row i -= z[i] v, of rank 1, or - z[i] v - y[i] w, of rank 2.
template <class T>
struct row_change {
  T const *z, *v;
  T const *y = nullptr, *w = nullptr;
};

template <int Rank, int Count, class T>
inline void change_and_gather_some(T* a, index_t pitch, index_t begin, index_t end,
                                   row_change<T> const& change, T const* x, index_t at,
                                   T* gathered) {
  using V = row_vector<T>;
  V v[Count], w[Count], sum[Count] = {};
  for (int c = 0; c < Count; ++c) {
    if constexpr (Rank >= 1) v[c] = vectors_at(change.v)[at + c];
    if constexpr (Rank >= 2) w[c] = vectors_at(change.w)[at + c];
  }
  for (index_t i = begin; i < end; ++i) {
    V* const row = vectors_at(a + i * pitch) + at;
    V const factor = all_lanes<V>(x[i]);
    V z{}, y{};
    if constexpr (Rank >= 1) z = all_lanes<V>(change.z[i]);
    if constexpr (Rank >= 2) y = all_lanes<V>(change.y[i]);
    for (int c = 0; c < Count; ++c) {
      V entry = row[c];
      if constexpr (Rank >= 1) entry -= z * v[c];
      if constexpr (Rank >= 2) entry -= y * w[c];
      if constexpr (Rank >= 1) row[c] = entry;
      sum[c] += factor * entry;
    }
  }
  for (int c = 0; c < Count; ++c) vectors_at(gathered)[at + c] = sum[c];
}

/// Changes rows [begin, end) from column `from` on (or a few before it) and gathers the sum of x[i]
/// times row i.
template <int Rank, class T>
void change_and_gather(T* a, index_t pitch, index_t begin, index_t end, index_t from,
                       index_t columns, row_change<T> const& change, T const* x, T* gathered) {
  index_t at = from / k_row_lanes<T>;
  index_t const last = vectors_of<T>(columns);
  for (; at + 4 <= last; at += 4)
    change_and_gather_some<Rank, 4>(a, pitch, begin, end, change, x, at, gathered);
  for (; at + 2 <= last; at += 2)
    change_and_gather_some<Rank, 2>(a, pitch, begin, end, change, x, at, gathered);
  for (; at < last; ++at)
    change_and_gather_some<Rank, 1>(a, pitch, begin, end, change, x, at, gathered);
}

template <int Rows, class T>
inline void change_and_multiply_some(T* a, index_t pitch, index_t first, index_t last, T const* z,
                                     T const* v, T const* x, T factor, T* product) {
  using V = row_vector<T>;
  V size[Rows], sum[Rows] = {};
  for (int r = 0; r < Rows; ++r) size[r] = all_lanes<V>(z[r]);
  for (index_t c = first; c < last; ++c) {
    V const change = vectors_at(v)[c], other = vectors_at(x)[c];
    for (int r = 0; r < Rows; ++r) {
      V& entry = vectors_at(a + r * pitch)[c];
      V const changed = entry - size[r] * change;
      entry = changed;
      sum[r] += changed * other;
    }
  }
  for (int r = 0; r < Rows; ++r) product[r] = factor * sum_of_lanes(sum[r]);
}

/// Row i -= z[i] v for rows [begin, end); then product[i] = factor * row i . x.
template <class T>
void change_and_multiply(T* a, index_t pitch, index_t begin, index_t end, index_t from,
                         index_t columns, T const* z, T const* v, T const* x, T factor,
                         T* product) {
  index_t const first = from / k_row_lanes<T>, last = vectors_of<T>(columns);
  index_t i = begin;
  for (; i + 4 <= end; i += 4)
    change_and_multiply_some<4>(a + i * pitch, pitch, first, last, z + i, v, x, factor,
                                product + i);
  for (; i < end; ++i)
    change_and_multiply_some<1>(a + i * pitch, pitch, first, last, z + i, v, x, factor,
                                product + i);
}

/// Reflections of a matrix, that of step k in row k: vectors of `length` entries.
template <class T>
struct reflection_rows {
  T* data;
  T* tau;
  index_t length, pitch;

  static index_t size(index_t count, index_t length) {
    return count * row_pitch<T>(length) + padded(count);
  }
  static index_t padded(index_t n) { return vectors_of<T>(n) * k_row_lanes<T>; }
  reflection_rows(T* memory, index_t count, index_t n)
      : data(memory), tau(memory + count * row_pitch<T>(n)), length(n), pitch(row_pitch<T>(n)) {}
  T* operator[](index_t k) const { return data + k * pitch; }
};

/// Vectors for the work of one matrix.
template <class T>
struct row_work {
  T *z, *v, *w;
  index_t entries;
  static index_t size(index_t n) { return 3 * reflection_rows<T>::padded(n); }
  row_work(T* memory, index_t n) : entries(n) {
    index_t const padded = reflection_rows<T>::padded(n);
    z = memory;
    v = z + padded;
    w = v + padded;
  }
  /// Nothing to change yet.
  void clear() const { std::fill_n(z, size(entries), T{0}); }
};

template <class T>
void scale_row(T* x, T factor, index_t n) {
  for (index_t i = 0; i < vectors_of<T>(n); ++i) vectors_at(x)[i] *= factor;
}

/// q[rows, columns] = H_0 ... H_{count-1} q. Reflection k is zero above row k + `shift`; where q was
/// the identity its rows from there on are zero left of column `triangular ? k + shift : 0`.
template <class T>
void apply_reflections(reflection_rows<T> const& h, index_t count, index_t shift, bool triangular,
                       T* q, index_t pitch, index_t columns, row_work<T> work) {
  index_t const rows = h.length;
  work.clear();
  for (index_t k = count - 1; k >= 0; --k) {
    index_t const begin = k + shift, from = triangular ? begin : 0;
    if (begin >= rows) continue;
    change_and_gather<1>(q, pitch, begin, rows, from, columns, {work.z, work.v}, h[k], work.w);
    for (index_t i = begin; i < rows; ++i) work.z[i] = h.tau[k] * h[k][i];
    std::swap(work.v, work.w);
  }
  change_and_gather<1>(q, pitch, std::min(shift, rows), rows, 0, columns, {work.z, work.v}, work.z,
                       work.w);
}

template <class T>
void set_identity_rows(T* a, index_t pitch, index_t n) {
  std::fill_n(a, n * pitch, T{0});
  for (index_t i = 0; i < n; ++i) a[i * pitch + i] = 1;
}

/// QR of a[m, n]: reflections to h, the triangle to r[min(m, n), n].
template <class T>
void factor_rows(T* a, index_t m, index_t n, reflection_rows<T> const& h, T* r, row_work<T> work) {
  index_t const pitch = row_pitch<T>(n);
  work.clear();
  for (index_t j = 0; j < std::min(m, n); ++j) {
    T* const x = h[j];
    std::fill_n(x, h.pitch, T{0});
    for (index_t i = j; i < m; ++i) x[i] = a[i * pitch + j] - work.z[i] * work.v[j];
    row_reflection<T> const made(x, j, m);
    h.tau[j] = made.tau;
    change_and_gather<1>(a, pitch, j, m, j, n, {work.z, work.v}, x, work.w);
    scale_row(work.w, made.tau, n);
    T* const row = r + j * pitch;
    std::fill_n(row, pitch, T{0});  // the padding, too: it takes part in every product of rows
    for (index_t c = j + 1; c < n; ++c) row[c] = a[j * pitch + c] - work.w[c];
    row[j] = made.beta;
    std::copy_n(x, m, work.z);
    std::swap(work.v, work.w);
  }
}

/// As bidiagonalize(), d[k * step] and e[k * step].
template <class T>
void bidiagonalize_rows(T* a, index_t n, reflection_rows<T> const& left,
                        reflection_rows<T> const& right, T* d, T* e, index_t step,
                        row_work<T> work) {
  work.clear();
  index_t const pitch = row_pitch<T>(n);
  for (index_t k = 0; k < n; ++k) {
    T* const x = left[k];
    std::fill_n(x, left.pitch, T{0});
    for (index_t i = k; i < n; ++i) x[i] = a[i * pitch + k] - work.z[i] * work.v[k];
    row_reflection<T> const column(x, k, n);
    left.tau[k] = column.tau;
    d[k * step] = column.beta;
    if (k + 1 == n) break;
    change_and_gather<1>(a, pitch, k, n, k + 1, n, {work.z, work.v}, x, work.w);
    scale_row(work.w, column.tau, n);
    T* const y = right[k];
    std::fill_n(y, right.pitch, T{0});
    for (index_t c = 0; c <= k; ++c) work.w[c] = 0;
    for (index_t c = k + 1; c < n; ++c) y[c] = a[k * pitch + c] - work.w[c];
    row_reflection<T> const row(y, k + 1, n);
    right.tau[k] = row.tau;
    e[k * step] = row.beta;
    change_and_multiply(a, pitch, k + 1, n, k + 1, n, x, work.w, y, row.tau, work.z);
    work.v = y;
  }
}

/// As tridiagonalize(), of a[n, n] with both halves.
template <class T>
void tridiagonalize_rows(T* a, index_t n, reflection_rows<T> const& h, T* d, T* e, index_t step,
                         row_work<T> work) {
  work.clear();
  index_t const pitch = row_pitch<T>(n);
  T const* v = work.v;  // of the last reflection, zeros at first
  for (index_t k = 0; k < n; ++k) {
    T* const row = a + k * pitch;
    for (index_t c = k; c < n; ++c) row[c] -= v[k] * work.z[c] + work.z[k] * v[c];
    d[k * step] = row[k];
    if (k + 1 == n) break;
    T* const x = h[k];
    std::fill_n(x, h.pitch, T{0});
    std::copy(row + k + 1, row + n, x + k + 1);
    row_reflection<T> const made(x, k + 1, n);
    h.tau[k] = made.tau;
    e[k * step] = made.beta;
    change_and_gather<2>(a, pitch, k + 1, n, k + 1, n, {v, work.z, work.z, v}, x, work.w);
    // z = p - tau/2 (p . x) x, p = tau A x
    scale_row(work.w, made.tau, n);
    row_vector<T> sum{};
    for (index_t i = 0; i < vectors_of<T>(n); ++i) sum += vectors_at(work.w)[i] * vectors_at(x)[i];
    T const half = made.tau / 2 * sum_of_lanes(sum);
    for (index_t c = 0; c <= k; ++c) work.w[c] = 0;
    for (index_t c = k + 1; c < n; ++c) work.w[c] -= half * x[c];
    std::swap(work.z, work.w);
    v = x;
  }
}

/// Transposes the [n, n] matrix: to[j, i] = from[i, j]. Whole vectors of rows exist.
template <class T>
void transpose_rows(T const* from, T* to, index_t n) {
  index_t const pitch = row_pitch<T>(n), four = (n + 3) / 4 * 4;
  for (index_t i = 0; i < n; i += 4) interleave<T>(from + i * pitch, pitch, four, pitch, to + i);
}

template <int Count, class T, class List>
inline void turn_rows_some(List const& list, int side, index_t lane, T* q, index_t pitch,
                           index_t at) {
  using V = row_vector<T>;
  list.for_each_sweep(side, [&](index_t begin, index_t end, auto&& angle) {
    V carried[Count];
    V* row = vectors_at(q + begin * pitch) + at;
    for (int c = 0; c < Count; ++c) carried[c] = row[c];
    for (index_t k = begin; k < end; ++k) {
      V* const next = row + pitch / k_row_lanes<T>;
      V const co = all_lanes<V>(angle(k, 0, lane)), si = all_lanes<V>(angle(k, 1, lane));
      for (int c = 0; c < Count; ++c) {
        V const other = next[c];
        row[c] = co * carried[c] + si * other;
        carried[c] = co * other - si * carried[c];
      }
      row = next;
    }
    for (int c = 0; c < Count; ++c) row[c] = carried[c];
  });
}

/// The listed rotations of one lane, applied to the rows of q[n, n].
template <class T, class List>
void turn_rows(List const& list, int side, index_t lane, T* q, index_t n) {
  index_t const pitch = row_pitch<T>(n), last = vectors_of<T>(n);
  index_t at = 0;
  for (; at + 4 <= last; at += 4) turn_rows_some<4>(list, side, lane, q, pitch, at);
  for (; at + 2 <= last; at += 2) turn_rows_some<2>(list, side, lane, q, pitch, at);
  for (; at < last; ++at) turn_rows_some<1>(list, side, lane, q, pitch, at);
}

/// Scales a matrix in rows; `scale` keeps how in a lane.
template <class V>
void scale_rows(lane_type<V>* to, index_t m, index_t n, pack_scale<V>& scale, index_t lane) {
  using T = lane_type<V>;
  using R = row_vector<T>;
  index_t const vectors = vectors_of<T>(n), step = row_pitch<T>(n) / k_row_lanes<T>;
  pack_extent<R> const extent(vectors_at(to), m, vectors, step);
  T most = 0;
  bool finite = true;
  for (int l = 0; l < k_row_lanes<T>; ++l) {
    most = std::max<T>(most, extent.most[l]);
    finite = finite && extent.finite[l] != 0;
  }
  lane_mask<R> const all{};
  pack_scale<R> const own(all_lanes<R>(most), finite ? ~all : all);
  own.apply(vectors_at(to), m, vectors, step);
  scale.up[lane] = own.up[0];
  scale.power[lane] = own.power[0];
  scale.finite[lane] = own.finite[0];
}

/// Matrix `number` of a task in rows, scaled; `scale` keeps how in a lane. `lower`: only that half
/// counts, and both are filled with it.
template <class V>
void load_rows(detail::pack_input<lane_type<V>> const& a, index_t number, bool lower,
               lane_type<V>* to, pack_scale<V>& scale, index_t lane) {
  using T = lane_type<V>;
  index_t const m = a.rows, n = a.cols, pitch = row_pitch<T>(n);
  T const* const data = a.data + number * a.next;
  std::fill_n(to, m * pitch, T{0});
  for (index_t i = 0; i < m; ++i) {
    T const* const row = data + i * a.row_stride;
    index_t const columns = lower ? i + 1 : n;
    for (index_t j = 0; j < columns; ++j) to[i * pitch + j] = row[j * a.col_stride];
    if (lower)
      for (index_t j = 0; j < i; ++j) to[j * pitch + i] = to[i * pitch + j];
  }
  scale_rows(to, m, n, scale, lane);
}

/// Rows j of `from`, [columns, rows], become columns j of an output; not finite: NaN. -0 becomes 0.
template <class T>
void store_as_columns(T const* from, index_t pitch, index_t rows, index_t columns, bool finite,
                      detail::pack_output<T> const& to, index_t lane) {
  T* const out = to.data + lane * to.next;
  for (index_t j = 0; j < columns; ++j)
    for (index_t i = 0; i < rows; ++i)
      out[i * to.row_stride + j * to.col_stride] =
          finite ? from[j * pitch + i] + T(0) : std::numeric_limits<T>::quiet_NaN();
}

template <class T>
void store_as_rows(T const* from, index_t pitch, index_t rows, index_t columns, bool finite,
                   detail::pack_output<T> const& to, index_t lane) {
  store_as_columns(from, pitch, columns, rows, finite,
                   {to.data, to.next, to.col_stride, to.row_stride}, lane);
}
