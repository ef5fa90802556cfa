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
#include "detail/tile_pairs.inl.hpp"
#include "detail/knn_kernels.inl.hpp"
// clang-format on

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
