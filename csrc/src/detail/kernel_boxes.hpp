#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "detail/kernel_points.hpp"

/// What a cut-off needs: points that are near each other side by side, the boxes that hold them,
/// and the distance beyond which a kernel is too small.

namespace subspan::detail {

/// Orders ids so that every `unit` of them in turn lie near each other: halves along the longest
/// side of their box, over and over, at multiples of the unit.
template <class T>
void sort_in_space(rows_view<T> const& points, double const* scale, index_t* ids, index_t count,
                   index_t unit) {
  if (count <= unit || points.shape[1] == 0) return;
  index_t longest = 0;
  double length = -1;
  for (index_t c = 0; c < points.shape[1]; ++c) {
    double low = std::numeric_limits<double>::infinity(), high = -low;
    for (index_t i = 0; i < count; ++i) {
      double const v = static_cast<double>(points(ids[i], c));
      low = std::min(low, v), high = std::max(high, v);
    }
    if ((high - low) * scale[c] > length) length = (high - low) * scale[c], longest = c;
  }
  // NaN goes last, so that there is an order.
  auto const before = [&](index_t a, index_t b) {
    T const u = points(a, longest), v = points(b, longest);
    return u < v || (v != v && u == u);
  };
  index_t const half = divide_up(divide_up(count, unit), index_t{2}) * unit;
  std::nth_element(ids, ids + half, ids + count, before);
  sort_in_space(points, scale, ids, half, unit);
  sort_in_space(points, scale, ids + half, count - half, unit);
}

/// The box of the first `count` points of a panel, low[d] and high[d]; with a NaN all of space.
template <class T>
void box_of(T const* panel, index_t depth, index_t width, index_t count, T* box) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  for (index_t c = 0; c < depth; ++c, panel += width) {
    T low = infinity, high = -infinity;
    bool number = true;
    for (index_t i = 0; i < count; ++i) {
      low = std::min(low, panel[i]), high = std::max(high, panel[i]);
      number &= panel[i] == panel[i];
    }
    box[c] = number ? low : -infinity;
    box[depth + c] = number ? high : infinity;
  }
}

/// The smaller box that holds both, in place of the first.
template <class T>
void join_boxes(T* box, T const* other, index_t depth) {
  for (index_t c = 0; c < depth; ++c) {
    box[c] = std::min(box[c], other[c]);
    box[depth + c] = std::max(box[depth + c], other[depth + c]);
  }
}

/// Whether points of two boxes can be nearer than `reach`. Coordinates were rounded once, which
/// moves a distance by at most 2 u times their lengths.
template <class T>
bool can_meet(T const* a, T const* b, index_t depth, double reach) {
  constexpr double unit = std::numeric_limits<T>::epsilon();
  double square = 0, size = 0;
  for (index_t c = 0; c < depth; ++c) {
    double const below = static_cast<double>(b[c]) - static_cast<double>(a[depth + c]),
                 above = static_cast<double>(a[c]) - static_cast<double>(b[depth + c]),
                 gap = std::max(std::max(below, above), 0.0);
    square += gap * gap;
    double const of_a = std::max(std::abs(a[c]), std::abs(a[depth + c])),
                 of_b = std::max(std::abs(b[c]), std::abs(b[depth + c]));
    size += of_a * of_a + of_b * of_b;
  }
  // NaN and infinity of open boxes say yes.
  return !(std::sqrt(square) > reach * (1 + 1e-12) + 2 * unit * std::sqrt(size));
}

/// A kernel as a function of D.
inline double profile(kernel_params const& how, double d) {
  double const t3 = std::sqrt(3.0) * d, t5 = std::sqrt(5.0) * d;
  switch (how.function) {
    case kernel_function::gaussian:
      return std::exp(-d * d / 2);
    case kernel_function::laplacian:
      return std::exp(-d);
    case kernel_function::matern32:
      return (1 + t3) * std::exp(-t3);
    case kernel_function::matern52:
      return (1 + t5 + t5 * t5 / 3) * std::exp(-t5);
    case kernel_function::cauchy:
      return 1 / (1 + d * d);
    case kernel_function::rational_quadratic:
      return std::exp(-how.alpha * std::log1p(d * d / (2 * how.alpha)));
    default:
      return std::numeric_limits<double>::infinity();  // does not decrease
  }
}

/// The distance of scaled points from which on all values are at most the cut-off; infinity
/// without.
inline double reach_of(kernel_params const& how) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  if (how.cutoff <= 0) return infinity;
  double low = 0, high = 1;
  while (profile(how, high) > how.cutoff) {
    if (high > 1e150) return infinity;
    low = high;
    high *= 2;
  }
  for (int i = 0; i < 100; ++i) {
    double const middle = low + (high - low) / 2;
    (profile(how, middle) > how.cutoff ? low : high) = middle;
  }
  return high * scale_of(how);
}

}  // namespace subspan::detail
