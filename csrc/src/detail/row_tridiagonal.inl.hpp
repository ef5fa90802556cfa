// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/row_reflections.inl.hpp.
//
// Tridiagonal form of one symmetric matrix that outgrows the cache, without its vectors. Reflections
// take the last row first, so that every vector starts at column 0 and what is left is the leading
// part. A panel of them is gathered before the matrix changes: for each, the lower half of the
// matrix is read once, both as rows and as columns; then all of the panel changes it in one pass.
// (Dongarra, Hammarling, Sorensen 1989.)

/// Reflections of a panel.
constexpr index_t k_panel = 32;

/// Rows that are worked on at a time: their sums and factors fit the registers.
template <class T>
constexpr int k_panel_rows = std::min(k_row_lanes<T>, SUBSPAN_REGISTERS == 32 ? 8 : 4);

/// Of a symmetric matrix the lower half counts, and with it blocks of k_row_lanes on the diagonal as a
/// whole. Rows up to a whole number of vectors exist.
template <class T>
struct lower_rows {
  T* data;
  index_t pitch;

  static index_t size(index_t n) { return vectors_of<T>(n) * k_row_lanes<T> * row_pitch<T>(n); }
  T* operator[](index_t i) const { return data + i * pitch; }

  /// y = A x for the leading n rows and columns; x is zero from n on, y comes as zeros.
  void multiply(index_t n, T const* x, T* y) const {
    for (index_t i = 0; i < n; i += k_panel_rows<T>) multiply_some(i, x, y);
  }

 private:
  void multiply_some(index_t i, T const* x, T* y) const {
    using V = row_vector<T>;
    constexpr int rows = k_panel_rows<T>;
    index_t const block = i / k_row_lanes<T>;
    V factor[rows], sum[rows];
    V const* row[rows];
    for (int r = 0; r < rows; ++r) {
      row[r] = vectors_at((*this)[i + r]);
      factor[r] = all_lanes<V>(x[i + r]);
      sum[r] = row[r][block] * vectors_at(x)[block];
    }
    for (index_t c = 0; c < block; ++c) {
      V const across = vectors_at(x)[c];
      V down = vectors_at(y)[c];
      for (int r = 0; r < rows; ++r) {
        V const entry = row[r][c];
        sum[r] += entry * across;
        down += entry * factor[r];
      }
      vectors_at(y)[c] = down;
    }
    for (int r = 0; r < rows; ++r) y[i + r] += sum_of_lanes(sum[r]);
  }
};

/// Reflections H_l = I - tau v v^T and the w of what they do, A - v w^T - w v^T.
template <class T>
class reflection_panel {
 public:
  static index_t size(index_t n) { return 2 * k_panel * row_pitch<T>(n); }
  reflection_panel(T* memory, index_t n) : memory_(memory), pitch_(row_pitch<T>(n)) {}

  T* v(index_t l) const { return memory_ + 2 * l * pitch_; }
  T* w(index_t l) const { return v(l) + pitch_; }

  /// y -= sum over l < count of of_v[l] v_l + of_w[l] w_l, n entries or a few more.
  void subtract(index_t count, T const* of_v, T const* of_w, T* y, index_t n) const {
    using V = row_vector<T>;
    for (index_t l = 0; l < count; ++l) {
      V const a = all_lanes<V>(of_v[l]), b = all_lanes<V>(of_w[l]);
      V const *left = vectors_at(v(l)), *right = vectors_at(w(l));
      for (index_t c = 0; c < vectors_of<T>(n); ++c) vectors_at(y)[c] -= a * left[c] + b * right[c];
    }
  }

  /// with_v[l] = v_l . x, with_w[l] = w_l . x; x is zero from n on.
  void multiply(index_t count, T const* x, index_t n, T* with_v, T* with_w) const {
    using V = row_vector<T>;
    for (index_t l = 0; l < count; ++l) {
      V const *left = vectors_at(v(l)), *right = vectors_at(w(l));
      V a{}, b{};
      for (index_t c = 0; c < vectors_of<T>(n); ++c) {
        a += left[c] * vectors_at(x)[c];
        b += right[c] * vectors_at(x)[c];
      }
      with_v[l] = sum_of_lanes(a);
      with_w[l] = sum_of_lanes(b);
    }
  }

