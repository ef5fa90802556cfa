// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/packs.inl.hpp.
//
// Householder reflections H = I - tau v v^T, v_0 = 1, on packs, as LAPACK's larfg and larf make
// them. What a reflection acts on is a pivot row and `count` tail rows below it, which need not
// touch it: a block of rows under a triangle is factored without moving either.

/// Columns that are worked on together: their chains of additions hide each other's latency.
constexpr int k_pack_columns = 4;

/// The reflection that turns (x, tail) into (beta, 0). x becomes beta, the tail v. A tail of zeros
/// gives tau = 0. The column is scaled by a power of two, so that its norm is right at any size.
template <class V>
inline V make_reflection(V& x, V* tail, index_t stride, index_t count) {
  V most = magnitude(x);
  for (index_t i = 0; i < count; ++i) most = larger(magnitude(tail[i * stride]), most);
  V const power = power_of_two(most), down = 1 / power;
  V const alpha = x * down;
  V sum[2] = {};
  for (index_t i = 0; i < count; ++i) {
    V const y = tail[i * stride] * down;
    tail[i * stride] = y;
    sum[i % 2] += y * y;
  }
  V const square = sum[0] + sum[1];
  auto const some = square > 0;
  V const beta = -with_sign_of(square_root(alpha * alpha + square), alpha);
  V const tau = some ? (beta - alpha) / beta : V{};
  V const scale = some ? 1 / (alpha - beta) : V{};
  for (index_t i = 0; i < count; ++i) tail[i * stride] *= scale;
  x = (some ? beta : alpha) * power;
  return tau;
}

template <int Columns, class V>
inline void reflect_some(V tau, V const* v, index_t v_stride, index_t count, V* pivot, V* tail,
                         index_t pitch) {
  V dot[Columns];
  for (int c = 0; c < Columns; ++c) dot[c] = pivot[c];
  for (index_t i = 0; i < count; ++i) {
    V const x = v[i * v_stride];
    for (int c = 0; c < Columns; ++c) dot[c] += x * tail[i * pitch + c];
  }
  for (int c = 0; c < Columns; ++c) {
    dot[c] *= tau;
    pivot[c] -= dot[c];
  }
  for (index_t i = 0; i < count; ++i) {
    V const x = v[i * v_stride];
    for (int c = 0; c < Columns; ++c) tail[i * pitch + c] -= x * dot[c];
  }
}

/// (pivot, tail) = H (pivot, tail) for `columns` columns.
template <class V>
inline void reflect(V tau, V const* v, index_t v_stride, index_t count, V* pivot, V* tail,
                    index_t pitch, index_t columns) {
  index_t j = 0;
  for (; j + k_pack_columns <= columns; j += k_pack_columns)
    reflect_some<k_pack_columns>(tau, v, v_stride, count, pivot + j, tail + j, pitch);
  for (; j < columns; ++j) reflect_some<1>(tau, v, v_stride, count, pivot + j, tail + j, pitch);
}

template <int Rows, class V>
inline void reflect_some_rows(V tau, V const* v, index_t count, V* rows, index_t pitch) {
  V dot[Rows];
  for (int r = 0; r < Rows; ++r) dot[r] = rows[r * pitch];
  for (index_t j = 0; j < count; ++j)
    for (int r = 0; r < Rows; ++r) dot[r] += v[j] * rows[r * pitch + 1 + j];
  for (int r = 0; r < Rows; ++r) {
    dot[r] *= tau;
    rows[r * pitch] -= dot[r];
  }
  for (index_t j = 0; j < count; ++j)
    for (int r = 0; r < Rows; ++r) rows[r * pitch + 1 + j] -= v[j] * dot[r];
}

/// Every row (x, tail) = (x, tail) H for `n` rows.
template <class V>
inline void reflect_rows(V tau, V const* v, index_t count, V* rows, index_t pitch, index_t n) {
  index_t i = 0;
  for (; i + k_pack_columns <= n; i += k_pack_columns)
    reflect_some_rows<k_pack_columns>(tau, v, count, rows + i * pitch, pitch);
  for (; i < n; ++i) reflect_some_rows<1>(tau, v, count, rows + i * pitch, pitch);
}

/// Distance of the rows of a pack with n columns: odd, so that a column's entries do not fall into
/// the same set of a cache.
inline index_t pack_pitch(index_t n) { return n | 1; }

