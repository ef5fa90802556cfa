#pragma once

#include "detail/kernel_panels.hpp"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

/// Products of float by tensor cores. A row is multiplied by a power of two that brings its greatest
/// coordinate to 2^14 .. 2^15, and each coordinate x split into float16 h + l, which leave less than
/// 2^-22 |x|, or 2^-39 of the greatest. Of (h + l) (h' + l') the products h h', h l' and l h' are made
/// exactly and summed in float, so that an error is at most about 12 half ulp of the sum of |x y|
/// besides that of the sums: what a chain of fused multiply-adds makes of a dozen coordinates.

namespace subspan::gpu {

/// The registers that lanes need of a panel lie as they are loaded: [steps][h, l][8][32 lanes].
struct alignas(16) split_lot {
  std::uint32_t at[4];
};
inline constexpr int k_split_depth = 16;  // coordinates of a step
inline constexpr int k_split_lots = 2 * 8 * k_warp;

constexpr int split_steps(int depth) { return (depth + k_split_depth - 1) / k_split_depth; }

/// The nearest float16 of |x| <= 2^15, as bits; NaN stays NaN.
SUBSPAN_DEVICE std::uint32_t half_of(float x) {
#ifdef __CUDA_ARCH__
  return __half_as_ushort(__float2half_rn(x));
#else
  if (x != x) return 0x7e00;
  std::uint32_t const sign = x < 0 ? 0x8000 : 0;
  float const size = std::abs(x);
  int const exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
  // 1024 .. 2048 in units of the last place; the leading one adds to the exponent.
  auto const units = static_cast<std::uint32_t>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return sign | (units + (static_cast<std::uint32_t>(exponent + 14) << 10));
#endif
}
SUBSPAN_DEVICE float float_of(std::uint32_t half) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(static_cast<unsigned short>(half)));
#else
  int const exponent = static_cast<int>(half >> 10 & 31);
  auto const fraction = static_cast<float>(half & 1023);
  float const size = exponent == 31  ? std::numeric_limits<float>::quiet_NaN()
                     : exponent == 0 ? std::ldexp(fraction, -24)
                                     : std::ldexp(fraction + 1024, exponent - 25);
  return (half >> 15) != 0 ? -size : size;
#endif
}

/// The power of two that rows of this greatest coordinate are divided by.
SUBSPAN_DEVICE float split_factor(float greatest) {
  if (!(greatest > 0)) return 1;  // NaN does not show here
  int exponent = std::ilogb(greatest) - 14;
  if (exponent < -126) exponent = -126;
  return std::ldexp(1.0f, exponent);
}

/// Of point i of panels [depth][rows].
SUBSPAN_DEVICE float split_factor_of(float const* panels, index_t i, int depth) {
  constexpr int rows = kernel_shape<float>::rows;
  float const* const from = panels + i / rows * depth * rows + i % rows;
  float most = 0;
  for (int c = 0; c < depth; ++c) {
    float const size = std::abs(from[c * rows]);
    if (size > most) most = size;
  }
  return split_factor(most);
}

/// Lot i of all panels, as the left factor (points y) or the right one (points x).
template <bool Left>
SUBSPAN_DEVICE void split_points(float const* panels, float const* factors, index_t i, int depth,
                                 split_lot* out) {
  constexpr int rows = kernel_shape<float>::rows;
  int const steps = split_steps(depth);
  int const lane = static_cast<int>(i % k_warp), g = lane / 4, t = lane % 4;
  int const group = static_cast<int>(i / k_warp % 8);
  int const part = static_cast<int>(i / (k_warp * 8) % 2);
  int const step = static_cast<int>(i / k_split_lots % steps);
  index_t const panel = i / k_split_lots / steps;
  split_lot made;
  SUBSPAN_UNROLL
  for (int r = 0; r < 4; ++r) {
    // Left: rows g and g + 8 of [16][16], columns from 2 t, then from 2 t + 8 on. Right: two
    // matrices [16][8], rows from 2 t, then from 2 t + 8 on.
    int const point = group * 16 + g + (Left ? r % 2 : r / 2) * 8;
    int const first = step * k_split_depth + 2 * t + (Left ? r / 2 : r % 2) * 8;
    float const over = 1 / factors[panel * rows + point];
    std::uint32_t pair = 0;
    SUBSPAN_UNROLL
    for (int q = 0; q < 2; ++q) {
      int const c = first + q;
      float const x = c < depth ? panels[(panel * depth + c) * rows + point] * over : 0.0f;
      std::uint32_t bits = half_of(x);
      if (part == 1) bits = half_of(x - float_of(bits));
      pair |= bits << (16 * q);
    }
    made.at[r] = pair;
  }
  out[i] = made;
}

