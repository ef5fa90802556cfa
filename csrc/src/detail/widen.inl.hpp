// Compiled once per level, inside the namespace of the level; no include guard on purpose.

inline float widen_one(half h) {
  std::uint32_t const sign = static_cast<std::uint32_t>(h.bits & 0x8000u) << 16;
  std::uint32_t const magnitude = static_cast<std::uint32_t>(h.bits & 0x7fffu) << 13;
  // 2^112 moves the exponent from half's bias to float's and normalises subnormals on the way.
  float const scaled = std::bit_cast<float>(magnitude) * 5.192296858534828e33f;
  std::uint32_t const nonfinite = (h.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(scaled) | nonfinite | sign);
}
inline float widen_one(bfloat16 b) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(b.bits) << 16);
}
inline float widen_one(float x) { return x; }
inline double widen_one(double x) { return x; }
template <class I>
  requires std::is_integral_v<I>
inline I widen_one(I x) {
  return x;
}

/// One strided row to a contiguous row of P.
template <class T, class P>
void widen(T const* in, index_t stride, index_t n, P* out) {
  if (stride == 1)
#pragma omp simd
    for (index_t j = 0; j < n; ++j) out[j] = static_cast<P>(widen_one(in[j]));
  else
    for (index_t j = 0; j < n; ++j) out[j] = static_cast<P>(widen_one(in[j * stride]));
}
