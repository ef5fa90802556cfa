#pragma once

#include "detail/kernel_tiles.hpp"

/// What joint_kernel_sums.cpp compiles once per level: two tiles of values, of the same pairs.

namespace subspan::detail {

template <class P>
struct joint_kernels {
  kernel_kernels<P> tiles;  // of these the size, scores, apply and what gradients need

  /// Turns scores into score^power.
  void (*raise)(P* tile, index_t count, P power);
  /// Turns scores into slopes of it, score^(power - 1), times weights; 0 where the score is 0.
  void (*raise_slopes)(P* tile, P const* weights, index_t count, P power);
  /// out[i] = sum over j of tile.
  void (*sum)(P const* tile, index_t count, P* out);
  /// out[i] = sum over j of tile other, out[width + i] = sum over j of other.
  void (*sum_both)(P const* tile, P const* other, index_t count, P* out);
  /// tile = tile (g_i + g_j) + (h_i + h_j); of rows g and h [2][width], of columns [count][2].
  void (*weigh_both)(P* tile, index_t count, P const* of_rows, P const* of_columns);
};

}  // namespace subspan::detail
