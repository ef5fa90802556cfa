#pragma once

#include <cstdint>
#include <optional>

#include "subspan/abi.hpp"
#include "subspan/context.hpp"
#include "subspan/view.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

/// What one pass over weighted rows leaves behind, in memory that the caller owns. All zero is the
/// empty state. Everything but the count is float64; states over disjoint rows merge exactly.
///
///   mean [d]     sum w x / W
///   m2   [d, d]  sum w (x - mean)(x - mean)^T, both triangles, C order
struct moments_view {
  index_t* count = nullptr;         ///< rows with weight > 0
  double* weight_sum = nullptr;     ///< W = sum w
  double* weight_sq_sum = nullptr;  ///< sum w^2
  strided_view<double, 1> mean;
  strided_view<double, 2> m2;
};

/// The same for pairs of rows (x, y): cross [d, e] = sum w (x - mean_x)(y - mean_y)^T, C order.
struct cross_moments_view {
  double* weight_sum = nullptr;
  strided_view<double, 1> mean_x;
  strided_view<double, 1> mean_y;
  strided_view<double, 2> cross;
};

enum class moments_precision {
  automatic,  ///< products of at most 256 rows in the widened input type, their sums in float64
  float64,    ///< products in float64, too
};

/// Adds rows to a state in one pass (Chan, Golub, LeVeque 1983, on blocks that are shifted by
/// their own running mean).
///
///   x       [n, d]  any strides; half, bfloat16, float, double; CPU or CUDA (C order)
///   weights [n]     >= 0; rows of weight 0 are skipped, whatever they hold; absent: all 1
///
/// The state is untouched if the call throws: error{invalid_argument} for NaN or infinity in a row
/// of positive weight (names the row and the column), for a negative or non-finite weight, and for
/// sums beyond float64's range.
/// Error of an m2 entry for float input, relative to sqrt(m2_ii m2_jj): typically 1e-7, at most
/// 256 2^-24 = 1.5e-5, independent of n and of the means; 1e-15 with float64 products. Same bits
/// for any number of threads.
/// Cost n d^2 flops; scratch: 8 (d + 64)^2 bytes for each of 1 (d > 384) to 24 (d <= 128) row
/// lanes, about 14 MiB of packed rows, O(d) more per block.
template <class T>
void moments_update(context const& ctx, strided_view<T const, 2> x,
                    std::optional<strided_view<double const, 1>> weights, moments_view state,
                    moments_precision precision = moments_precision::automatic);

/// Adds paired rows x [n, d] and y [n, e] to a cross state. As moments_update; 2 n d e flops.
template <class T>
void cross_moments_update(context const& ctx, strided_view<T const, 2> x,
                          strided_view<T const, 2> y,
                          std::optional<strided_view<double const, 1>> weights,
                          cross_moments_view state,
                          moments_precision precision = moments_precision::automatic);

/// Merges `other` into `state`, exactly up to float64 rounding. O(d^2), no scratch.
void moments_merge(context const& ctx, moments_view state, moments_view other);

/// As moments_merge for cross states. O(d e).
void cross_moments_merge(context const& ctx, cross_moments_view state, cross_moments_view other);

/// Adds to sums [groups, d] the weighted sum of the rows of each group, in float64 and in row
/// order. ids [n] in 0..groups-1. O(n d). CPU.
template <class T>
void group_sums(context const& ctx, strided_view<T const, 2> x,
                std::optional<strided_view<double const, 1>> weights,
                strided_view<index_t const, 1> ids, strided_view<double, 2> sums);

/// Principal axes of a state's m2: eigenvectors of m2 / denominator.
///
///   components [k, d]  rows, by descending variance; the entry of largest magnitude of each is
///                      positive (the first one of equals)
///   variances  [k]     descending, >= 0
///
/// Negative eigenvalues down to -negative_tolerance times the largest are rounding and become 0;
/// one below throws error{invalid_argument} (only the k that are returned are seen). The default
/// suits products in float; 100 d 2^-52 suits products in double.
/// O(d^3); scratch about 3 d^2 doubles. The last bits may depend on the threads for d >= 512.
void principal_axes(context const& ctx, strided_view<double const, 2> m2, double denominator,
                    strided_view<double, 2> components, strided_view<double, 1> variances,
                    double negative_tolerance = 1e-4);

}  // namespace v0
}  // namespace subspan
