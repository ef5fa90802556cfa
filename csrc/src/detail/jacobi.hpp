#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "detail/lanes.hpp"

/// Bodies of the CUDA kernels of svd and eigh: Jacobi rotations of the columns of W and V.
///
///   svd   W starts as A, V as I; pairs of columns are rotated until those of W are orthogonal, so
///         that A = (W / s) diag(s) V^T (one-sided Jacobi, Hestenes 1958; Demmel and Veselic 1992)
///   eigh  the same with W = A V kept up to date and the angle taken from v_p^T A v_q = v_p . w_q,
///         which makes it the classical two-sided method without touching rows (Jacobi 1846)
///
/// A matrix is scaled by a power of two so that its largest entry is in [1, 2).

namespace subspan::gpu {

using index_t = std::int64_t;

enum class spectral { svd, eigh };

/// One matrix, rows >= cols, and where its factors go; entry i of vector j is at
/// left[i * left_row + j * left_col]. A wide matrix is given by its transpose, left and right
/// exchanged. For eigh only the lower triangle is read, and vectors are `right`.
template <class T>
struct jacobi_task {
  T const* a;
  index_t row_stride, col_stride;
  int rows, cols;
  T* values;
  T* left;  // null: values only
  index_t left_row, left_col;
  T* right;
  index_t right_row, right_col;
  std::int32_t* info;
  bool check_finite;

  template <spectral Kind>
  SUBSPAN_DEVICE T entry(int i, int j) const {
    bool const swap = Kind == spectral::eigh && i < j;
    return a[(swap ? j : i) * row_stride + (swap ? i : j) * col_stride];
  }
};

inline constexpr int k_max_sweeps = 30;  // LAPACK's limit in gesvj; 6 to 10 are usual

template <class T>
struct jacobi_limits {
  static constexpr T ulp = std::numeric_limits<T>::epsilon();
  static constexpr T largest = std::numeric_limits<T>::max();
  /// Columns whose squared norm is below this count as zero: far below ulp * |A|, and such that
  /// products of two squares' roots are still normal numbers.
  static constexpr T negligible = sizeof(T) == 4 ? T(1e-30) : T(1e-280);
};

/// 2^n for any n that a scaling needs: one factor alone could overflow for subnormal matrices.
template <class T>
SUBSPAN_DEVICE T scaled(T x, int exponent) {
  int const half = exponent / 2;
  return x * std::ldexp(T(1), half) * std::ldexp(T(1), exponent - half);
}

/// The rotation by the angle whose sine is s and half whose tangent is h that makes p and q
/// orthogonal. In Rutishauser's form, p' = p - s (q + h p) and q' = q + s (p - h q) (Numer. Math. 9,
/// 1966), the rounding of s and h changes norms by s times as much only, and most angles are small.
template <class T>
struct rotation {
  T s, h, t;

  /// alpha, beta: the diagonal; gamma != 0: the off-diagonal entry of the 2 x 2 problem. Parallel
  /// columns stay parallel if the angle is rough, so it is not.
  SUBSPAN_DEVICE static rotation of(T alpha, T beta, T gamma) {
    T const zeta = T(0.5) * (beta - alpha) * fast_inverse(std::abs(gamma));
    T const size = std::abs(zeta);
    constexpr T big = sizeof(T) == 4 ? T(1e9) : T(1e100);  // its square still exists
    T const square = 1 + size * size;
    T const t = fast_inverse(size > big ? 2 * size : size + square * fast_rsqrt(square));
    T const c = fast_rsqrt(1 + t * t);
    rotation r;
    r.t = (zeta < 0) != (gamma < 0) ? -t : t;
    r.s = c * r.t;
    r.h = r.s * fast_inverse(1 + c);
    return r;
  }