/// QR of an [m, n] pack in place, by blocks of rows that stay in the first cache: the first as
/// usual, every other stacked under the triangle so far (a flat tree; Demmel, Grigori, Hoemmen and
/// Langou 2012). R is the upper triangle of the first min(m, n) rows.
template <class V>
struct pack_qr {
  index_t m, n, k, pitch, block;

  pack_qr(index_t rows, index_t columns)
      : m(rows), n(columns), k(std::min(rows, columns)), pitch(pack_pitch(columns)) {
    // Of the level's vectors, not of V: wide and narrow packs must cut the rows alike.
    block = std::max<index_t>(16, 16384 / SUBSPAN_VECTOR_BYTES / std::max<index_t>(n, 1));
  }

  index_t first() const { return std::min(m, n + block); }
  index_t blocks() const { return 1 + (m - first() + block - 1) / block; }
  index_t tau_count() const { return blocks() * k; }

  void factor(V* a, V* tau) const {
    for (index_t j = 0; j < k; ++j) {
      V* const pivot = a + j * pitch + j;
      V* const below = pivot + pitch;
      index_t const count = first() - j - 1;
      tau[j] = make_reflection(*pivot, below, pitch, count);
      reflect(tau[j], below, pitch, count, pivot + 1, below + 1, pitch, n - j - 1);
    }
    for (index_t i = first(); i < m; i += block) {
      tau += k;
      V* const rows = a + i * pitch;
      index_t const count = std::min(block, m - i);
      for (index_t j = 0; j < k; ++j) {
        V* const pivot = a + j * pitch + j;
        tau[j] = make_reflection(*pivot, rows + j, pitch, count);
        reflect(tau[j], rows + j, pitch, count, pivot + 1, rows + j + 1, pitch, n - j - 1);
      }
    }
  }

  /// q[m, k] = Q c, where c[k, k] lies in the first rows of q. `a` and `tau` from factor().
  void multiply(V const* a, V const* tau, V* q) const {
    index_t const q_pitch = pack_pitch(k);
    tau += (blocks() - 1) * k;
    for (index_t b = blocks() - 1; b > 0; --b, tau -= k) {
      index_t const i = first() + (b - 1) * block, count = std::min(block, m - i);
      V* const rows = q + i * q_pitch;
      std::fill_n(rows, count * q_pitch, V{});
      for (index_t j = k - 1; j >= 0; --j)
        reflect(tau[j], a + i * pitch + j, pitch, count, q + j * q_pitch, rows, q_pitch, k);
    }
    std::fill_n(q + k * q_pitch, (first() - k) * q_pitch, V{});
    for (index_t j = k - 1; j >= 0; --j)
      reflect(tau[j], a + (j + 1) * pitch + j, pitch, first() - j - 1, q + j * q_pitch,
              q + (j + 1) * q_pitch, q_pitch, k);
  }
};

template <class V>
void set_identity(V* a, index_t n) {
  index_t const pitch = pack_pitch(n);
  std::fill_n(a, n * pitch, V{});
  for (index_t i = 0; i < n; ++i) a[i * pitch + i] += 1;
}

/// Makes the [n, n] pack `a` bidiagonal: U^T A V with diagonal d and superdiagonal e (Golub and
/// Kahan 1965). Reflections stay in a, those of U below the diagonal.
template <class V>
void bidiagonalize(V* a, index_t n, V* d, V* e, V* tau_left, V* tau_right) {
  index_t const pitch = pack_pitch(n);
  for (index_t k = 0; k < n; ++k) {
    V* const pivot = a + k * pitch + k;
    V* const below = pivot + pitch;
    index_t const count = n - k - 1;
    tau_left[k] = make_reflection(*pivot, below, pitch, count);
    d[k] = *pivot;
    if (count == 0) break;
    reflect(tau_left[k], below, pitch, count, pivot + 1, below + 1, pitch, count);
    tau_right[k] = make_reflection(pivot[1], pivot + 2, 1, count - 1);
    e[k] = pivot[1];
    reflect_rows(tau_right[k], pivot + 2, count - 1, below + 1, pitch, count);
  }
}

