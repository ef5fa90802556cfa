// Compiled once per level, inside the namespace of the level; no include guard on purpose. The encoder's
// first pass by bfloat16 pairs, for CPUs of the highest level that have AVX512_BF16.

#if defined(__x86_64__) && SUBSPAN_VECTOR_BYTES == 64
namespace with_pairs {
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16")
#endif
// clang-format off
#include "detail/narrow.inl.hpp"
#include "detail/widen.inl.hpp"
#include "detail/product_tile.inl.hpp"
#include "detail/row_selector.inl.hpp"
#include "detail/tile_engine.inl.hpp"
#include "detail/tile_pairs.inl.hpp"
#include "detail/encode_kernels.inl.hpp"
// clang-format on

/// Four registers of sums: so many that none waits for itself.
template <class T>
void scores_of_few(context const& ctx, T const* x, index_t stride, float const* shift,
                   detail::vector_set<T> const& vectors, float* out) {
  using vector = tile_shape<float>::vector;
  using in_memory = tile_shape<float>::in_memory;
  constexpr index_t lanes = tile_shape<float>::lanes, many = 4, width = many * lanes;
  index_t const depth = vectors.depth;
  detail::workspace<float> row(ctx, depth), panel(ctx, width * depth);
  prepare_line<T, float>(x, stride, 0, depth, shift, nullptr, row.data());
  for (index_t first = 0; first < vectors.count; first += width) {
    index_t const count = std::min(width, vectors.count - first);
    pack_lines<T, float>(vectors, {}, first, count, width, panel.data());
    vector sum[many] = {};
    float const* right = panel.data();
    for (index_t r = 0; r < depth; ++r, right += width)
#pragma GCC unroll 4
      for (index_t v = 0; v < many; ++v)
        sum[v] += row[r] * *reinterpret_cast<in_memory const*>(right + v * lanes);
    float all[width];
    __builtin_memcpy(all, sum, sizeof all);
    std::copy_n(all, count, out + first);
  }
}

template <class T>
inline constexpr detail::encode_pair_kernels<T> table{
    &panel_squares<float>, &pack_pairs, &select_block<float, by_pairs>, &scores_of_few<T>};
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
}  // namespace with_pairs

template <class T>
detail::encode_pair_kernels<T> const* find_pair_kernels() {
  return __builtin_cpu_supports("avx512bf16") ? &with_pairs::table<T> : nullptr;
}
#else
template <class T>
detail::encode_pair_kernels<T> const* find_pair_kernels() {
  return nullptr;
}
#endif
