#pragma once

#include <cstdint>
#include <type_traits>

#include "detail/lanes.hpp"
#include "detail/row_selector.hpp"

/// What a block of the CUDA topk reads: rows of any format as entries, and candidates again.

namespace subspan::gpu {

template <class T>
SUBSPAN_DEVICE T fetch_add(T* where, T v) {
#ifdef __CUDA_ARCH__
  return atomicAdd(where, v);
#else
  T const before = *where;
  *where += v;
  return before;
#endif
}
SUBSPAN_DEVICE void fetch_min(int* where, int v) {
#ifdef __CUDA_ARCH__
  atomicMin(where, v);
#else
  if (v < *where) *where = v;
#endif
}
SUBSPAN_DEVICE int bits_set(std::uint32_t v) {
#ifdef __CUDA_ARCH__
  return __popc(v);
#else
  return __builtin_popcount(v);
#endif
}

/// Sum over the lanes up to this one.
template <class Lanes>
SUBSPAN_DEVICE int lane_prefix(Lanes const& lanes, int v) {
  SUBSPAN_UNROLL
  for (int d = 1; d < k_warp; d *= 2) {
    int const other = lanes.shuffle(v, lanes.lane() >= d ? lanes.lane() - d : 0);
    if (lanes.lane() >= d) v += other;
  }
  return v;
}

/// Which bits of an element of type U (an unsigned integer of its width) make it better. Keys are of
/// 32 bits or 64; narrower elements fill the upper bits. A NaN has the key 0, other floats have not.
template <class U, bool Float>
struct topk_format {
  using bits_type = U;
  using key_type = std::conditional_t<sizeof(U) == 8, std::uint64_t, std::uint32_t>;
  static constexpr int shift = 8 * static_cast<int>(sizeof(key_type) - sizeof(U));
  static constexpr key_type sign = key_type{1} << (8 * sizeof(key_type) - 1);

  key_type flip;      // exclusive or with the shifted bits
  key_type infinity;  // shifted, of floats

  SUBSPAN_DEVICE key_type key(U element) const {
    key_type const bits = (static_cast<key_type>(element) << shift) ^ flip;
    if constexpr (Float) {
      key_type const ordered = (bits & sign) != 0 ? key_type{0} - bits : bits + sign;
      return (bits & ~sign) > infinity ? key_type{0} : ordered;
    } else {
      return bits;
    }
  }
};

/// 16 bytes that are loaded at once.
template <class U>
struct alignas(16) topk_vector {
  U part[16 / sizeof(U)];
};

/// Elements of one row, `stride` apart.
template <class U, bool Float>
struct topk_row {
  using key_type = typename topk_format<U, Float>::key_type;
  using entry_type = detail::entry<key_type>;
  static constexpr int width = 16 / sizeof(U);
  static constexpr int count = sizeof(U) == 8 ? 8 : 16;  // of a thread at a time
  static constexpr bool ascending = true;                // later tiles hold greater indices only

  topk_format<U, Float> format;
  U const* data;
  std::int64_t stride;

  struct tile {
    key_type keys[count];
    std::uint32_t first;  // modulo 2^32: the first tile may start before the row
    int step;
    SUBSPAN_DEVICE entry_type at(int i) const {
      auto const offset = static_cast<std::uint32_t>(i / width * step + i % width);
      return detail::make_entry<key_type>(keys[i], first + offset);
    }
    SUBSPAN_DEVICE bool passes(int i, key_type least, entry_type) const { return keys[i] >= least; }
  };

  /// Where tiles of [begin, ...) start, so that vectors are aligned.
  SUBSPAN_DEVICE std::int64_t start(std::int64_t begin) const {
    if (stride != 1) return begin;
    auto const address = reinterpret_cast<std::uintptr_t>(data + begin);
    return begin - static_cast<std::int64_t>(address % 16 / sizeof(U));
  }

  /// Elements of the tile that starts at `from`, and which of them lie in [begin, end).
  template <class Lanes>
  SUBSPAN_DEVICE std::uint32_t load(Lanes const& lanes, std::int64_t from, std::int64_t begin,
                                    std::int64_t end, tile& out) const {
    std::int64_t const first = from + lanes.rank() * width;
    out.first = static_cast<std::uint32_t>(first);
    out.step = lanes.size() * width;
    if (stride == 1 && from >= begin && from + std::int64_t{lanes.size()} * count <= end) {
      U const* at = data + first;
      SUBSPAN_UNROLL
      for (int v = 0; v < count / width; ++v, at += out.step) {
        auto const whole = *reinterpret_cast<topk_vector<U> const*>(at);
        SUBSPAN_UNROLL
        for (int i = 0; i < width; ++i) out.keys[v * width + i] = format.key(whole.part[i]);
      }
      return (1u << count) - 1;
    }
    std::uint32_t valid = 0;
    SUBSPAN_UNROLL
    for (int i = 0; i < count; ++i) {
      std::int64_t const j = first + i / width * out.step + i % width;
      bool const inside = j >= begin && j < end;
      out.keys[i] = format.key(inside ? data[j * stride] : U{0});
      valid |= static_cast<std::uint32_t>(inside) << i;
    }
    return valid;
  }
};

/// Entries that were selected before, in any order.
template <class Key>
struct topk_candidates {
  using key_type = Key;
  using entry_type = detail::entry<Key>;
  static constexpr int count = 8;
  static constexpr bool ascending = false;

  entry_type const* data;

  struct tile {
    entry_type entries[count];
    SUBSPAN_DEVICE entry_type at(int i) const { return entries[i]; }
    SUBSPAN_DEVICE bool passes(int i, key_type, entry_type cut) const { return entries[i] >= cut; }
  };

  SUBSPAN_DEVICE std::int64_t start(std::int64_t begin) const { return begin; }

  template <class Lanes>
  SUBSPAN_DEVICE std::uint32_t load(Lanes const& lanes, std::int64_t from, std::int64_t begin,
                                    std::int64_t end, tile& out) const {
    std::uint32_t valid = 0;
    SUBSPAN_UNROLL
    for (int i = 0; i < count; ++i) {
      std::int64_t const j = from + i * lanes.size() + lanes.rank();
      bool const inside = j >= begin && j < end;
      out.entries[i] = inside ? data[j] : entry_type{};
      valid |= static_cast<std::uint32_t>(inside) << i;
    }
    return valid;
  }
};

}  // namespace subspan::gpu