/// u and v of that, [n, n].
template <class V>
void form_bidiagonal(V const* a, index_t n, V const* tau_left, V const* tau_right, V* u, V* v) {
  index_t const pitch = pack_pitch(n);
  set_identity(u, n);
  set_identity(v, n);
  for (index_t k = n - 2; k >= 0; --k) {
    index_t const count = n - k - 1;
    V const* const pivot = a + k * pitch + k;
    V *const top = u + k * pitch + k, *const inner = v + (k + 1) * pitch + k + 1;
    reflect(tau_left[k], pivot + pitch, pitch, count, top, top + pitch, pitch, n - k);
    reflect(tau_right[k], pivot + 2, 1, count - 1, inner, inner + pitch, pitch, count);
  }
}

/// Rows [i, i + Rows) of the lower triangle at `a`, up to their diagonals: p += A v, both halves.
template <int Rows, class V>
inline void multiply_lower_rows(V const* a, index_t pitch, index_t i, V const* v, V* p) {
  V sum[Rows] = {}, x[Rows];
  for (int r = 0; r < Rows; ++r) x[r] = v[i + r];
  for (index_t j = 0; j < i; ++j) {
    V const y = v[j];
    V mirrored = p[j];
    for (int r = 0; r < Rows; ++r) {
      V const entry = a[(i + r) * pitch + j];
      sum[r] += entry * y;
      mirrored += entry * x[r];
    }
    p[j] = mirrored;
  }
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < r; ++c) {
      V const entry = a[(i + r) * pitch + i + c];
      sum[r] += entry * x[c];
      sum[c] += entry * x[r];
    }
    sum[r] += a[(i + r) * pitch + i + r] * x[r];
  }
  for (int r = 0; r < Rows; ++r) p[i + r] = sum[r];
}

/// The same rows: A -= v w^T + w v^T.
template <int Rows, class V>
inline void update_lower_rows(V* a, index_t pitch, index_t i, V const* v, V const* w) {
  V x[Rows], y[Rows];
  for (int r = 0; r < Rows; ++r) x[r] = v[i + r], y[r] = w[i + r];
  for (index_t j = 0; j < i; ++j) {
    V const vj = v[j], wj = w[j];
    for (int r = 0; r < Rows; ++r) a[(i + r) * pitch + j] -= x[r] * wj + y[r] * vj;
  }
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c <= r; ++c) a[(i + r) * pitch + i + c] -= x[r] * y[c] + y[r] * x[c];
}

/// Makes the symmetric [n, n] pack, of which the lower triangle counts, tridiagonal: Q^T A Q with
/// diagonal d and off-diagonal e. Reflections stay below the diagonal. `work`: 2 n.
template <class V>
void tridiagonalize(V* a, index_t n, V* d, V* e, V* tau, V* work) {
  index_t const pitch = pack_pitch(n);
  V *const v = work, *const p = work + n;
  for (index_t k = 0; k + 1 < n; ++k) {
    index_t const count = n - k - 1;
    V* const pivot = a + (k + 1) * pitch + k;
    V* const rest = pivot + 1;  // the lower triangle that is left, [count, count]
    tau[k] = make_reflection(*pivot, pivot + pitch, pitch, count - 1);
    d[k] = a[k * pitch + k];
    e[k] = *pivot;
    v[0] = all_lanes<V>(1);
    for (index_t i = 1; i < count; ++i) v[i] = pivot[i * pitch];
    index_t i = 0;
    for (; i + k_pack_columns <= count; i += k_pack_columns)
      multiply_lower_rows<k_pack_columns>(rest, pitch, i, v, p);
    for (; i < count; ++i) multiply_lower_rows<1>(rest, pitch, i, v, p);
    V dot{};
    for (i = 0; i < count; ++i) {
      p[i] *= tau[k];
      dot += p[i] * v[i];
    }
    dot *= tau[k] / 2;
    for (i = 0; i < count; ++i) p[i] -= dot * v[i];
    i = 0;
    for (; i + k_pack_columns <= count; i += k_pack_columns)
      update_lower_rows<k_pack_columns>(rest, pitch, i, v, p);
    for (; i < count; ++i) update_lower_rows<1>(rest, pitch, i, v, p);
  }
  d[n - 1] = a[(n - 1) * (pitch + 1)];
}

/// q[n, n] of that.
template <class V>
void form_tridiagonal(V const* a, index_t n, V const* tau, V* q) {
  index_t const pitch = pack_pitch(n);
  set_identity(q, n);
  for (index_t k = n - 2; k >= 0; --k) {
    V* const below = q + (k + 1) * pitch + k + 1;
    reflect(tau[k], a + (k + 2) * pitch + k, pitch, n - k - 2, below, below + pitch, pitch,
            n - k - 1);
  }
}
