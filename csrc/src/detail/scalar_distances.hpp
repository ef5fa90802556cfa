#pragma once

#include <algorithm>
#include <numeric>

#include "detail/kernel_points.hpp"
#include "detail/workspace.hpp"

/// Sums of |x_i - x_j| |z_i - z_j| over j for all i, in n log n steps. The product is
/// (x_i - x_j) (z_i - z_j) times the signs of both, which are known from the places of j in the
/// orders of x and of z. So the sums follow from those of 1, x, z and x z over the points before i in
/// either order, and in both: the latter come from sorting by z what is sorted by x, by merging.

namespace subspan::detail {

/// Sums over a set of points, and what they make of the sum of (x_i - x_j) (z_i - z_j).
struct point_sums {
  double count = 0, x = 0, z = 0, xz = 0;

  void add(double of_x, double of_z) {
    count += 1;
    x += of_x;
    z += of_z;
    xz += of_x * of_z;
  }
  void add(point_sums const& other) {
    count += other.count;
    x += other.x;
    z += other.z;
    xz += other.xz;
  }
  double products(double of_x, double of_z) const {
    return (count * of_x * of_z - of_x * z) + (xz - of_z * x);
  }
};

/// A column of numbers over a bandwidth, from their mean, and their ascending order.
template <class T>
class sorted_line {
 public:
  sorted_line(context const& ctx, rows_view<T> column, double bandwidth)
      : size_(column.shape[0]), values_(ctx, size_), order_(ctx, size_) {
    double mean, count;
    mean_of(column, &mean, &count);
    for (index_t i = 0; i < size_; ++i)
      values_[i] = (static_cast<double>(column(i, 0)) - mean) / bandwidth;
    std::iota(order_.data(), order_.data() + size_, index_t{0});
    std::sort(order_.data(), order_.data() + size_, [&](index_t a, index_t b) {
      return values_[a] < values_[b] || (values_[a] == values_[b] && a < b);
    });
    // Equal numbers have distance 0 from each other, and from their mean.
    if (size_ > 0 && values_[at(0)] == values_[at(size_ - 1)])
      std::fill_n(values_.data(), size_, 0.0);
  }

  index_t size() const { return size_; }
  double operator[](index_t i) const { return values_[i]; }
  index_t at(index_t place) const { return order_[place]; }

  /// out[i] = sum over j of |v_i - v_j|
  void sum_distances(double* out) const {
    double below = 0, above = 0;
    for (index_t i = 0; i < size_; ++i) above += values_[i];
    for (index_t p = 0; p < size_; ++p) {
      double const v = values_[at(p)];
      above -= v;
      out[at(p)] =
          (static_cast<double>(p) * v - below) + (above - static_cast<double>(size_ - 1 - p) * v);
      below += v;
    }
  }

 private:
  index_t size_;
  workspace<double> values_;
  workspace<index_t> order_;
};

/// before[i]: the sums over all points that come before i in both orders.
template <class T>
void sum_before_in_both(context const& ctx, sorted_line<T> const& x, sorted_line<T> const& z,
                        point_sums* before) {
  index_t const n = x.size();
  workspace<index_t> memory(ctx, 2 * n);
  index_t *from = memory.data(), *to = from + n;
  for (index_t p = 0; p < n; ++p) {
    from[p] = x.at(p);
    before[p] = {};
  }
  for (index_t size = 1; size < n; size *= 2, std::swap(from, to))
    for (index_t first = 0; first < n; first += 2 * size) {
      index_t const middle = std::min(first + size, n), last = std::min(middle + size, n);
      point_sums passed;
      index_t left = first, right = middle;
      for (index_t out = first; out < last; ++out) {
        bool const take_left = left < middle && (right == last || z[from[left]] <= z[from[right]]);
        index_t const i = take_left ? from[left++] : from[right++];
        if (take_left)
          passed.add(x[i], z[i]);
        else
          before[i].add(passed);
        to[out] = i;
      }
    }
}

/// out[i] = sum over j of |x_i - x_j| |z_i - z_j|
template <class T>
void sum_scalar_products(context const& ctx, sorted_line<T> const& x, sorted_line<T> const& z,
                         double* out) {
  index_t const n = x.size();
  workspace<point_sums> before(ctx, n);
  sum_before_in_both(ctx, x, z, before.data());
  point_sums all, passed;
  for (index_t i = 0; i < n; ++i) all.add(x[i], z[i]);
  for (index_t i = 0; i < n; ++i)
    out[i] = 4 * before[i].products(x[i], z[i]) + all.products(x[i], z[i]);
  for (auto const* line : {&x, &z}) {
    passed = {};
    for (index_t p = 0; p < n; ++p) {
      index_t const i = line->at(p);
      out[i] -= 2 * passed.products(x[i], z[i]);
      passed.add(x[i], z[i]);
    }
  }
}

}  // namespace subspan::detail
