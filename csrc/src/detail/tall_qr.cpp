#include "detail/tall_qr.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>

#include "detail/dtypes.hpp"
#include "detail/pack_batch.hpp"

#define SUBSPAN_FILE "tall_qr.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {
#include "detail/pack_levels.inl.hpp"

template <class T>
using tall_vector = pack<T, k_wide_pack<T>>;

template <class T>
index_t tall_bytes(index_t m, index_t n) {
  pack_qr<tall_vector<T>> const qr(m, n);
  return (m * qr.pitch + qr.tau_count()) * static_cast<index_t>(sizeof(tall_vector<T>));
}

template <class T>
detail::extent_of_entries factor_tall(detail::pack_input<T> const& a,
                                      detail::pack_output<T> const& r, void* memory) {
  using V = tall_vector<T>;
  index_t const m = a.rows, n = a.cols;
  pack_qr<V> const qr(m, n);
  V* const entries = static_cast<V*>(memory);
  load_pack<V>(a, entries, qr.pitch);
  pack_extent<V> const extent(entries, m, n, qr.pitch);
  if (any(~extent.finite)) return detail::extent_of_entries::nonfinite;
  constexpr T big = sizeof(T) == 4 ? T(0x1p80) : T(0x1p900);
  constexpr T tiny = sizeof(T) == 4 ? T(0x1p-100) : T(0x1p-960);
  if (any((extent.most > big) | ((extent.most < tiny) & (extent.most > 0))))
    return detail::extent_of_entries::extreme;
  qr.factor(entries, entries + m * qr.pitch);
  for (index_t l = 0; l < a.count; ++l) {
    T* const out = r.data + l * r.next;
    for (index_t i = 0; i < n; ++i)
      for (index_t j = 0; j < n; ++j)
        out[i * r.row_stride + j * r.col_stride] = j < i ? T(0) : entries[i * qr.pitch + j][l];
  }
  return detail::extent_of_entries::usual;
}

template <class T>
void multiply_tall(detail::pack_input<T> const& c, index_t m, void* memory,
                   detail::pack_output<T> const& q, void* scratch) {
  using V = tall_vector<T>;
  index_t const n = c.cols;
  pack_qr<V> const qr(m, n);
  V const* const entries = static_cast<V const*>(memory);
  V* const product = static_cast<V*>(scratch);
  load_pack<V>(c, product, qr.pitch);
  qr.multiply(entries, entries + m * qr.pitch, product);
  V const zero{};
  store_pack<V>(product, m, n, qr.pitch, nullptr, zero == zero, q, c.count);
}

template <class T>
constexpr detail::tall_kernels<T> tall_table = {k_wide_pack<T>, tall_bytes<T>, factor_tall<T>,
                                                multiply_tall<T>};

}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace subspan::detail {
namespace {

/// Rows of a block: many more than columns, so that triangles are a small part, and few enough that a
/// pack of them stays in the second cache. A function of n alone, and so are the bits.
index_t block_rows(index_t n) { return std::max<index_t>(4 * n, 4096 / n); }

}  // namespace

/// Full blocks lie in packs, `width` at a time; what is left is one block of fewer rows.
template <class T>
struct tall_qr<T>::level {
  T const* a;
  index_t m, n, row_stride, col_stride, block, full, pack_bytes;
  tall_kernels<T> const& kernels;
  workspace<T> triangles;       // of all blocks, [blocks() * n, n]
  workspace<std::byte> memory;  // of all packs

  level(context const& ctx, T const* data, index_t rows, index_t columns, index_t row,
        index_t column)
      : a(data),
        m(rows),
        n(columns),
        row_stride(row),
        col_stride(column),
        block(block_rows(columns)),
        // The last block has at least n rows, so that each has a triangle of that size.
        full(std::max<index_t>((rows - columns) / block, 0)),
        pack_bytes((SUBSPAN_PICK(tall_table<T>).bytes(block + columns, columns) + 63) / 64 * 64),
        kernels(SUBSPAN_PICK(tall_table<T>)),
        triangles(ctx, (full + 1) * columns * columns),
        memory(ctx, packs() * pack_bytes) {}

  index_t last_rows() const { return m - full * block; }
  index_t packs() const { return (full + kernels.width - 1) / kernels.width + 1; }

  /// each(first block, blocks, rows of each, its memory) for all packs, the last block apart.
  template <class Each>
  void for_each(context const& ctx, Each&& each) const {
    parallel_for(ctx, packs(), 1, [&](index_t begin, index_t end) {
      for (index_t p = begin; p < end; ++p) {
        index_t const first = std::min(p * kernels.width, full);
        std::byte* const own = memory.data() + p * pack_bytes;
        if (p + 1 == packs())
          each(full, index_t{1}, last_rows(), own);
        else
          each(first, std::min(kernels.width, full - first), block, own);
      }
    });
  }
};

template <class T>
tall_qr<T>::tall_qr(context const& ctx, T const* a, index_t m, index_t n, index_t row_stride,
                    index_t col_stride)
    : ctx_(ctx), n_(n) {
  levels_[count_++] = std::make_unique<level>(ctx, a, m, n, row_stride, col_stride);
  while (levels_[count_ - 1]->full > 0) {
    level const& below = *levels_[count_ - 1];
    levels_[count_++] =
        std::make_unique<level>(ctx, below.triangles.data(), (below.full + 1) * n, n, n, 1);
  }
}

template <class T>
tall_qr<T>::~tall_qr() = default;

template <class T>
extent_of_entries tall_qr<T>::factor(T* r) {
  for (int i = 0; i < count_; ++i) {
    level const& l = *levels_[i];
    std::atomic<int> worst{static_cast<int>(extent_of_entries::usual)};
    l.for_each(ctx_, [&](index_t first, index_t count, index_t rows, std::byte* memory) {
      pack_input<T> const input{l.a + first * l.block * l.row_stride,
                                l.block * l.row_stride,
                                l.row_stride,
                                l.col_stride,
                                rows,
                                n_,
                                count};
      pack_output<T> const triangle{l.triangles.data() + first * n_ * n_, n_ * n_, n_, 1};
      int const found = static_cast<int>(l.kernels.factor(input, triangle, memory));
      int known = worst;
      while (found > known && !worst.compare_exchange_weak(known, found)) {
      }
    });
    if (worst != 0) return static_cast<extent_of_entries>(worst.load());
  }
  std::copy_n(levels_[count_ - 1]->triangles.data(), n_ * n_, r);
  return extent_of_entries::usual;
}

template <class T>
void tall_qr<T>::multiply(T const* c, T* q, index_t row_stride, index_t col_stride) {
  std::copy_n(c, n_ * n_, levels_[count_ - 1]->triangles.data());
  for (int i = count_ - 1; i >= 0; --i) {
    level const& l = *levels_[i];
    // Every block's part of the product replaces its triangle in the level below.
    T* const out = i == 0 ? q : levels_[i - 1]->triangles.data();
    index_t const row = i == 0 ? row_stride : n_, column = i == 0 ? col_stride : 1;
    l.for_each(ctx_, [&](index_t first, index_t count, index_t rows, std::byte* memory) {
      pack_input<T> const part{l.triangles.data() + first * n_ * n_, n_ * n_, n_, 1, n_, n_, count};
      workspace<std::byte> scratch(ctx_, l.pack_bytes);
      l.kernels.multiply(part, rows, memory,
                         {out + first * l.block * row, l.block * row, row, column}, scratch.data());
    });
  }
}

template class tall_qr<float>;
template class tall_qr<double>;

}  // namespace subspan::detail

#endif  // SUBSPAN_ONCE
