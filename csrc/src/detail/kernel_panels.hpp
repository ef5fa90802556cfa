#pragma once

#include <cmath>
#include <limits>

#include "detail/lanes.hpp"
#include "subspan/types.hpp"

/// Panels of points on the device, and products of two of them.

namespace subspan::gpu {

/// What one load moves.
template <class T>
struct alignas(16) lot_of {
  static constexpr int size = 16 / static_cast<int>(sizeof(T));
  T at[size];
};

template <class T>
struct kernel_shape {
  static constexpr int lot = lot_of<T>::size;
  static constexpr int side = 16, threads = side * side, warps = threads / k_warp;
  static constexpr int own = 2 * lot;       // points of each side that a thread has scores of
  static constexpr int rows = side * own;   // points x of a tile, points y of a run
  static constexpr int pitch = rows + own;  // of the tile: rows that lie in different banks
  static constexpr int depth = 8;           // coordinates of a stage
  static_assert(rows == k_warp * lot && depth * rows == threads * lot && rows <= threads);

  /// The point that is the i-th of thread t of a side.
  static SUBSPAN_DEVICE int point(int t, int i) {
    return t * lot + i % lot + i / lot * (side * lot);
  }
};

template <class T>
struct kernel_memory {
  using shape = kernel_shape<T>;
  alignas(16) T tile[shape::rows * shape::pitch];  // [y][x]
  alignas(16) T stage[2][2][shape::depth * shape::rows];
  alignas(16) T partial[shape::warps * shape::rows];
  alignas(16) T greatest[shape::rows];
};

/// Coordinates are packed in panels [depth][rows], filled up with zeros to a multiple of this.
inline constexpr int k_depth_step = 4;

/// sum[y][x] += the products of two panels, or the squares of differences.
template <bool Differences, class T, class Lanes>
SUBSPAN_DEVICE void multiply_panels(Lanes const& lanes, kernel_memory<T>& memory, T const* x,
                                    T const* y, int depth,
                                    T (&sum)[kernel_shape<T>::own][kernel_shape<T>::own]) {
  using shape = kernel_shape<T>;
  using lot = lot_of<T>;
  constexpr int own = shape::own, half = shape::side * shape::lot;
  int const at = lanes.rank() * shape::lot, size = depth * shape::rows;
  int const of_x = lanes.rank() % shape::side * shape::lot;
  int const of_y = lanes.rank() / shape::side * shape::lot;
  SUBSPAN_UNROLL
  for (int r = 0; r < own; ++r) SUBSPAN_UNROLL
  for (int c = 0; c < own; ++c) sum[r][c] = 0;
  lot next[2] = {};
  auto const fetch = [&](int begin) {
    if (begin + at >= size) return;
    next[0] = *reinterpret_cast<lot const*>(x + begin + at);
    next[1] = *reinterpret_cast<lot const*>(y + begin + at);
  };
  auto const deposit = [&](int buffer) {
    *reinterpret_cast<lot*>(memory.stage[buffer][0] + at) = next[0];
    *reinterpret_cast<lot*>(memory.stage[buffer][1] + at) = next[1];
  };
  constexpr int stage = shape::depth * shape::rows;
  fetch(0);
  deposit(0);
  lanes.sync();
  int buffer = 0;
  SUBSPAN_NO_UNROLL
  for (int begin = 0; begin < size; begin += stage, buffer ^= 1) {
    if (begin + stage < size) fetch(begin + stage);
    int const count = (size - begin < stage ? size - begin : stage) / shape::rows;
    SUBSPAN_NO_UNROLL
    for (int k = 0; k < count; k += k_depth_step) {
      SUBSPAN_UNROLL
      for (int q = 0; q < k_depth_step; ++q) {
        T const* const left = memory.stage[buffer][1] + (k + q) * shape::rows + of_y;
        T const* const right = memory.stage[buffer][0] + (k + q) * shape::rows + of_x;
        lot const a[2] = {*reinterpret_cast<lot const*>(left),
                          *reinterpret_cast<lot const*>(left + half)};
        lot const b[2] = {*reinterpret_cast<lot const*>(right),
                          *reinterpret_cast<lot const*>(right + half)};
        SUBSPAN_UNROLL
        for (int r = 0; r < own; ++r) SUBSPAN_UNROLL
        for (int c = 0; c < own; ++c) {
          T const of_a = a[r / shape::lot].at[r % shape::lot];
          T const of_b = b[c / shape::lot].at[c % shape::lot];
          if constexpr (Differences) {
            T const apart = of_b - of_a;
            sum[r][c] += apart * apart;
          } else {
            sum[r][c] += of_a * of_b;
          }
        }
      }
    }
    if (begin + stage < size) deposit(buffer ^ 1);
    lanes.sync();
  }
}

}  // namespace subspan::gpu
