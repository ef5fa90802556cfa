// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/pack_levels.inl.hpp and detail/triangle_packs.inl.hpp.

/// One system with the lanes along the rows of x. Every entry is the result of the same operations
/// in the same order as in a pack, and so has the same bits.
template <class T>
class row_substitution {
 public:
  using V = row_vector<T>;

  static index_t scratch(index_t n, index_t k) { return n * row_pitch<T>(k) + 2 * n; }
  row_substitution(detail::substitution_pack<T> const& task, index_t lane, T* memory)
      : task_(task),
        a_(task.a.data + lane * task.a.next),
        n_(task.b.rows),
        k_(task.b.cols),
        pitch_(row_pitch<T>(k_)),
        x_(memory),
        inverse_(memory + n_ * pitch_),
        power_(inverse_ + n_) {}

  std::int32_t solve(index_t lane) {
    std::int32_t const status = prepare(task_.b.data + lane * task_.b.next);
    if (status != 0) return status;
    index_t const vectors = vectors_of<T>(k_);
    index_t at = 0;  // a strip of x stays in the first cache
    for (; at + k_block <= vectors; at += k_block) solve_strip<k_block>(at);
    for (; at < vectors; ++at) solve_strip<1>(at);
    return 0;
  }

  void store(std::int32_t status, index_t lane) const {
    T* const out = task_.x.data + lane * task_.x.next;
    for (index_t i = 0; i < n_; ++i) {
      T* const row = out + i * task_.x.row_stride;  // columns of an output are contiguous
      if (status == 0)
        std::copy_n(x_ + i * pitch_, k_, row);
      else
        std::fill_n(row, k_, std::numeric_limits<T>::quiet_NaN());
    }
  }

 private:
  T a(index_t i, index_t j) const { return a_[i * task_.a.row_stride + j * task_.a.col_stride]; }
  V* row(index_t i) const { return vectors_at(x_ + i * pitch_); }

  std::int32_t prepare(T const* b) {
    constexpr T big = sizeof(T) == 4 ? 0x1p64f : 0x1p512, most = std::numeric_limits<T>::max();
    bool finite = true;
    std::int32_t zero = 0;
    for (index_t i = 0; i < n_; ++i) {
      for (index_t j = 0; j < i; ++j) finite &= std::abs(a(i, j)) <= most;
      for (index_t j = 0; j < k_; ++j) {
        T const entry = b[i * task_.b.row_stride + j * task_.b.col_stride];
        finite &= std::abs(entry) <= most;
        x_[i * pitch_ + j] = entry;
      }
      std::fill_n(x_ + i * pitch_ + k_, pitch_ - k_, T{0});
      T const diagonal = task_.unit_diagonal ? T{1} : a(i, i), size = std::abs(diagonal);
      finite &= size <= most;
      if (diagonal == 0 && (zero == 0 || task_.reversed))
        zero = static_cast<std::int32_t>(task_.reversed ? n_ - i : i + 1);
      power_[i] = size < 1 / big ? big : size > big ? 1 / big : T{1};
      inverse_[i] = 1 / (diagonal * power_[i]);
    }
    return finite ? zero : detail::k_info_nonfinite;
  }

  template <int Columns>
  void solve_strip(index_t at) {
    index_t i = 0;
    for (; i + k_block <= n_; i += k_block) solve_block<k_block, Columns>(i, at);
    for (; i < n_; ++i) solve_block<1, Columns>(i, at);
  }

  template <int Rows, int Columns>
  void solve_block(index_t i, index_t at) {
    V sum[Rows][Columns];
    for (int r = 0; r < Rows; ++r)
      for (int c = 0; c < Columns; ++c) sum[r][c] = row(i + r)[at + c];
    for (index_t j = 0; j < i; ++j) {
      V right[Columns];
      for (int c = 0; c < Columns; ++c) right[c] = row(j)[at + c];
      for (int r = 0; r < Rows; ++r) {
        V const left = all_lanes<V>(a(i + r, j));
        for (int c = 0; c < Columns; ++c) sum[r][c] -= left * right[c];
      }
    }
    for (int r = 0; r < Rows; ++r) {
      V const inverse = all_lanes<V>(inverse_[i + r]), power = all_lanes<V>(power_[i + r]);
      for (int c = 0; c < Columns; ++c)
        row(i + r)[at + c] = sum[r][c] = sum[r][c] * inverse * power;
      for (int q = r + 1; q < Rows; ++q) {
        V const factor = all_lanes<V>(a(i + q, i + r));
        for (int c = 0; c < Columns; ++c) sum[q][c] -= factor * sum[r][c];
      }
    }
  }

  detail::substitution_pack<T> const& task_;
  T const* a_;
  index_t n_, k_, pitch_;
  T *x_, *inverse_, *power_;
};