  SUBSPAN_DEVICE T first(T p, T q) const { return p - s * (q + h * p); }
  SUBSPAN_DEVICE T second(T p, T q) const { return q + s * (p - h * q); }
};

template <spectral Kind, class T>
SUBSPAN_DEVICE bool needs_rotation(T alpha, T beta, T gamma, T tolerance) {
  if constexpr (Kind == spectral::eigh) return std::abs(gamma) > tolerance;
  constexpr T least = jacobi_limits<T>::negligible;
  return alpha > least && beta > least &&
         std::abs(gamma) * rough_rsqrt(alpha) * rough_rsqrt(beta) > tolerance;
}

/// svd: relative to the norms of the columns; eigh: to |A|_F.
template <spectral Kind, class T>
SUBSPAN_DEVICE T jacobi_tolerance(int rows, T frobenius) {
  constexpr T u = jacobi_limits<T>::ulp / 2;
  return Kind == spectral::svd ? u * std::sqrt(static_cast<T>(rows)) : 2 * u * frobenius;
}

/// What W = A V has gathered of rounding cannot be rotated away: after ten sweeps, which are more
/// than convergence takes, less is asked for.
template <spectral Kind, class T>
SUBSPAN_DEVICE T relaxed(T tolerance, int sweep) {
  return Kind == spectral::eigh && sweep >= 10 ? tolerance * T(1.25) : tolerance;
}

/// Whether value x of column i comes before value y of column j.
template <spectral Kind, class T>
SUBSPAN_DEVICE bool comes_before(T x, int i, T y, int j) {
  if (x == y) return i < j;
  return Kind == spectral::svd ? x > y : x < y;
}

/// Fills columns [present, cols) of the orthonormal [rows, cols] matrix u: the unit vector that the
/// columns so far cover least, orthogonalised twice (Giraud et al. 2005) and normalised.
template <class T, class Team>
SUBSPAN_DEVICE void complete_columns(Team const& team, T* u, index_t row_stride, index_t col_stride,
                                     int rows, int cols, int present) {
  for (int j = present; j < cols; ++j) {
    T least = 2;
    int row = 0;
    for (int i = team.rank(); i < rows; i += team.size()) {
      T covered = 0;
      for (int l = 0; l < j; ++l) {
        T const x = u[i * row_stride + l * col_stride];
        covered += x * x;
      }
      if (covered < least) {
        least = covered;
        row = i;
      }
    }
    T const best = -team.max(-least);
    // The smallest row of those: 2^24 bounds what a float holds exactly, rows are far fewer.
    T const chosen = -team.max(least == best ? -static_cast<T>(row) : -T(16777216));
    int const pivot = static_cast<int>(chosen);
    T* const x = u + j * col_stride;
    for (int i = team.rank(); i < rows; i += team.size()) x[i * row_stride] = i == pivot;
    team.sync();
    for (int pass = 0; pass < 2; ++pass)
      for (int l = 0; l < j; ++l) {
        T const* const y = u + l * col_stride;
        T dot = 0;
        for (int i = team.rank(); i < rows; i += team.size())
          dot += x[i * row_stride] * y[i * row_stride];
        dot = team.sum(dot);
        for (int i = team.rank(); i < rows; i += team.size())
          x[i * row_stride] -= dot * y[i * row_stride];
      }
    T norm = 0;
    for (int i = team.rank(); i < rows; i += team.size())
      norm += x[i * row_stride] * x[i * row_stride];
    norm = std::sqrt(team.sum(norm));
    for (int i = team.rank(); i < rows; i += team.size()) x[i * row_stride] /= norm;
    team.sync();
  }
}

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
    bad |= !(size <= jacobi_limits<T>::largest);
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
  T tolerance = jacobi_tolerance<Kind>(exists ? task.rows : 1, frobenius);

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
    tolerance = relaxed<Kind>(tolerance, sweep);
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
      bool const need = needs_rotation<Kind>(alpha, beta, gamma, tolerance);
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
  bool const zero = Kind == spectral::svd && !(mine > jacobi_limits<T>::negligible);
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
    bad |= !(size <= jacobi_limits<T>::largest);
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
  T tolerance = jacobi_tolerance<Kind>(rows, frobenius);

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
    tolerance = relaxed<Kind>(tolerance, sweep);
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
        if (plays && needs_rotation<Kind>(alpha, beta, gamma, tolerance)) {
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
    zeros += !(d > jacobi_limits<T>::negligible);
    T const value = Kind == spectral::svd ? std::sqrt(d) : d;
    task.values[place] = scaled(value, exponent);
  }
  if (team.rank() == 0) *task.info = left;
  if constexpr (!Vectors) return;
  int const present = cols - static_cast<int>(team.sum(zeros));
  store_columns(team, w, at.ldw, rows, cols, order, task.left, task.left_row, task.left_col,
                [&](int j) {
                  T const d = diagonal[j];
                  return d > jacobi_limits<T>::negligible ? 1 / std::sqrt(d) : T(0);
                });
  store_columns(team, v, at.ldv, cols, cols, order, task.right, task.right_row, task.right_col,
                [](int) { return T(1); });
  if (Kind == spectral::svd && present < cols) {
    team.sync();
    complete_columns(team, task.left, task.left_row, task.left_col, rows, cols, present);
  }
}

}  // namespace subspan::gpu
