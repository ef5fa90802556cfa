#pragma once

#include "detail/householder_panels.hpp"

/// Bodies of the kernels of qr.cu.

namespace subspan::gpu {

/// A batch of thin QR decompositions; q [batch, m, k] and r [batch, k, n] in C order.
template <class T>
struct qr_problem {
  T const* a;
  index_t batch, batch_stride, row_stride, column_stride;
  int m, n;
  bool check_finite;
  T *q, *r;  // q null: r alone
  std::int32_t* info;
  SUBSPAN_DEVICE int steps() const { return m < n ? m : n; }
};

/// f(i, j) for all of [0, rows) x [0, columns), neighbouring threads at neighbouring j.
template <class Team, class F>
SUBSPAN_DEVICE void for_each_entry(Team const& team, int rows, int columns, F&& f) {
  int const row_step = team.size() / columns, column_step = team.size() % columns;
  int i = team.rank() / columns, j = team.rank() % columns;
  while (i < rows) {
    f(i, j);
    i += row_step;
    j += column_step;
    if (j >= columns) {
      j -= columns;
      ++i;
    }
  }
}

/// Where a block works on a matrix: `work`, column-major, in shared or global memory; tau [k] and
/// `scratch`, 32 doubles, in shared memory; the panel if `ByPanels`.
template <class T>
struct qr_memory {
  T* work;
  index_t lda;
  T* tau;
  double* scratch;
  panel_memory<T> panel;
};

/// Matrix b by one block.
template <bool ByPanels, class Lanes, class T>
SUBSPAN_DEVICE void qr_by_block(Lanes const& lanes, qr_problem<T> const& p, index_t b,
                                qr_memory<T> const& memory) {
  T *const work = memory.work, *const tau = memory.tau;
  index_t const lda = memory.lda;
  block_team<Lanes> const team(lanes, memory.scratch);
  int const m = p.m, n = p.n, k = p.steps();
  T const* const a = p.a + b * p.batch_stride;
  T *const q = p.q == nullptr ? nullptr : p.q + b * m * k, *const r = p.r + b * k * n;
  T largest = 0;
  bool finite = true;
  auto const load = [&](int i, int j) {
    T const v = a[i * p.row_stride + j * p.column_stride], size = std::abs(v);
    work[j * lda + i] = v;
    finite &= size <= std::numeric_limits<T>::max();
    largest = size > largest ? size : largest;
  };
  if (std::abs(p.row_stride) < std::abs(p.column_stride))
    for_each_entry(team, n, m, [&](int j, int i) { load(i, j); });
  else
    for_each_entry(team, m, n, load);
  bool const bad = lanes.any_of_block(!finite) && p.check_finite;
  if (lanes.rank() == 0) p.info[b] = bad ? -1 : 0;
  if (bad) {
    T const nan = std::numeric_limits<T>::quiet_NaN();
    if (q != nullptr)
      for (index_t e = lanes.rank(); e < index_t{m} * k; e += lanes.size()) q[e] = nan;
    for (index_t e = lanes.rank(); e < index_t{k} * n; e += lanes.size()) r[e] = nan;
    return;
  }
  T const scale = unit_scale(team.max(largest)), unscale = T(1) / scale;
  for (int j = lanes.warp(); j < n; j += lanes.warps())
    for (int i = lanes.lane(); i < m; i += k_warp) work[j * lda + i] *= scale;
  team.sync();
  if constexpr (ByPanels)
    householder_factor_by_panels(team, work, m, n, lda, tau, memory.panel);
  else
    householder_factor(team, work, m, n, lda, tau);
  for_each_entry(team, k, n, [&](int i, int j) {
    r[index_t{i} * n + j] = i <= j ? work[j * lda + i] * unscale : T(0);
  });
  team.sync();
  if (q == nullptr) return;
  if constexpr (ByPanels)
    householder_form_q_by_panels(team, work, m, k, lda, tau, memory.panel);
  else
    householder_form_q(team, work, m, k, lda, tau);
  for_each_entry(team, m, k, [&](int i, int j) { q[index_t{i} * k + j] = work[j * lda + i]; });
  team.sync();  // the next matrix takes the same memory
}

/// A warp on 32 / (P * G) matrices of at most R * P rows and G columns in registers: of each, lane
/// part * G + j of its group has the rows part, part + P, ... of column j. `warp` counts the warps
/// of the whole grid.
template <int R, int P, int G, class Lanes, class T>
class qr_in_registers {
  static constexpr int k_group = P * G;
  static_assert(k_warp % k_group == 0);

 public:
  SUBSPAN_DEVICE qr_in_registers(Lanes const& l, qr_problem<T> const& problem, index_t warp)
      : lanes_(l),
        p_(problem),
        b_(warp * (k_warp / k_group) + l.lane() / k_group),
        base_(l.lane() / k_group * k_group),
        part_(l.lane() % k_group / G),
        j_(l.lane() % G) {}

