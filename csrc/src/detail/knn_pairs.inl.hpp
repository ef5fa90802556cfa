// Compiled once per level, inside the namespace of the level; no include guard on purpose. Products of
// bfloat16 pairs, for CPUs of the highest level that have AVX512_BF16: the engine once more, with one
// instruction set more.

#if defined(__x86_64__) && SUBSPAN_VECTOR_BYTES == 64
namespace with_pairs {
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16")
#endif
// clang-format off
#include "detail/widen.inl.hpp"
#include "detail/product_tile.inl.hpp"
#include "detail/row_selector.inl.hpp"
#include "detail/tile_engine.inl.hpp"
#include "detail/knn_kernels.inl.hpp"
// clang-format on

struct by_pairs {
  template <int Step>
  [[gnu::always_inline]] static void accumulate_into(tile_shape<float>::sums& sum, index_t depth,
                                                     float const* a, float const* b) {
    using shape = tile_shape<float>;
    for (index_t r = 0; r < depth; ++r, a += Step, b += shape::width) {
      __m512i right[shape::vectors];
#pragma GCC unroll 8
      for (int v = 0; v < shape::vectors; ++v) right[v] = _mm512_loadu_si512(b + v * shape::lanes);
#pragma GCC unroll 8
      for (int i = 0; i < shape::rows; ++i) {
        __m512i const left = _mm512_set1_epi32(std::bit_cast<int>(a[i]));
#pragma GCC unroll 8
        for (int v = 0; v < shape::vectors; ++v)
          sum[i][v] = (tile_shape<float>::vector)_mm512_dpbf16_ps((__m512)sum[i][v], (__m512bh)left,
                                                                  (__m512bh)right[v]);
      }
    }
  }
};

inline std::uint32_t rounded_bits(float v) {
  auto const bits = std::bit_cast<std::uint32_t>(v);
  return (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
}

inline void pack_pairs(float const* panel, index_t depth, index_t width, float* out,
                       double* residuals) {
  std::fill_n(residuals, width, 0.0);
  for (index_t r = 0; r < depth; r += 2, panel += 2 * width, out += width) {
    bool const second = r + 1 < depth;
#pragma omp simd
    for (index_t c = 0; c < width; ++c) {
      float const low = panel[c], high = second ? panel[width + c] : 0.0f;
      std::uint32_t const l = rounded_bits(low), h = rounded_bits(high);
      double const from_low = static_cast<double>(low - std::bit_cast<float>(l));
      double const from_high = static_cast<double>(high - std::bit_cast<float>(h));
      residuals[c] += from_low * from_low + from_high * from_high;
      out[c] = std::bit_cast<float>(h | l >> 16);
    }
  }
}

inline constexpr detail::pair_kernels table{&pack_pairs, &select_neighbors<float, by_pairs>,
                                            &select_of_both<float, by_pairs>};
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
}  // namespace with_pairs

inline detail::pair_kernels const* find_pair_kernels() {
  return __builtin_cpu_supports("avx512bf16") ? &with_pairs::table : nullptr;
}
#else
inline detail::pair_kernels const* find_pair_kernels() { return nullptr; }
#endif
