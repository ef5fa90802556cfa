#pragma once

#include "detail/kernel_functions.hpp"
#include "detail/tile_engine.hpp"

/// What kernel_matvec.cpp compiles once per level. The points x stand in the lanes, one panel of
/// `width` at a time, against up to k_run points y: tile[j * width + i] belongs to y_j and x_i, stays
/// in the first cache, and is scores first, then values, then forgotten.

namespace subspan::detail {

inline constexpr index_t k_run = k_rows_of_task;

template <class P>
inline constexpr index_t k_widest = 128 / index_t{sizeof(P)};  // points x of a panel, of any level

inline constexpr index_t k_difference_depth = 8;  // coordinates; beyond, products are faster

/// How scores are made.
enum class score_form {
  products,     ///< <x, y>
  differences,  ///< sum of (x - y)^2
  expanded      ///< |x|^2 + |y|^2 - 2 <x, y>, and by differences where that cancels
};

/// A run of points y against a panel of points x.
template <class P>
struct score_task {
  P const *x, *y;              // panels: `width` points x, several of `rows` points y
  P const *x_norms, *y_norms;  // squares, for `expanded`
  index_t depth, count;        // coordinates; points y, at most k_run
};

/// Where K v is made for both sides at once, of x with itself: the weights of the points in the lanes,
/// and for each of up to k_run points y the sums over them, lane by lane.
template <class P>
struct other_side {
  P const* v;      // as many as points x
  P* columns;      // [k_run][lanes]
  index_t behind;  // point x_i meets y_j only if i <= j + behind, and y_j it only if i < j + behind
};

/// Exponents and factors of both sides that join the values of a tile.
template <class P>
struct tile_terms {
  P const *of_x, *of_y;  // exponents to base 2: [width], [k_run]
  P const *factor_x, *factor_y;
  bool x_first;  // whose exponents join the logarithm of the value first
};

template <class P>
struct kernel_kernels {
  tile_size size;  // points y of a panel, points x
  index_t lanes;
  index_t point_panels;  // panels of x that weigh_points takes

  void (*scores)(score_form form, score_task<P> const& task, P* tile);

  /// out[i] = sum over j of K v[j], of scores; for the other side too, if there is one.
  void (*weigh)(kernel_params const& how, P const* tile, index_t count, P const* v,
                other_side<P> const* other, P* out);
  /// The same from points by differences, with point_panels panels of x, and all of the points on one
  /// side of each other.
  void (*weigh_points)(kernel_params const& how, score_task<P> const& task, P const* v,
                       other_side<P> const* other, P* out);
  /// Turns scores into values.
  void (*apply)(kernel_params const& how, P* tile, index_t count);
  /// Turns scores into slopes times weights.
  void (*apply_slopes)(kernel_params const& how, P* tile, P const* weights, index_t count);
  /// Turns scores into 2^(s - greatest), where `greatest` [width] has seen all scores, and says by
  /// what the values before are to be multiplied.
  void (*apply_below)(P* tile, index_t count, P* greatest, P* change);
  /// Turns scores into logarithms of values to base 2, plus one for each y.
  void (*apply_logs)(kernel_params const& how, P* tile, index_t count, P const* of_y);
  /// Turns scores into values, or slopes, with the terms of both sides.
  void (*apply_terms)(kernel_params const& how, P* tile, index_t count, tile_terms<P> const& terms,
                      bool slopes);

  /// out[i] = sum over j of tile v[j].
  void (*sum)(P const* tile, index_t count, P const* v, P* out);
  /// The same for both sides, of points that meet each other.
  void (*sum_both)(P const* tile, index_t count, P const* v, other_side<P> const& other, P* out);
  /// out[k * width + i] = sum over j of tile v[j * rows + k], for k < rows.
  void (*sums)(P const* tile, index_t count, P const* v, P* out);
  /// out[k * width + i] = sum over j of tile (x[k * width + i] - y[j * rows + k]).
  void (*sums_of_differences)(P const* tile, index_t count, P const* x, P const* y, P* out);
  /// out[j] += the sum over the lanes of columns[j].
  void (*add_lanes)(P const* columns, index_t count, double* out);
  /// sums[i] += made[i]
  void (*add)(P const* made, index_t count, double* sums);

  P (*exp2)(P x);  // as the kernels have it
};

}  // namespace subspan::detail
