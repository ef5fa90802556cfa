#pragma once

#include "detail/jacobi.hpp"

namespace subspan::gpu {

/// Up to 32 / Size matrices of at most Size x Size by one warp: lane j of a group holds column j of
/// W and of V in registers, and meets lane j ^ mask in round `mask`, so that every pair meets once
/// per sweep. Both lanes of a pair compute the same rotation from the same numbers.
/// `first`: the matrix of the first group; those from `batch` on do not exist.
template <spectral Kind, class T, int Size, bool Vectors, class Lanes, class TaskOf>
SUBSPAN_DEVICE void jacobi_in_registers(Lanes const& lanes, TaskOf const& task_of, index_t first,
                                        index_t batch) {
  constexpr bool has_v = Vectors || Kind == spectral::eigh;
  constexpr int groups = k_warp / Size;
  int const group = lanes.lane() / Size, j = lanes.lane() % Size;
  bool const exists = first + group < batch;
  jacobi_task<T> const task = task_of(exists ? first + group : first);
  bool const column = exists && j < task.cols;

  T w[Size], v[has_v ? Size : 1];
  T largest = 0;
  bool bad = false;
  SUBSPAN_UNROLL
  for (int i = 0; i < Size; ++i) {
    w[i] = column && i < task.rows ? task.template entry<Kind>(i, j) : T(0);
    T const size = std::abs(w[i]);
    bad |= !(size <= std::numeric_limits<T>::max());
    largest = size > largest ? size : largest;
    if constexpr (has_v) v[i] = i == j;
  }
  constexpr std::uint32_t members = Size == 32 ? ~0u : (1u << (Size % 32)) - 1;
  bad = ((lanes.ballot(bad) >> (group * Size)) & members) != 0;
  largest = lane_max<Size>(lanes, largest);
  int const exponent = !bad && largest > 0 ? std::ilogb(largest) : 0;
  T frobenius = 0;
  SUBSPAN_UNROLL
  for (int i = 0; i < Size; ++i) {
    w[i] = bad ? T(0) : scaled(w[i], -exponent);
    frobenius += w[i] * w[i];
  }
  frobenius = std::sqrt(lane_sum<Size>(lanes, frobenius));
  auto limits = jacobi_limits<Kind, T>::of(exists ? task.rows : 1, frobenius);

  auto const diagonal = [&] {
    T d = 0;
    SUBSPAN_UNROLL
    for (int i = 0; i < Size; ++i) d += w[i] * (Kind == spectral::eigh ? v[has_v ? i : 0] : w[i]);
    return d;
  };
  T mine = diagonal();
  int left = 0;  // rotations of this lane's group in the last sweep
  SUBSPAN_NO_UNROLL
  for (int sweep = 0; sweep < k_max_sweeps; ++sweep) {
    left = 0;
    limits.relax(sweep);
    SUBSPAN_NO_UNROLL
    for (int mask = 1; mask < Size; ++mask) {
      T other_w[Size], gamma = 0;
      SUBSPAN_UNROLL
      for (int i = 0; i < Size; ++i) {
        other_w[i] = lanes.shuffle_xor(w[i], mask);
        gamma += other_w[i] * (Kind == spectral::eigh ? v[has_v ? i : 0] : w[i]);
      }
      bool const low = j < (j ^ mask);
      // v_p . w_q and v_q . w_p differ in their last bits: both lanes take the first.
      if constexpr (Kind == spectral::eigh)
        gamma = lanes.shuffle(gamma, low ? lanes.lane() : lanes.lane() ^ mask);
      T const other = lanes.shuffle_xor(mine, mask);
      T const alpha = low ? mine : other, beta = low ? other : mine;
      bool const need = limits.calls_for_rotation(alpha, beta, gamma);
      if (!lanes.any(need)) continue;
      T other_v[has_v ? Size : 1];
      if constexpr (has_v) {
        SUBSPAN_UNROLL
        for (int i = 0; i < Size; ++i) other_v[i] = lanes.shuffle_xor(v[i], mask);
      }
      if (need) {
        rotation<T> const r = rotation<T>::of(alpha, beta, gamma);
        T const s = low ? -r.s : r.s, h = low ? r.h : -r.h;
        SUBSPAN_UNROLL
        for (int i = 0; i < Size; ++i) w[i] += s * (other_w[i] + h * w[i]);
        if constexpr (has_v) {
          SUBSPAN_UNROLL
          for (int i = 0; i < Size; ++i) v[i] += s * (other_v[i] + h * v[i]);
        }
        mine += (low ? -r.t : r.t) * gamma;
        ++left;
      }
    }
    mine = diagonal();  // afresh: the updates have gathered rounding
    if (!lanes.any(left > 0)) break;
  }
  left = static_cast<int>(lane_max<Size>(lanes, static_cast<float>(left)));

  T const value = Kind == spectral::svd ? std::sqrt(mine) : mine;
  bool const zero = Kind == spectral::svd && limits.is_zero(mine);
  int place = 0;
  SUBSPAN_UNROLL
  for (int i = 0; i < Size; ++i) {
    T const theirs = lanes.shuffle(value, group * Size + i);
    place += i < task.cols && comes_before<Kind>(theirs, i, value, j);
  }
  std::uint32_t const present = lanes.ballot(column && !zero) >> (group * Size) & members;
  T const nan = std::numeric_limits<T>::quiet_NaN();
  bad &= task.check_finite;
  if (column) {
    task.values[place] = bad ? nan : scaled(value, exponent);
    if (j == 0) *task.info = bad ? -1 : left;
  }
  if constexpr (Vectors) {
    T const inverse = zero ? T(0) : 1 / std::sqrt(mine > 0 ? mine : T(1));
    SUBSPAN_UNROLL
    for (int i = 0; i < Size; ++i) {
      if (column && task.left != nullptr && i < task.rows)
        task.left[i * task.left_row + place * task.left_col] = bad ? nan : w[i] * inverse;
      if (column && i < task.cols)
        task.right[i * task.right_row + place * task.right_col] = bad ? nan : v[has_v ? i : 0];
    }
    if constexpr (Kind == spectral::svd) {
      int count = 0;
      for (int i = 0; i < Size; ++i) count += (present >> i) & 1;
      if (!lanes.any(column && !bad && count < task.cols)) return;
      lanes.sync_warp();
      SUBSPAN_NO_UNROLL
      for (int g = 0; g < groups; ++g) {
        bool const skip = lanes.shuffle(static_cast<int>(bad), g * Size) != 0;
        int const known = lanes.shuffle(count, g * Size);
        if (skip || first + g >= batch) continue;
        jacobi_task<T> const that = task_of(first + g);
        complete_columns(warp_team(lanes), that.left, that.left_row, that.left_col, that.rows,
                         that.cols, known);
      }
    }
  }
}

}  // namespace subspan::gpu