  SUBSPAN_DEVICE void run() {
    int const m = p_.m, n = p_.n, k = p_.steps();
    bool const has_matrix = b_ < p_.batch;
    T const* const a = p_.a + b_ * p_.batch_stride + j_ * p_.column_stride;
    T largest = 0;
    bool finite = true;
    SUBSPAN_UNROLL
    for (int s = 0; s < R; ++s) {
      a_[s] = has_matrix && row(s) < m && j_ < n ? a[row(s) * p_.row_stride] : T(0);
      T const size = std::abs(a_[s]);
      finite &= size <= std::numeric_limits<T>::max();
      largest = size > largest ? size : largest;
    }
    SUBSPAN_UNROLL
    for (int mask = k_group / 2; mask > 0; mask /= 2) {
      T const other = lanes_.shuffle_xor(largest, mask);
      largest = other > largest ? other : largest;
    }
    std::uint32_t const group = static_cast<std::uint32_t>((std::uint64_t{1} << k_group) - 1);
    bool const bad = (lanes_.ballot(!finite) >> base_ & group) != 0 && p_.check_finite;
    T const nan = std::numeric_limits<T>::quiet_NaN();
    T const scale = unit_scale(largest), unscale = T(1) / scale;
    SUBSPAN_UNROLL
    for (int s = 0; s < R; ++s) a_[s] *= scale;
    SUBSPAN_NO_UNROLL
    for (int step = 0; step < k; ++step) factor(step);
    if (has_matrix && j_ < n) {
      T* const r = p_.r + b_ * k * n + j_;
      SUBSPAN_UNROLL
      for (int s = 0; s < R; ++s)
        if (row(s) < k) r[row(s) * n] = bad ? nan : row(s) <= j_ ? a_[s] * unscale : T(0);
    }
    if (p_.q != nullptr) {
      SUBSPAN_NO_UNROLL
      for (int step = k - 1; step >= 0; --step) form(step);
    }
    if (has_matrix && j_ < k && p_.q != nullptr) {
      T* const q = p_.q + b_ * m * k + j_;
      SUBSPAN_UNROLL
      for (int s = 0; s < R; ++s)
        if (row(s) < m) q[row(s) * k] = bad ? nan : a_[s];
    }
    if (has_matrix && lanes_.lane() == base_) p_.info[b_] = bad ? -1 : 0;
  }

 private:
  SUBSPAN_DEVICE int row(int s) const { return s * P + part_; }

  /// Sum over the lanes that share a column.
  SUBSPAN_DEVICE T sum_of_parts(T v) const {
    SUBSPAN_UNROLL
    for (int mask = G; mask < k_group; mask *= 2) v += lanes_.shuffle_xor(v, mask);
    return v;
  }

  /// Columns after `step` := H of that column, v = (1, scale * x); v_ is what v was.
  SUBSPAN_DEVICE void reflect_others(int step, T scale, T tau) {
    int const source = base_ + part_ * G + step;
    T sum = 0;
    SUBSPAN_UNROLL
    for (int s = 0; s < R; ++s) {
      T const x = scale * lanes_.shuffle(a_[s], source);
      v_[s] = row(s) > step ? x : row(s) == step ? T(1) : T(0);
      sum += v_[s] * a_[s];
    }
    sum = sum_of_parts(sum);
    T const w = j_ > step ? tau * sum : T(0);
    SUBSPAN_UNROLL
    for (int s = 0; s < R; ++s) a_[s] -= w * v_[s];
  }

  SUBSPAN_DEVICE void factor(int step) {
    T alpha = 0, square = 0;
    SUBSPAN_UNROLL
    for (int s = 0; s < R; ++s) {
      if (row(s) == step) alpha = a_[s];
      T const x = row(s) > step ? a_[s] : T(0);
      square += x * x;
    }
    alpha = sum_of_parts(alpha);
    square = sum_of_parts(square);
    T enlarged = 0;
    if (lanes_.any(j_ == step && square < k_small_square<T>)) {
      SUBSPAN_UNROLL
      for (int s = 0; s < R; ++s) {
        T const x = row(s) > step ? k_enlarge<T> * a_[s] : T(0);
        enlarged += x * x;
      }
      enlarged = sum_of_parts(enlarged);
    }
    reflector<T> const h = make_reflector(alpha, square, enlarged);
    int const source = base_ + part_ * G + step;
    T const tau = lanes_.shuffle(h.tau, source);
    reflect_others(step, lanes_.shuffle(h.scale, source), tau);
    if (j_ != step) return;
    tau_ = tau;
    SUBSPAN_UNROLL
    for (int s = 0; s < R; ++s) a_[s] = row(s) > step ? v_[s] : row(s) == step ? h.beta : a_[s];
  }

  SUBSPAN_DEVICE void form(int step) {
    T const tau = lanes_.shuffle(tau_, base_ + part_ * G + step);
    reflect_others(step, T(1), tau);
    if (j_ != step) return;
    SUBSPAN_UNROLL
    for (int s = 0; s < R; ++s) a_[s] = T(row(s) == step) - tau * v_[s];
  }

  Lanes const lanes_;
  qr_problem<T> const& p_;
  index_t const b_;
  int const base_, part_, j_;
  T a_[R], v_[R];
  T tau_ = 0;
};

}  // namespace subspan::gpu
