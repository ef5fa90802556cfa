#pragma once

#include "detail/householder.hpp"

/// Householder QR in panels of columns, for matrices that lie in global memory.

namespace subspan::gpu {

/// Reflections are gathered by so many columns: H_0 ... H_(w-1) = I - V T V^T, V [m, w] with ones on
/// its diagonal and zeros above, T upper triangular (Schreiber and Van Loan 1989).
inline constexpr int k_panel = 16;

/// Columns that a warp reflects at once: as many as have room in registers for their products.
template <class T>
inline constexpr int k_panel_columns = sizeof(T) == 4 ? 4 : 2;

/// Memory for one panel: V [m, k_panel] and T [k_panel, k_panel], both column-major, and
/// k_panel * k_panel_columns<T> per warp. T and sums in shared memory, V best, too.
template <class T>
struct panel_memory {
  T* v;
  index_t ldv;
  T *t, *sums;
};

/// T of the panel. Barriers as in householder_form_q.
template <class Team, class T>
SUBSPAN_DEVICE void form_t(Team const& team, panel_memory<T> const& panel, int rows, int width,
                           T const* tau) {
  auto const [v, ldv, t, sums] = panel;
  // Products of the columns first, on the other side of the diagonal.
  for (int pair = team.warp(); pair < k_panel * k_panel; pair += team.warps()) {
    int const i = pair / k_panel, j = pair % k_panel;
    if (i >= j) continue;
    T sum = 0;
    for (int r = j + team.lanes().lane(); r < rows; r += k_warp)
      sum += v[i * ldv + r] * v[j * ldv + r];
    sum = lane_sum(team.lanes(), sum);
    if (team.lanes().lane() == 0) t[i * k_panel + j] = sum;
  }
  team.sync();
  int const i = team.rank();
  if (i < k_panel)  // row i needs no other
    for (int j = i; j < k_panel; ++j) {
      T const last = j < width ? tau[j] : T(0);
      T sum = i == j ? T(-1) : T(0);
      for (int s = i; s < j; ++s) sum += t[s * k_panel + i] * t[s * k_panel + j];
      t[j * k_panel + i] = -last * sum;
    }
  team.sync();
}

/// Sums of N values over the warp; those from lane * N / 32 on are left in front of `v`.
template <int N, int Mask = k_warp / 2, class Lanes, class T>
SUBSPAN_DEVICE void scattered_sum(Lanes const& lanes, T* v) {
  constexpr int half = N * Mask / k_warp;
  bool const upper = (lanes.lane() & Mask) != 0;
  if constexpr (half == 0) v[0] += lanes.shuffle_xor(v[0], Mask);
  SUBSPAN_UNROLL
  for (int e = 0; e < half; ++e) {
    T const others = upper ? v[e] : v[e + half], mine = upper ? v[e + half] : v[e];
    v[e] = mine + lanes.shuffle_xor(others, Mask);
  }
  if constexpr (Mask > 1) scattered_sum<N, Mask / 2>(lanes, v);
}

/// c[.., 0 .. C) := (I - V T V^T) c by the calling warp, or with T^T; `sums`: this warp's.
template <int C, bool Transposed, class Lanes, class T>
SUBSPAN_DEVICE void reflect_panel(Lanes const& lanes, panel_memory<T> const& panel, T* sums,
                                  int rows, T* c, index_t ldc) {
  constexpr int all = k_panel * C, own = all > k_warp ? all / k_warp : 1;
  T const* const v = panel.v;
  T const* const t = panel.t;
  index_t const ldv = panel.ldv;
  T sum[all];  // of column q and v_l at l * C + q
  SUBSPAN_UNROLL
  for (int e = 0; e < all; ++e) sum[e] = 0;
  SUBSPAN_NO_UNROLL
  for (int i = lanes.lane(); i < rows; i += k_warp) {
    T entry[C];
    SUBSPAN_UNROLL
    for (int q = 0; q < C; ++q) entry[q] = c[q * ldc + i];
    SUBSPAN_UNROLL
    for (int l = 0; l < k_panel; ++l) {
      T const x = v[l * ldv + i];
      SUBSPAN_UNROLL
      for (int q = 0; q < C; ++q) sum[l * C + q] += x * entry[q];
    }
  }
  scattered_sum<all>(lanes, sum);
  int const first = lanes.lane() * all / k_warp;
  lanes.sync_warp();  // the last call's have been read
  SUBSPAN_UNROLL
  for (int e = 0; e < own; ++e) sums[first + e] = sum[e];
  lanes.sync_warp();
  SUBSPAN_UNROLL
  for (int e = 0; e < own; ++e) {
    int const l = (first + e) / C, q = (first + e) % C;
    int const begin = Transposed ? 0 : l, end = Transposed ? l + 1 : k_panel;
    sum[e] = 0;
    for (int s = begin; s < end; ++s)
      sum[e] += (Transposed ? t[l * k_panel + s] : t[s * k_panel + l]) * sums[s * C + q];
  }
  lanes.sync_warp();
  SUBSPAN_UNROLL
  for (int e = 0; e < own; ++e) sums[first + e] = sum[e];
  lanes.sync_warp();
  SUBSPAN_UNROLL
  for (int e = 0; e < all; ++e) sum[e] = sums[e];
  SUBSPAN_NO_UNROLL
  for (int i = lanes.lane(); i < rows; i += k_warp) {
    T entry[C];
    SUBSPAN_UNROLL
    for (int q = 0; q < C; ++q) entry[q] = c[q * ldc + i];
    SUBSPAN_UNROLL
    for (int l = 0; l < k_panel; ++l) {
      T const x = v[l * ldv + i];
      SUBSPAN_UNROLL
      for (int q = 0; q < C; ++q) entry[q] -= x * sum[l * C + q];
    }
    SUBSPAN_UNROLL
    for (int q = 0; q < C; ++q) c[q * ldc + i] = entry[q];
  }
}

template <bool Transposed, class Team, class T>
SUBSPAN_DEVICE void reflect_columns_by_panel(Team const& team, panel_memory<T> const& panel,
                                             int rows, T* c, index_t ldc, int columns) {
  constexpr int most = k_panel_columns<T>;
  int const at_once = columns > team.warps() ? most : 1;
  T* const sums = panel.sums + team.warp() * k_panel * most;
  for (int q = at_once * team.warp(); q < columns; q += at_once * team.warps()) {
    if (at_once == most && q + most <= columns)
      reflect_panel<most, Transposed>(team.lanes(), panel, sums, rows, c + q * ldc, ldc);
    else
      for (int s = q; s < columns && s < q + at_once; ++s)
        reflect_panel<1, Transposed>(team.lanes(), panel, sums, rows, c + s * ldc, ldc);
  }
}

/// f(i, j) for all of [0, rows) x [0, columns), a warp per column.
template <class Team, class F>
SUBSPAN_DEVICE void for_each_in_columns(Team const& team, int rows, int columns, F&& f) {
  for (int j = team.warp(); j < columns; j += team.warps())
    for (int i = team.lanes().lane(); i < rows; i += k_warp) f(i, j);
}

/// householder_factor in panels, for matrices in global memory: `a` is read and written once per
/// panel instead of once per column. Memory for a panel of m rows, best in shared memory.
template <class Team, class T>
SUBSPAN_DEVICE void householder_factor_by_panels(Team const& team, T* a, int m, int n, index_t lda,
                                                 T* tau, panel_memory<T> const& panel) {
  int const steps = m < n ? m : n;
  T* const v = panel.v;
  index_t const ldv = panel.ldv;
  SUBSPAN_NO_UNROLL
  for (int p = 0; p < steps; p += k_panel) {
    int const width = steps - p < k_panel ? steps - p : k_panel, rows = m - p;
    T* const x = a + p * lda + p;
    for_each_in_columns(team, rows, width, [&](int i, int j) { v[j * ldv + i] = x[j * lda + i]; });
    team.sync();
    householder_factor(team, v, rows, width, ldv, tau + p);
    for_each_in_columns(team, rows, k_panel, [&](int i, int j) {
      T& entry = v[j * ldv + i];
      if (j < width) x[j * lda + i] = entry;
      if (i <= j || j >= width) entry = i == j && j < width;
    });
    team.sync();
    if (p + width == n) return;
    form_t(team, panel, rows, width, tau + p);
    reflect_columns_by_panel<true>(team, panel, rows, x + width * lda, lda, n - p - width);
    team.sync();
  }
}

/// householder_form_q in panels.
template <class Team, class T>
SUBSPAN_DEVICE void householder_form_q_by_panels(Team const& team, T* a, int m, int steps,
                                                 index_t lda, T const* tau,
                                                 panel_memory<T> const& panel) {
  T* const v = panel.v;
  index_t const ldv = panel.ldv;
  SUBSPAN_NO_UNROLL
  for (int p = (steps - 1) / k_panel * k_panel; p >= 0; p -= k_panel) {
    int const width = steps - p < k_panel ? steps - p : k_panel, rows = m - p;
    T* const x = a + p * lda + p;
    for_each_in_columns(team, rows, k_panel, [&](int i, int j) {
      v[j * ldv + i] = i > j && j < width ? x[j * lda + i] : T(i == j && j < width);
    });
    team.sync();
    if (p + width < steps) {
      form_t(team, panel, rows, width, tau + p);
      reflect_columns_by_panel<false>(team, panel, rows, x + width * lda, lda, steps - p - width);
      team.sync();
    }
    householder_form_q(team, v, rows, width, ldv, tau + p);
    for_each_in_columns(team, m, width, [&](int i, int j) {
      a[(p + j) * lda + i] = i < p ? T(0) : v[j * ldv + (i - p)];
    });
    team.sync();
  }
}

}  // namespace subspan::gpu
