// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/pack_kernels.hpp, detail/interleave.inl.hpp, and <immintrin.h> on x86-64.
//
// A pack holds the same element of W matrices, one in each SIMD lane. Arithmetic is elementwise, so
// that a matrix's result depends neither on its neighbours nor on W.

template <class T, int W>
struct pack_of {
  typedef T vector __attribute__((vector_size(sizeof(T) * W)));
};
template <class T, int W>
using pack = typename pack_of<T, W>::vector;

#include "detail/vectors.inl.hpp"

/// The greatest power of two that is at most x, for normal x > 0; else 1.
template <class V>
inline V power_of_two(V x) {
  using T = lane_type<V>;
  using bits = lane_mask<V>;
  bits const exponent = (bits)all_lanes<V>(std::numeric_limits<T>::infinity());
  V const power = (V)((bits)x & exponent);
  return power > 0 ? power : all_lanes<V>(1);
}

/// How the matrices of a pack are scaled: every entry by `up`, then by 1 / `power`. Both are powers
/// of two, so that this is exact, and bring the greatest entry into [1, 2). Matrices that are not
/// finite become zero.
template <class V>
struct pack_scale {
  V up, power;
  lane_mask<V> finite;

  pack_scale() : up(all_lanes<V>(1)), power(up), finite(up == up) {}
  /// most: the greatest magnitude.
  pack_scale(V most, lane_mask<V> all_finite) : finite(all_finite) {
    using T = lane_type<V>;
    // Subnormal numbers become normal before their exponent is taken.
    constexpr T tiny = sizeof(T) == 4 ? T(0x1p-64) : T(0x1p-512);
    constexpr T big = sizeof(T) == 4 ? T(0x1p85) : T(0x1p563);
    most = finite ? most : V{};
    up = most < tiny ? all_lanes<V>(big) : all_lanes<V>(1);
    power = power_of_two(most * up);
  }

  void apply(V* a, index_t rows, index_t columns, index_t pitch) const {
    V const down = 1 / power;
    for (index_t i = 0; i < rows; ++i)
      for (index_t j = 0; j < columns; ++j) {
        V& x = a[i * pitch + j];
        x = finite ? x * up * down : V{};
      }
  }
  V undo(V value) const { return value * power / up; }
};

/// The greatest magnitude in each lane, and whether all are finite.
template <class V>
struct pack_extent {
  V most{};
  lane_mask<V> finite = V{} == V{};

  pack_extent(V const* a, index_t rows, index_t columns, index_t pitch) {
    for (index_t i = 0; i < rows; ++i)
      for (index_t j = 0; j < columns; ++j) {
        V const x = magnitude(a[i * pitch + j]);
        finite &= x <= std::numeric_limits<lane_type<V>>::max();
        most = larger(x, most);
      }
  }
};

/// Elements [0, n) of `count` <= W lines, line l at from + l * line, times `stride`.
template <class V>
void load_line(lane_type<V> const* from, index_t line, index_t stride, index_t n, index_t count,
               V* to) {
  using T = lane_type<V>;
  constexpr index_t width = lane_count<V>;
  T* const out = reinterpret_cast<T*>(to);
  if (stride == 1 && width >= 4 && count == width) {
    index_t const whole = n / 4 * 4;
    for (index_t l = 0; l < width; l += 4)
      interleave<T>(from + l * line, line, whole, width, out + l);
    for (index_t j = whole; j < n; ++j)
      for (index_t l = 0; l < width; ++l) out[j * width + l] = from[l * line + j];
    return;
  }
  for (index_t j = 0; j < n; ++j) {
    for (index_t l = 0; l < count; ++l) out[j * width + l] = from[l * line + j * stride];
    for (index_t l = count; l < width; ++l) out[j * width + l] = 0;
  }
}

/// The [m, n] matrices of a task, element (i, j) at to[i * pitch + j]; lanes without a matrix are
/// zero.
template <class V>
void load_pack(detail::pack_input<lane_type<V>> const& a, V* to, index_t pitch) {
  for (index_t i = 0; i < a.rows; ++i)
    load_line<V>(a.data + i * a.row_stride, a.next, a.col_stride, a.cols, a.count, to + i * pitch);
}

template <class V>
pack_scale<V> scale_pack(V* a, index_t rows, index_t columns, index_t pitch) {
  pack_extent<V> const extent(a, rows, columns, pitch);
  pack_scale<V> const scale(extent.most, extent.finite);
  scale.apply(a, rows, columns, pitch);
  return scale;
}

/// Lane l of column order[j][l] of the [rows, columns] pack goes to out + l * next + i * row_stride
/// + j * col_stride. `order` null: in order. Lanes that are not finite become NaN. Zeros lose their
/// sign, which may depend on what the other lanes needed.
template <class V>
void store_pack(V const* from, index_t rows, index_t columns, index_t pitch,
                lane_mask<V> const* order, lane_mask<V> finite,
                detail::pack_output<lane_type<V>> const& to, index_t count) {
  using T = lane_type<V>;
  constexpr index_t width = lane_count<V>, k_rows = 8;  // rows that stay in the first cache
  T const* const in = reinterpret_cast<T const*>(from);
  auto const* const sorted = reinterpret_cast<lane_index<V> const*>(order);
  lane_index<V> valid[width];
  __builtin_memcpy(valid, &finite, sizeof valid);
  for (index_t begin = 0; begin < rows; begin += k_rows) {
    index_t const end = std::min(rows, begin + k_rows);
    for (index_t l = 0; l < count; ++l) {
      T* const out = to.data + l * to.next;
      for (index_t j = 0; j < columns; ++j) {
        index_t const column = sorted != nullptr ? sorted[j * width + l] : j;
        T const* const source = in + column * width + l;
        T* const target = out + j * to.col_stride;
        if (valid[l] != 0)
          for (index_t i = begin; i < end; ++i)
            target[i * to.row_stride] = source[i * pitch * width] + T(0);  // -0 becomes 0
        else
          for (index_t i = begin; i < end; ++i)
            target[i * to.row_stride] = std::numeric_limits<T>::quiet_NaN();
      }
    }
  }
}