  /// A -= sum over l < count of v_l w_l^T + w_l v_l^T in its leading n rows and columns.
  void change(index_t count, lower_rows<T> const& a, index_t n) const {
    for (index_t i = 0; i < n; i += k_panel_rows<T>) {
      index_t const last = i / k_row_lanes<T> + 1;
      index_t c = 0;
      for (; c + 2 <= last; c += 2) change_some<2>(count, a, i, c);
      if (c < last) change_some<1>(count, a, i, c);
    }
  }

 private:
  template <int Count>
  void change_some(index_t count, lower_rows<T> const& a, index_t i, index_t at) const {
    using V = row_vector<T>;
    constexpr int rows = k_panel_rows<T>;
    V sum[rows][Count];
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < Count; ++c) sum[r][c] = vectors_at(a[i + r])[at + c];
    for (index_t l = 0; l < count; ++l) {
      T const *const left = v(l), *const right = w(l);
      V x[Count], z[Count];
      for (int c = 0; c < Count; ++c) {
        x[c] = vectors_at(left)[at + c];
        z[c] = vectors_at(right)[at + c];
      }
      for (int r = 0; r < rows; ++r) {
        V const p = all_lanes<V>(left[i + r]), q = all_lanes<V>(right[i + r]);
        for (int c = 0; c < Count; ++c) {
          sum[r][c] -= p * z[c];
          sum[r][c] -= q * x[c];
        }
      }
    }
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < Count; ++c) vectors_at(a[i + r])[at + c] = sum[r][c];
  }

  T* memory_;
  index_t pitch_;
};

/// d[n] and e[n - 1] of a, which is overwritten.
template <class T>
void tridiagonalize_lower(lower_rows<T> const& a, index_t n, reflection_panel<T> const& panel, T* d,
                          T* e) {
  using V = row_vector<T>;
  T of_v[k_panel], of_w[k_panel];
  for (index_t end = n; end > 0;) {
    index_t count = 0, k = end - 1;
    for (; k >= 0 && count < k_panel; --k) {
      T *const x = panel.v(count), *const y = panel.w(count);
      std::copy_n(a[k], k + 1, x);
      std::fill(x + k + 1, x + a.pitch, T{0});
      for (index_t l = 0; l < count; ++l) {
        of_v[l] = panel.w(l)[k];
        of_w[l] = panel.v(l)[k];
      }
      panel.subtract(count, of_v, of_w, x, k + 1);
      d[k] = x[k];
      if (k == 0) break;
      std::fill(x + k, x + a.pitch, T{0});
      row_reflection<T> const made(x, k - 1, 0, k);
      e[k - 1] = made.beta;
      std::fill_n(y, a.pitch, T{0});
      a.multiply(k, x, y);
      panel.multiply(count, x, k, of_w, of_v);
      panel.subtract(count, of_v, of_w, y, k);
      // w = p - tau/2 (p . v) v, p = tau A v
      scale_row(y, made.tau, k);
      V sum{};
      for (index_t c = 0; c < vectors_of<T>(k); ++c) sum += vectors_at(y)[c] * vectors_at(x)[c];
      V const half = all_lanes<V>(made.tau / 2 * sum_of_lanes(sum));
      for (index_t c = 0; c < vectors_of<T>(k); ++c) vectors_at(y)[c] -= half * vectors_at(x)[c];
      std::fill(y + k, y + a.pitch, T{0});
      ++count;
    }
    if (k <= 0 && count < k_panel) return;
    end = k + 1;
    panel.change(count, a, end);
  }
}

/// Matrix `number` of a task, of which the lower half counts; `scale` keeps how it was scaled.
template <class V>
void load_lower(detail::pack_input<lane_type<V>> const& from, index_t number,
                lower_rows<lane_type<V>> const& a, pack_scale<V>& scale, index_t lane) {
  using T = lane_type<V>;
  index_t const n = from.rows;
  std::fill_n(a.data, lower_rows<T>::size(n), T{0});
  for (index_t i = 0; i < n; ++i) {
    T const* const row = from.data + number * from.next + i * from.row_stride;
    for (index_t j = 0; j <= i; ++j) a[i][j] = row[j * from.col_stride];
    for (index_t j = i / k_row_lanes<T> * k_row_lanes<T>; j < i; ++j) a[j][i] = a[i][j];
  }
  scale_rows(a.data, n, n, scale, lane);
}
