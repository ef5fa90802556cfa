#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "detail/lanes.hpp"

/// Householder QR on the device: A = Q R with Q = H_0 H_1 ... H_(k-1), k = min(m, n) and
/// H_j = I - tau_j v_j v_j^T, v_j = (0, ..., 0, 1, x), signs as in LAPACK's geqrf. Matrices are
/// column-major, in shared or global memory: element (i, j) at a[j * lda + i].
///
/// A team (lanes.hpp) works on one matrix. Row i of any column is touched only by lane i % 32 of the
/// warp that has the column, so that between two barriers of the team a warp needs none of its own.

namespace subspan::gpu {

using index_t = std::int64_t;

/// The power of two, or its exponent's limit, that brings `largest` into [1, 2); 1 for zero.
template <class T>
SUBSPAN_DEVICE T unit_scale(T largest) {
  int const limit = std::numeric_limits<T>::max_exponent - 2;  // its inverse is normal, too
  if (!(largest > 0)) return T(1);
  int const exponent = -std::ilogb(largest);
  return std::scalbn(T(1), exponent > limit ? limit : exponent < -limit ? -limit : exponent);
}

/// H = I - tau v v^T takes (alpha, x) to (beta, 0), with v = (1, scale * x).
template <class T>
struct reflector {
  T beta, tau, scale;
};

/// Squares of sums below this may have lost bits, and are taken again of enlarged elements.
template <class T>
inline constexpr T k_small_square =
    std::numeric_limits<T>::min() / std::numeric_limits<T>::epsilon();
template <class T>
inline constexpr T k_enlarge = sizeof(T) == 4 ? T(0x1p100f) : T(0x1p600);

/// `square` = |x|^2; `enlarged_square` = |k_enlarge x|^2, needed only if `square` is below
/// k_small_square.
template <class T>
SUBSPAN_DEVICE reflector<T> make_reflector(T alpha, T square, T enlarged_square) {
  T norm;
  if (square < k_small_square<T>) {
    T const rest = std::sqrt(enlarged_square) / k_enlarge<T>;
    if (rest < std::numeric_limits<T>::min()) return {alpha, T(0), T(0)};
    norm = std::hypot(alpha, rest);
  } else {
    norm = std::sqrt(alpha * alpha + square);
  }
  T const beta = -std::copysign(norm, alpha);
  return {beta, (beta - alpha) / beta, T(1) / (alpha - beta)};
}

/// The first row of this lane from `row` on.
SUBSPAN_DEVICE int lane_row(int lane, int row) { return row + ((lane - row) & (k_warp - 1)); }

/// |factor * x[begin .. m)|^2. Columns that are short for the team are summed by every warp on its
/// own, which takes no barrier.
template <class Team, class T>
SUBSPAN_DEVICE T sum_of_squares(Team const& team, T const* x, int begin, int m, T factor) {
  bool const alone = m - begin <= 8 * k_warp || team.warps() == 1;
  int const width = alone ? k_warp : team.size();
  T sum = 0;
  for (int i = begin + (alone ? team.lanes().lane() : team.rank()); i < m; i += width) {
    T const v = factor * x[i];
    sum += v * v;
  }
  return alone ? lane_sum(team.lanes(), sum) : team.sum(sum);
}

/// c[.., 0 .. C) := H c by the calling warp, v = (1, scale * x[j + 1 .. m)) at row j.
template <int C, class Lanes, class T>
SUBSPAN_DEVICE void reflect(Lanes const& lanes, T const* x, T scale, T tau, int j, int m, T* c,
                            index_t ldc) {
  int const lane = lanes.lane(), first = lane_row(lane, j + 1);
  bool const has_top = lane == j % k_warp;
  T sum[C], top[C];
  SUBSPAN_UNROLL
  for (int q = 0; q < C; ++q) {
    sum[q] = 0;
    top[q] = has_top ? c[q * ldc + j] : T(0);
  }
  for (int i = first; i < m; i += k_warp) {
    T const v = scale * x[i];  // before the product, which could underflow
    SUBSPAN_UNROLL
    for (int q = 0; q < C; ++q) sum[q] += v * c[q * ldc + i];
  }
  SUBSPAN_UNROLL
  for (int q = 0; q < C; ++q) sum[q] = tau * lane_sum(lanes, sum[q] + top[q]);
  SUBSPAN_UNROLL
  for (int q = 0; q < C; ++q)
    if (has_top) c[q * ldc + j] = top[q] - sum[q];
  for (int i = first; i < m; i += k_warp) {
    T const v = scale * x[i];
    SUBSPAN_UNROLL
    for (int q = 0; q < C; ++q) c[q * ldc + i] -= v * sum[q];
  }
}

/// The same for `columns` columns, C at a time, shared by the warps of the team; warp 0 has the
/// first. A column's bits do not depend on C.
template <int C, class Team, class T>
SUBSPAN_DEVICE void reflect_by(Team const& team, T const* x, T scale, T tau, int j, int m, T* c,
                               index_t ldc, int columns) {
  for (int q = C * team.warp(); q < columns; q += C * team.warps()) {
    if (q + C <= columns)
      reflect<C>(team.lanes(), x, scale, tau, j, m, c + q * ldc, ldc);
    else
      for (int s = q; s < columns; ++s)
        reflect<1>(team.lanes(), x, scale, tau, j, m, c + s * ldc, ldc);
  }
}

template <class Team, class T>
SUBSPAN_DEVICE void reflect_columns(Team const& team, T const* x, T scale, T tau, int j, int m,
                                    T* c, index_t ldc, int columns) {
  if (tau == 0) return;
  if (columns > 2 * team.warps())
    reflect_by<4>(team, x, scale, tau, j, m, c, ldc, columns);
  else if (columns > team.warps())
    reflect_by<2>(team, x, scale, tau, j, m, c, ldc, columns);
  else
    reflect_by<1>(team, x, scale, tau, j, m, c, ldc, columns);
}

/// QR of a [m, n] in place: R on and above the diagonal, below it the v_j without their leading 1;
/// tau [min(m, n)]. Elements should be at most about 1 in size: squares must not overflow. A barrier
/// of the team before is the caller's, the one at the end is made here.
template <class Team, class T>
SUBSPAN_DEVICE void householder_factor(Team const& team, T* a, int m, int n, index_t lda, T* tau) {
  int const steps = m < n ? m : n;
  SUBSPAN_NO_UNROLL
  for (int j = 0; j < steps; ++j) {
    T* const x = a + j * lda;
    T const alpha = x[j];
    T const square = sum_of_squares(team, x, j + 1, m, T(1));
    T enlarged = 0;
    if (square < k_small_square<T>) enlarged = sum_of_squares(team, x, j + 1, m, k_enlarge<T>);
    reflector<T> const h = make_reflector(alpha, square, enlarged);
    reflect_columns(team, x, h.scale, h.tau, j, m, x + lda, lda, n - j - 1);
    team.sync();
    // From here on nobody reads this column, so nobody waits for it.
    for (int i = j + 1 + team.rank(); i < m; i += team.size()) x[i] *= h.scale;
    if (team.rank() == 0) {
      x[j] = h.beta;
      tau[j] = h.tau;
    }
  }
  team.sync();
}

/// C := Q C for C [m, columns] in place, Q of `steps` reflectors as householder_factor leaves them
/// (c must not overlap a). Warps share the columns and wait for nobody: barriers before and after
/// are the caller's.
template <class Team, class T>
SUBSPAN_DEVICE void householder_apply_q(Team const& team, T const* a, int m, int steps, index_t lda,
                                        T const* tau, T* c, index_t ldc, int columns) {
  int const share = (columns + team.warps() - 1) / team.warps();
  int const begin = share * team.warp() < columns ? share * team.warp() : columns;
  int const end = begin + share < columns ? begin + share : columns;
  warp_team const alone(team.lanes());
  SUBSPAN_NO_UNROLL
  for (int j = steps - 1; j >= 0; --j)
    reflect_columns(alone, a + j * lda, T(1), tau[j], j, m, c + begin * ldc, ldc, end - begin);
}

/// The first `steps` columns of Q over the reflectors in a [m, steps]. A barrier before is the
/// caller's, the one at the end is made here.
template <class Team, class T>
SUBSPAN_DEVICE void householder_form_q(Team const& team, T* a, int m, int steps, index_t lda,
                                       T const* tau) {
  // Column j is read as v_j by all until step j ends; then warp 0, which has the first column of
  // the next step, makes it H_j e_j.
  auto const finish = [&](int j) {
    T* const x = a + j * lda;
    T const t = tau[j];
    for (int i = team.lanes().lane(); i < m; i += k_warp)
      x[i] = i < j ? T(0) : i == j ? T(1) - t : -t * x[i];
  };
  SUBSPAN_NO_UNROLL
  for (int j = steps - 1; j >= 0; --j) {
    T* const x = a + j * lda;
    if (team.warp() == 0 && j + 1 < steps) finish(j + 1);
    reflect_columns(team, x, T(1), tau[j], j, m, x + lda, lda, steps - j - 1);
    team.sync();
  }
  if (team.warp() == 0 && steps > 0) finish(0);
  team.sync();
}

}  // namespace subspan::gpu
