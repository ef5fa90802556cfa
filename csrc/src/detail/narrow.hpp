#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "subspan/types.hpp"

namespace subspan::detail {

/// x as T, rounded to nearest, ties to even; NaN stays NaN.
template <class T, class P>
constexpr T narrow(P x) {
  if constexpr (std::is_same_v<T, half>) {
    auto const bits = std::bit_cast<std::uint32_t>(static_cast<float>(x));
    auto const sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
    std::uint32_t const magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
    if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};
    if (magnitude < 0x38800000u) {  // subnormal: the sum's last bit is half's
      float const moved = std::bit_cast<float>(magnitude) + 0.5f;
      return {
          static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(moved) - 0x3f000000u))};
    }
    std::uint32_t const rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return {static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    auto const bits = std::bit_cast<std::uint32_t>(static_cast<float>(x));
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>(bits >> 16 | 0x40u)};
    return {static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
  } else {
    return static_cast<T>(x);
  }
}

/// The exact value of a stored element; kernels have `widen` for whole rows.
constexpr float widened(half h) {
  std::uint32_t const sign = static_cast<std::uint32_t>(h.bits & 0x8000u) << 16;
  std::uint32_t const magnitude = static_cast<std::uint32_t>(h.bits & 0x7fffu) << 13;
  float const scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  std::uint32_t const nonfinite = (h.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(scaled) | nonfinite | sign);
}
constexpr float widened(bfloat16 b) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(b.bits) << 16);
}
template <class T>
constexpr T widened(T x) {
  return x;
}

}  // namespace subspan::detail
