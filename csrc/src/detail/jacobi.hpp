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

/// The rotation by the angle whose sine is s and half whose tangent is h that makes p and q
/// orthogonal. In Rutishauser's form (Numerische Mathematik 9, 1966), p' = p - s (q + h p) and
/// q' = q + s (p - h q), the rounding of s and h changes norms by s times as much only, and most
/// angles are small.
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

/// When two columns count as orthogonal, and a column as zero.
template <spectral Kind, class T>
struct jacobi_limits {
  T tolerance;
  T negligible;  // of squared norms

  /// svd: relative to the norms of the columns, and columns below u |A|_F are zero: to turn what is
  /// only rounding of the others into orthogonal columns takes many sweeps. eigh: relative to |A|_F.
  SUBSPAN_DEVICE static jacobi_limits of(int rows, T frobenius) {
    constexpr T u = std::numeric_limits<T>::epsilon() / 2;
    if constexpr (Kind == spectral::eigh) return {2 * u * frobenius, T(0)};
    T const root = std::sqrt(static_cast<T>(rows));
    return {u * (root > 4 ? root : T(4)), u * frobenius * u * frobenius};
  }

  SUBSPAN_DEVICE bool is_zero(T square) const { return !(square > negligible); }

  SUBSPAN_DEVICE bool calls_for_rotation(T alpha, T beta, T gamma) const {
    if constexpr (Kind == spectral::eigh) return std::abs(gamma) > tolerance;
    return !is_zero(alpha) && !is_zero(beta) &&
           std::abs(gamma) * rough_rsqrt(alpha) * rough_rsqrt(beta) > tolerance;
  }

  /// What W = A V has gathered of rounding cannot be rotated away: after ten sweeps, which are more
  /// than convergence takes, less is asked for.
  SUBSPAN_DEVICE void relax(int sweep) {
    if (Kind == spectral::eigh && sweep >= 10) tolerance *= T(1.25);
  }
};

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
      for (int l0 = 0; l0 < j; l0 += team.warps()) {  // a column for each warp
        T dot = 0;
        if (int const l = l0 + team.warp(); l < j)
          for (int i = team.lanes().lane(); i < rows; i += k_warp)
            dot += x[i * row_stride] * u[i * row_stride + l * col_stride];
        team.publish(lane_sum(team.lanes(), dot));
        int const count = j - l0 < team.warps() ? j - l0 : team.warps();
        for (int i = team.rank(); i < rows; i += team.size()) {
          T covered = 0;
          for (int l = 0; l < count; ++l)
            covered +=
                static_cast<T>(team.published(l)) * u[i * row_stride + (l0 + l) * col_stride];
          x[i * row_stride] -= covered;
        }
        team.sync();
      }
    T norm = 0;
    for (int i = team.rank(); i < rows; i += team.size())
      norm += x[i * row_stride] * x[i * row_stride];
    norm = std::sqrt(team.sum(norm));
    for (int i = team.rank(); i < rows; i += team.size()) x[i * row_stride] /= norm;
    team.sync();
  }
}

}  // namespace subspan::gpu
