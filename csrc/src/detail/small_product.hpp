#pragma once

#include <cstdint>

#include "detail/lanes.hpp"

/// Body of the CUDA kernel that multiplies a batch of tall matrices by small ones.

namespace subspan::gpu {

/// out[b] = a[b] w[b]: a [rows, inner] and w [inner, cols] in C order, out of any strides.
template <class T>
struct small_product {
  static constexpr int tile = 64, depth = 16, threads = 256;
  static constexpr int shared = depth * (tile + 1) + depth * tile;  // elements

  T const *a, *w;
  T* out;
  std::int64_t out_step, out_row, out_col, batch;
  int rows, inner, cols;

  SUBSPAN_DEVICE static constexpr std::int64_t tiles(int rows, int cols) {
    return static_cast<std::int64_t>((rows + tile - 1) / tile) * ((cols + tile - 1) / tile);
  }

  /// One tile of one matrix by a block of `threads`: 4 x 4 elements each.
  template <class Lanes>
  SUBSPAN_DEVICE void run(Lanes const& lanes, std::int64_t job, T* memory) const {
    T *const left = memory, *const right = memory + depth * (tile + 1);
    std::int64_t const each = tiles(rows, cols), b = job / each;
    int const at = static_cast<int>(job % each);
    int const across = (cols + tile - 1) / tile;
    int const i0 = at / across * tile, j0 = at % across * tile;
    T const* const ab = a + b * rows * inner;
    T const* const wb = w + b * inner * cols;
    int const tx = lanes.rank() % 16, ty = lanes.rank() / 16;
    T sum[4][4] = {};
    for (int l0 = 0; l0 < inner; l0 += depth) {
      for (int e = lanes.rank(); e < tile * depth; e += threads) {
        int const i = e / depth, l = e % depth;
        bool const in = i0 + i < rows && l0 + l < inner;
        left[l * (tile + 1) + i] =
            in ? ab[static_cast<std::int64_t>(i0 + i) * inner + l0 + l] : T(0);
      }
      for (int e = lanes.rank(); e < tile * depth; e += threads) {
        int const l = e / tile, j = e % tile;
        bool const in = j0 + j < cols && l0 + l < inner;
        right[e] = in ? wb[static_cast<std::int64_t>(l0 + l) * cols + j0 + j] : T(0);
      }
      lanes.sync();
      SUBSPAN_UNROLL
      for (int l = 0; l < depth; ++l) {
        SUBSPAN_UNROLL
        for (int p = 0; p < 4; ++p) {
          SUBSPAN_UNROLL
          for (int q = 0; q < 4; ++q)
            sum[p][q] += left[l * (tile + 1) + ty + 16 * p] * right[l * tile + tx + 16 * q];
        }
      }
      lanes.sync();
    }
    SUBSPAN_UNROLL
    for (int p = 0; p < 4; ++p) {
      SUBSPAN_UNROLL
      for (int q = 0; q < 4; ++q) {
        int const i = i0 + ty + 16 * p, j = j0 + tx + 16 * q;
        if (i < rows && j < cols) out[b * out_step + i * out_row + j * out_col] = sum[p][q];
      }
    }
  }
};

}  // namespace subspan::gpu
