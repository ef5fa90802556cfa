// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// <immintrin.h> on x86-64.
//
// What GCC's vector types lack, lane by lane.

template <class V>
using lane_type = std::remove_cvref_t<decltype(std::declval<V&>()[0])>;
template <class V>
constexpr int lane_count = static_cast<int>(sizeof(V) / sizeof(lane_type<V>));
template <class V>
using lane_mask = decltype(std::declval<V>() < std::declval<V>());
template <class V>
using lane_index = lane_type<lane_mask<V>>;

template <class V>
inline V all_lanes(lane_type<V> x) {
  return x - V{};
}

template <class V>
inline V magnitude(V x) {
  using bits = lane_mask<V>;
  return (V)((bits)x & std::numeric_limits<lane_index<V>>::max());
}

template <class V>
inline V with_sign_of(V size, V sign) {
  using bits = lane_mask<V>;
  return (V)((bits)size | ((bits)sign & std::numeric_limits<lane_index<V>>::min()));
}

template <class V>
inline V larger(V x, V y) {
  return x > y ? x : y;
}

template <class V>
inline V smaller(V x, V y) {
  return x < y ? x : y;
}

template <class M>
inline bool any(M mask) {
  lane_type<M> all = 0;
  for (int i = 0; i < lane_count<M>; ++i) all |= mask[i];
  return all != 0;
}

template <class V>
inline V square_root(V x) {
#if defined(__x86_64__)
  if constexpr (std::is_same_v<lane_type<V>, float>) {
#if SUBSPAN_VECTOR_BYTES == 64
    if constexpr (sizeof(V) == 64) return (V)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
#endif
#if SUBSPAN_VECTOR_BYTES >= 32
    if constexpr (sizeof(V) == 32) return (V)_mm256_sqrt_ps((__m256)x);
#endif
    if constexpr (sizeof(V) == 16) return (V)_mm_sqrt_ps((__m128)x);
  } else {
#if SUBSPAN_VECTOR_BYTES == 64
    if constexpr (sizeof(V) == 64) return (V)_mm512_maskz_sqrt_pd(0xff, (__m512d)x);
#endif
#if SUBSPAN_VECTOR_BYTES >= 32
    if constexpr (sizeof(V) == 32) return (V)_mm256_sqrt_pd((__m256d)x);
#endif
    if constexpr (sizeof(V) == 16) return (V)_mm_sqrt_pd((__m128d)x);
  }
#else
  for (int i = 0; i < lane_count<V>; ++i) x[i] = std::sqrt(x[i]);
  return x;
#endif
}
