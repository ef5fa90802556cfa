// Compiled once per level, inside the namespace of the level; no include guard on purpose.

/// Rounds to storage: to nearest, ties to even. Branch-free, so that loops over it vectorise.
template <class T>
inline T narrow_one(float x) {
  auto const bits = std::bit_cast<std::uint32_t>(x);
  std::uint32_t const sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  bool const nan = magnitude > 0x7f800000u;
  if constexpr (std::is_same_v<T, bfloat16>) {
    std::uint32_t const rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    return {static_cast<std::uint16_t>(nan ? bits >> 16 | 0x40u : rounded >> 16)};
  } else if constexpr (std::is_same_v<T, half>) {
    // Normal numbers: drop 13 bits and move the exponent's bias from 127 to 15.
    std::uint32_t const rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    std::uint32_t const normal = std::min((rounded >> 13) - (112u << 10), 0x7c00u);
    // Below 2^-14: the unit of 0.5 is that of half's subnormals, so the addition rounds.
    float const shifted = std::bit_cast<float>(magnitude) + 0.5f;
    std::uint32_t const tiny = std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u;
    std::uint32_t const finite = magnitude < 0x38800000u ? tiny : normal;
    return {static_cast<std::uint16_t>(sign | (nan ? 0x7e00u : finite))};
  } else {
    return x;
  }
}
template <class T>
inline T narrow_one(double x) {
  return x;
}