/// A tile of x and a run of y, split, with factors and norms [rows].
struct split_run {
  split_lot const *x, *y;  // null: not split
  float const *x_factors, *y_factors, *x_norms, *y_norms;
};

/// tile[y][x] = score(<x, y>, |x|^2, |y|^2). A warp makes 64 x 32 of it.
template <class Lanes, class Score>
SUBSPAN_DEVICE void multiply_split(Lanes const& lanes, kernel_memory<float>& memory,
                                   split_run const& run, int depth, Score const& score) {
  using shape = kernel_shape<float>;
  constexpr int down = 4, across = 4;  // products [16][8]
  int const lane = lanes.lane(), below = lanes.warp() / 4, beside = lanes.warp() % 4;
  float sum[down][across][4];
  SUBSPAN_UNROLL
  for (int r = 0; r < down; ++r) {
    SUBSPAN_UNROLL
    for (int c = 0; c < across; ++c) {
      SUBSPAN_UNROLL
      for (int i = 0; i < 4; ++i) sum[r][c][i] = 0;
    }
  }
  split_lot const* y = run.y + below * down * k_warp + lane;
  split_lot const* x = run.x + beside * (across / 2) * k_warp + lane;
  SUBSPAN_NO_UNROLL
  for (int step = split_steps(depth); step > 0; --step, x += k_split_lots, y += k_split_lots) {
    split_lot right[2][across / 2];
    SUBSPAN_UNROLL
    for (int part = 0; part < 2; ++part) {
      SUBSPAN_UNROLL
      for (int c = 0; c < across / 2; ++c) right[part][c] = x[(part * 8 + c) * k_warp];
    }
    SUBSPAN_UNROLL
    for (int r = 0; r < down; ++r) {
      split_lot const high = y[r * k_warp], low = y[(8 + r) * k_warp];
      SUBSPAN_UNROLL
      for (int c = 0; c < across; ++c) {
        auto const& [of_high, of_low] = right;
        int const at = c % 2 * 2;
        lanes.multiply_halves(sum[r][c], low.at, of_high[c / 2].at[at], of_high[c / 2].at[at + 1]);
        lanes.multiply_halves(sum[r][c], high.at, of_low[c / 2].at[at], of_low[c / 2].at[at + 1]);
        lanes.multiply_halves(sum[r][c], high.at, of_high[c / 2].at[at], of_high[c / 2].at[at + 1]);
      }
    }
  }
  float x_factor[across][2], x_norm[across][2];
  int const of_x = beside * 32 + lane % 4 * 2;
  SUBSPAN_UNROLL
  for (int c = 0; c < across; ++c) {
    SUBSPAN_UNROLL
    for (int q = 0; q < 2; ++q) {
      x_factor[c][q] = run.x_factors[of_x + c * 8 + q];
      x_norm[c][q] = run.x_norms[of_x + c * 8 + q];
    }
  }
  lanes.sync();  // the tile has been read
  SUBSPAN_UNROLL
  for (int r = 0; r < down; ++r) {
    SUBSPAN_UNROLL
    for (int half = 0; half < 2; ++half) {
      int const j = below * 64 + r * 16 + half * 8 + lane / 4;
      float const factor = run.y_factors[j], y_norm = run.y_norms[j];
      float* const row = memory.tile + j * shape::pitch + of_x;
      SUBSPAN_UNROLL
      for (int c = 0; c < across; ++c) {
        SUBSPAN_UNROLL
        for (int q = 0; q < 2; ++q) {
          row[c * 8 + q] =
              score(sum[r][c][half * 2 + q] * (factor * x_factor[c][q]), x_norm[c][q], y_norm);
        }
      }
    }
  }
}

}  // namespace subspan::gpu
