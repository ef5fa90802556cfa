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
#include "detail/transpose.inl.hpp"
#include "detail/encode_in_place.inl.hpp"
#include "detail/encode_kernels.inl.hpp"
// clang-format on

/// One register of sums for each row: so many that none waits for itself. Meanwhile the rows that
/// come next are fetched.
template <class T>
void scores_of_few(detail::vector_set<T> const& rows, index_t ahead, float const* shift,
                   float const* panel, index_t width, float* out) {
  using vector = tile_shape<float>::vector;
  using in_memory = tile_shape<float>::in_memory;
  static_assert(tile_shape<float>::lanes == detail::k_latents_at_once);
  constexpr index_t most = detail::k_rows_at_once, chunk = 256, line = 16;
  T const* next[most];
  for (index_t i = 0; i < most; ++i)
    next[i] = rows[std::min(rows.count + i, rows.count + ahead - 1)];
  alignas(64) float x[most][chunk];
  vector sum[most] = {};
  for (index_t first = 0; first < rows.depth; first += chunk) {
    index_t const n = std::min(chunk, rows.depth - first);
    for (index_t i = 0; i < most; ++i) {
      T const* const in = rows[std::min(i, rows.count - 1)] + first * rows.stride;
      if (rows.stride == 1)
#pragma omp simd
        for (index_t r = 0; r < n; ++r) x[i][r] = widen_one(in[r]) - shift[first + r];
      else
        for (index_t r = 0; r < n; ++r) x[i][r] = widen_one(in[r * rows.stride]) - shift[first + r];
    }
    for (index_t from = 0; from < n; from += line) {
#pragma GCC unroll 8
      for (index_t i = 0; i < most; ++i) __builtin_prefetch(next[i] + (first + from) * rows.stride);
      for (index_t r = from; r < std::min(from + line, n); ++r, panel += width) {
        vector const latents = *reinterpret_cast<in_memory const*>(panel);
#pragma GCC unroll 8
        for (index_t i = 0; i < most; ++i) sum[i] += x[i][r] * latents;
      }
    }
  }
#pragma GCC unroll 8
  for (index_t i = 0; i < most; ++i)
    *reinterpret_cast<in_memory*>(out + i * detail::k_latents_at_once) = sum[i];
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
