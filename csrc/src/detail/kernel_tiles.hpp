#pragma once

#include "detail/kernel_functions.hpp"
#include "detail/tile_engine.hpp"

/// What kernel_matvec.cpp compiles once per level. The points x stand in the lanes, one panel of
/// `width` at a time, against up to k_run points y: tile[j * width + i] belongs to y_j and x_i, stays
/// in the first cache, and is scores first, then values, then forgotten.

namespace subspan::detail {

inline constexpr index_t k_run = k_rows_of_task;

inline constexpr index_t k_few = 3;  // coordinates that stay in registers with all else

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

template <class P>
struct kernel_kernels {
  tile_size size;  // points y of a panel, points x

  void (*scores)(score_form form, score_task<P> const& task, P* tile);

  /// out[i] = sum over j of K v[j], of scores.
  void (*weigh)(kernel_params const& how, P const* tile, index_t count, P const* v, P* out);
  /// The same from points of up to k_few coordinates, by differences.
  void (*weigh_points)(kernel_params const& how, score_task<P> const& task, P const* v, P* out);
  /// Turns scores into values.
  void (*apply)(kernel_params const& how, P* tile, index_t count);
  /// Turns scores into slopes times weights.
  void (*apply_slopes)(kernel_params const& how, P* tile, P const* weights, index_t count);
  /// Turns scores into 2^(s - greatest), where `greatest` [width] has seen all scores, and says by
  /// what the values before are to be multiplied.
  void (*apply_below)(P* tile, index_t count, P* greatest, P* change);

  /// out[i] = sum over j of tile v[j].
  void (*sum)(P const* tile, index_t count, P const* v, P* out);
  /// out[k * width + i] = sum over j of tile v[j * rows + k], for k < rows.
  void (*sums)(P const* tile, index_t count, P const* v, P* out);
  /// out[k * width + i] = sum over j of tile (x[k * width + i] - y[j * rows + k]).
  void (*sums_of_differences)(P const* tile, index_t count, P const* x, P const* y, P* out);

  P (*exp2)(P x);  // as the kernels have it
};

}  // namespace subspan::detail
