#pragma once

#include "detail/jacobi.hpp"

namespace subspan::gpu {

/// The smallest odd multiple of `width` from n on.
SUBSPAN_DEVICE constexpr int odd_multiple(int n, int width) {
  return ((n + width - 1) / width | 1) * width;
}

/// Working memory of jacobi_in_memory, shared or global, in elements.
struct jacobi_layout {
  int ldw, ldv;
  index_t v, diagonal, order, size;

  /// Neighbouring pairs of a round are neighbouring columns. With a leading dimension that is an odd
  /// multiple of `width` the groups of a warp, width lanes each, meet different banks.
  /// With `kept` every column has width * kept entries, zeros at its end.
  SUBSPAN_DEVICE static constexpr jacobi_layout of(int rows, int cols, int width, int kept,
                                                   bool has_v) {
    int const whole = width * kept;
    jacobi_layout at{odd_multiple(kept > 0 ? whole : rows, width),
                     odd_multiple(kept > 0 ? whole : cols, width),
                     0,
                     0,
                     0,
                     0};
    at.v = index_t{at.ldw} * cols;
    at.diagonal = at.v + (has_v ? index_t{at.ldv} * cols : 0);
    at.order = at.diagonal + cols;
    at.size = at.order + cols;
    return at;
  }
};

/// out(i, place) = in[:, order[place]] * factor(order[place]); nothing if out is null.
template <class T, class Team, class Factor>
SUBSPAN_DEVICE void store_columns(Team const& team, T const* in, int ld, int rows, int cols,
                                  int const* order, T* out, index_t row_stride, index_t col_stride,
                                  Factor factor) {
  if (out == nullptr) return;
  bool const by_row = col_stride <= row_stride;  // consecutive threads write neighbours
  int const inner = by_row ? cols : rows;
  for (int e = team.rank(); e < rows * cols; e += team.size()) {
    int const slow = e / inner, fast = e % inner;
    int const i = by_row ? slow : fast, place = by_row ? fast : slow;
    int const j = order[place];
    out[i * row_stride + place * col_stride] = in[j * index_t{ld} + i] * factor(j);
  }
}

/// One matrix of any size by a team, W and V column-major in `memory` (jacobi_layout). Groups of
/// Width lanes take the pairs of a round-robin tournament; Kept is the number of entries of each
/// column that a lane keeps in registers between the inner product and the rotation: rows <=
/// Width * Kept, or Kept = 0 for any number of rows.
template <spectral Kind, class T, int Width, int Kept, bool Vectors, class Team>
SUBSPAN_DEVICE void jacobi_in_memory(Team const& team, jacobi_task<T> const& task, T* memory) {
  constexpr bool has_v = Vectors || Kind == spectral::eigh;
  int const rows = task.rows, cols = task.cols;
  jacobi_layout const at = jacobi_layout::of(rows, cols, Width, Kept, has_v);
  T *const w = memory, *const v = memory + at.v, *const diagonal = memory + at.diagonal;
  auto const& lanes = team.lanes();
  int const lane = lanes.lane() % Width;
  int const group = team.rank() / Width, groups = team.size() / Width;
  T const nan = std::numeric_limits<T>::quiet_NaN();

  // Consecutive threads read along the axis of smaller stride.
  bool const by_row = task.col_stride <= task.row_stride;
  T largest = 0;
  bool bad = false;
  if constexpr (Kept > 0) {
    for (index_t e = team.rank(); e < at.diagonal; e += team.size()) memory[e] = 0;
    team.sync();
  }
  int const inner = by_row ? cols : rows;
  for (int e = team.rank(); e < rows * cols; e += team.size()) {
    int const slow = e / inner, fast = e % inner;
    int const i = by_row ? slow : fast, j = by_row ? fast : slow;
    T const x = task.template entry<Kind>(i, j);
    w[j * index_t{at.ldw} + i] = x;
    T const size = std::abs(x);
    bad |= !(size <= std::numeric_limits<T>::max());
    largest = size > largest ? size : largest;
  }
  bad = team.any(bad);
  if (bad && task.check_finite) {
    for (int e = team.rank(); e < cols; e += team.size()) task.values[e] = nan;
    if constexpr (Vectors) {
      if (task.left != nullptr)
        for (int e = team.rank(); e < rows * cols; e += team.size())
          task.left[e / cols * task.left_row + e % cols * task.left_col] = nan;
      for (int e = team.rank(); e < cols * cols; e += team.size())
        task.right[e / cols * task.right_row + e % cols * task.right_col] = nan;
    }
    if (team.rank() == 0) *task.info = -1;
    return;
  }
  largest = team.max(largest);
  int const exponent = !bad && largest > 0 ? std::ilogb(largest) : 0;
  T frobenius = 0;
  for (int e = team.rank(); e < rows * cols; e += team.size()) {
    T& x = w[e / rows * index_t{at.ldw} + e % rows];
    x = scaled(x, -exponent);
    frobenius += x * x;
  }
  if constexpr (has_v)
    for (int e = team.rank(); e < cols * cols; e += team.size())
      v[e / cols * index_t{at.ldv} + e % cols] = e / cols == e % cols;
  frobenius = std::sqrt(team.sum(frobenius));
  auto limits = jacobi_limits<Kind, T>::of(rows, frobenius);

  int const players = cols + cols % 2, circle = players - 1;
  // All lanes of a warp must take part in the sums, so these loops end together.
  auto const measure = [&] {
    for (int j0 = 0; j0 < cols; j0 += groups) {
      int const j = j0 + group;
      T d = 0;
      if (j < cols) {
        T const* const wj = w + j * index_t{at.ldw};
        T const* const other = Kind == spectral::eigh ? v + j * index_t{at.ldv} : wj;
        for (int i = lane; i < rows; i += Width) d += wj[i] * other[i];
      }
      d = lane_sum<Width>(lanes, d);
      if (j < cols && lane == 0) diagonal[j] = d;
    }
    team.sync();
  };
  measure();
  int left = 0;
  for (int sweep = 0; sweep < k_max_sweeps; ++sweep) {
    left = 0;
    limits.relax(sweep);
    for (int round = 0; round < players - 1; ++round) {
      auto const moved = [&](int place) {
        int const now = place - 1 + round;
        return (now < circle ? now : now - circle) + 1;
      };
      for (int pair0 = 0; pair0 < players / 2; pair0 += groups) {
        int const pair = pair0 + group;
        // Player 0 stays, the others move on by one seat per round.
        int const p = pair == 0 ? 0 : moved(pair), q = moved(players - 1 - pair);
        bool const plays = pair < players / 2 && p < cols && q < cols;
        T* const wp = w + (plays ? p : 0) * index_t{at.ldw};
        T* const wq = w + (plays ? q : 0) * index_t{at.ldw};
        T* const vp = v + (plays ? p : 0) * index_t{at.ldv};
        T* const vq = v + (plays ? q : 0) * index_t{at.ldv};
        T kept_p[Kept > 0 ? Kept : 1], kept_q[Kept > 0 ? Kept : 1];
        T gamma = 0;
        if (plays && Kept > 0) {
          SUBSPAN_UNROLL
          for (int e = 0; e < Kept; ++e) {
            int const i = lane + e * Width;
            kept_p[e] = wp[i];
            kept_q[e] = wq[i];
            gamma += (Kind == spectral::eigh ? vp[i] : kept_p[e]) * kept_q[e];
          }
        } else if (plays) {
          T const* const from = Kind == spectral::eigh ? vp : wp;
          for (int i = lane; i < rows; i += Width) gamma += from[i] * wq[i];
        }
        gamma = lane_sum<Width>(lanes, gamma);
        T const alpha = diagonal[plays ? p : 0], beta = diagonal[plays ? q : 0];
        T next_alpha = alpha, next_beta = beta;
        if (plays && limits.calls_for_rotation(alpha, beta, gamma)) {
          rotation<T> const r = rotation<T>::of(alpha, beta, gamma);
          if constexpr (Kept > 0) {
            SUBSPAN_UNROLL
            for (int e = 0; e < Kept; ++e) {
              int const i = lane + e * Width;
              wp[i] = r.first(kept_p[e], kept_q[e]);
              wq[i] = r.second(kept_p[e], kept_q[e]);
            }
          } else {
            for (int i = lane; i < rows; i += Width) {
              T const a = wp[i], b = wq[i];
              wp[i] = r.first(a, b);
              wq[i] = r.second(a, b);
            }
          }
          if constexpr (has_v && Kept > 0) {
            SUBSPAN_UNROLL
            for (int e = 0; e < Kept; ++e) {  // all loads before the first store
              kept_p[e] = vp[lane + e * Width];
              kept_q[e] = vq[lane + e * Width];
            }
            SUBSPAN_UNROLL
            for (int e = 0; e < Kept; ++e) {
              int const i = lane + e * Width;
              vp[i] = r.first(kept_p[e], kept_q[e]);
              vq[i] = r.second(kept_p[e], kept_q[e]);
            }
          } else if constexpr (has_v) {
            for (int i = lane; i < cols; i += Width) {
              T const a = vp[i], b = vq[i];
              vp[i] = r.first(a, b);
              vq[i] = r.second(a, b);
            }
          }
          ++left;
          next_alpha -= r.t * gamma;
          next_beta += r.t * gamma;
        }
        lanes.sync_warp();  // all have read the diagonal
        if (plays && lane == 0) {
          diagonal[p] = next_alpha;
          diagonal[q] = next_beta;
        }
      }
      team.sync();
    }
    measure();
    if (!team.any(left > 0)) break;
  }
  left = static_cast<int>(team.max(static_cast<float>(left)));

  int* const order = reinterpret_cast<int*>(memory + at.order);
  for (int j = team.rank(); j < cols; j += team.size()) {
    int place = 0;
    for (int i = 0; i < cols; ++i) place += comes_before<Kind>(diagonal[i], i, diagonal[j], j);
    order[place] = j;
  }
  team.sync();
  T zeros = 0;
  for (int place = team.rank(); place < cols; place += team.size()) {
    T const d = diagonal[order[place]];
    zeros += limits.is_zero(d);
    T const value = Kind == spectral::svd ? std::sqrt(d) : d;
    task.values[place] = scaled(value, exponent);
  }
  if (team.rank() == 0) *task.info = left;
  if constexpr (!Vectors) return;
  int const present = cols - static_cast<int>(team.sum(zeros));
  store_columns(team, w, at.ldw, rows, cols, order, task.left, task.left_row, task.left_col,
                [&](int j) {
                  T const d = diagonal[j];
                  return limits.is_zero(d) ? T(0) : 1 / std::sqrt(d);
                });
  store_columns(team, v, at.ldv, cols, cols, order, task.right, task.right_row, task.right_col,
                [](int) { return T(1); });
  if (Kind == spectral::svd && present < cols) {
    team.sync();
    complete_columns(team, task.left, task.left_row, task.left_col, rows, cols, present);
  }
}

}  // namespace subspan::gpu
