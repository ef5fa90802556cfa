#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "detail/knn_kernels.hpp"
#include "subspan/knn.hpp"

/// What a search for neighbours knows before any product, and THE distance.

namespace subspan::detail {

/// What the user gets for a distance as it is kept: see knn_data::distance.
inline double as_asked(metric how, double distance) {
  return how == metric::euclidean       ? std::sqrt(distance)
         : how == metric::inner_product ? -distance
                                        : distance;
}

/// A neighbour; the smaller one is the nearer.
struct ranked {
  double distance;
  index_t id;
  friend constexpr auto operator<=>(ranked const&, ranked const&) = default;
};

/// Where results go.
struct knn_output {
  strided_view<double, 2> distances;
  strided_view<index_t, 2> indices;

  /// The first k of `found`, which is in order.
  void deliver(metric how, index_t row, std::vector<ranked> const& found) const {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    for (index_t j = 0; j < indices.shape[1]; ++j) {
      bool const there = j < static_cast<index_t>(found.size());
      double const distance = there ? found[static_cast<std::size_t>(j)].distance : 0;
      indices(row, j) = there ? found[static_cast<std::size_t>(j)].id : -1;
      distances(row, j) = as_asked(how, there ? distance : infinity);
    }
  }
};

/// x, y and what is known about them before any product.
template <class T>
class knn_data {
 public:
  knn_data(context const& ctx, exact_kernels<T> const& exact, strided_view<T const, 2> x,
           strided_view<T const, 2> y, std::optional<strided_view<std::uint8_t const, 2>> mask,
           index_t most, knn_params params)
      : ctx(ctx), exact(exact), x(x), y(y), mask(mask), params(params) {
    if (mask && mask->shape[0] == 1) {
      for (index_t j = 0; j < y.shape[0]; ++j)
        if ((*mask)(0, j) != 0) column_ids.push_back(j);
      this->mask.reset();
      compacted = true;
    }
    if (cosine()) {
      measure(x, x_norm);
      measure(y, y_norm);
      // Of pairs that a mask allows any of them may be the first.
      index_t const enough = this->mask ? y.shape[0] : most;
      for (index_t j = 0; j < columns() && static_cast<index_t>(zeros.size()) <= enough; ++j)
        if (y_norm[static_cast<std::size_t>(id(j))] == 0) zeros.push_back(id(j));
    }
  }

  /// Finds the shift, from up to k_sample rows of y, and whether scores are exact: panels need both.
  /// A common offset is what a shift is to remove.
  void take_sample() {
    index_t const d = depth(), step = std::max<index_t>(columns() / k_sample, 1);
    shift.assign(static_cast<std::size_t>(d), 0.0);
    if constexpr (std::is_integral_v<T>) {
      exact_scores = !cosine();
      if (exact_scores) return;
    }
    workspace<double> wide(ctx, padded_depth());
    bool integers = !cosine();
    double rows = 0;
    for (index_t c = 0; c < columns(); c += step) {
      exact.widen(row_of(y, id(c)), y.strides[1], d, wide.data());
      double sum = 0;
      for (index_t r = 0; r < d; ++r) sum += std::abs(wide[r]);
      if (!std::isfinite(sum)) continue;
      double const norm = cosine() ? y_norm[static_cast<std::size_t>(id(c))] : 1;
      if (norm == 0) continue;
      rows += 1;
      for (index_t r = 0; r < d; ++r) {
        integers = integers && small_integer(wide[r]);
        shift[static_cast<std::size_t>(r)] +=
            (wide[r] / norm - shift[static_cast<std::size_t>(r)]) / rows;
      }
    }
    if (integers && all_integers(y) && all_integers(x)) {
      exact_scores = true;
      std::fill(shift.begin(), shift.end(), 0.0);
    }
  }

  bool cosine() const { return params.metric == metric::cosine; }
  /// Scores of i, j and of j, i are the same, and there are enough rows for this to pay.
  bool is_symmetric() const {
    return x.data == y.data && x.shape == y.shape && x.strides == y.strides && !compacted &&
           !mask && !by_product() && rows() >= k_worth_symmetry;
  }
  bool by_product() const { return params.metric == metric::inner_product; }
  index_t rows() const { return x.shape[0]; }
  index_t columns() const {
    return compacted ? static_cast<index_t>(column_ids.size()) : y.shape[0];
  }
  index_t depth() const { return x.shape[1]; }
  index_t id(index_t column) const {
    return compacted ? column_ids[static_cast<std::size_t>(column)] : column;
  }
  bool allows(index_t row, index_t neighbor) const {
    return !(params.exclude_self && row == neighbor) && (!mask || (*mask)(row, neighbor) != 0);
  }
  static T const* row_of(strided_view<T const, 2> const& a, index_t i) {
    return a.data + i * a.strides[0];
  }
  index_t padded_depth() const { return divide_up(depth(), k_exact_step) * k_exact_step; }

  /// THE distance of row i of x, widened to `wide`, and row j of y. Of inner products the negative, so
  /// that the smaller one is always the better. Not finite: no neighbours.
  double distance(double const* wide, index_t i, index_t j) const {
    T const* const other = row_of(y, j);
    index_t const stride = y.strides[1], d = depth();
    if (by_product()) return -exact.product(wide, other, stride, d);
    if (!cosine()) return exact.difference(wide, other, stride, d);
    double const norms = x_norm[static_cast<std::size_t>(i)] * y_norm[static_cast<std::size_t>(j)];
    if (norms == 0) return 1;
    return std::max(1 - exact.product(wide, other, stride, d) / norms, 0.0);
  }
  bool is_within(double distance, double radius) const {
    if (!std::isfinite(distance)) return false;
    double const asked = as_asked(params.metric, distance);
    return by_product() ? asked >= radius : asked <= radius;
  }

  /// Row i of x in double, padded; whether it is finite: otherwise it has no neighbours.
  bool widen_query(index_t i, double* wide) const {
    exact.widen(row_of(x, i), x.strides[1], depth(), wide);
    return std::all_of(wide, wide + depth(), [](double v) { return std::isfinite(v); });
  }

  /// Adds row j of y to what was found for row i of x, which is `wide`, if it is a neighbour at all.
  void consider(double const* wide, index_t i, index_t j, std::vector<ranked>& found) const {
    if (!allows(i, j)) return;
    double const distance = this->distance(wide, i, j);
    if (std::isfinite(distance)) found.push_back({distance, j});
  }

  /// The same for the best `most` of `count` candidates, whose order is lost. Returns the score of the
  /// last of them: nothing that is left out has a better one.
  template <class P>
  double consider_best(double const* wide, index_t i,
                       typename row_selector<P>::entry_type* candidates, index_t count,
                       index_t most, std::vector<ranked>& found) const {
    if (count > most) {
      std::nth_element(candidates, candidates + (most - 1), candidates + count, std::greater<>());
      count = most;
    }
    double last = std::numeric_limits<double>::infinity();
    for (index_t c = 0; c < count; ++c) {
      last = std::min(last, static_cast<double>(score_order<P>::score(key_of(candidates[c]))));
      consider(wide, i, id(index_of(candidates[c])), found);
    }
    return last;
  }

  context const& ctx;
  exact_kernels<T> const& exact;
  strided_view<T const, 2> x, y;
  std::optional<strided_view<std::uint8_t const, 2>> mask;  // per pair
  knn_params params;
  bool compacted = false;
  std::vector<index_t> column_ids;
  std::vector<double> x_norm, y_norm;  // cosine
  std::vector<index_t> zeros;  // ids of the first zero rows of y, at least one more than `most`
                               // unless there are no more; cosine
  std::vector<double> shift;   // near the mean of y's rows, as they are packed
  bool exact_scores = false;   // sums of small integers: float makes no error

 private:
  void measure(strided_view<T const, 2> const& a, std::vector<double>& norms) const {
    norms.resize(static_cast<std::size_t>(a.shape[0]));
    parallel_for(ctx, a.shape[0], 256, [&](index_t begin, index_t end) {
      workspace<double> wide(ctx, padded_depth());
      for (index_t i = begin; i < end; ++i) {
        exact.widen(row_of(a, i), a.strides[1], depth(), wide.data());
        norms[static_cast<std::size_t>(i)] =
            std::sqrt(exact.product(wide.data(), row_of(a, i), a.strides[1], depth()));
      }
    });
  }

  static bool small_integer(double v) { return std::abs(v) <= 2048 && v == std::nearbyint(v); }
  double bound_of_integers() const {
    return std::sqrt((1 << 22) / std::max(1.0, static_cast<double>(depth())));
  }

  /// Whether all elements are integers so small that the sums of their products are exact in float.
  bool all_integers(strided_view<T const, 2> const& a) const {
    std::vector<char> good(static_cast<std::size_t>(divide_up(a.shape[0], 256)), 1);
    double const bound = bound_of_integers();
    parallel_for(ctx, a.shape[0], 256, [&](index_t begin, index_t end) {
      workspace<double> wide(ctx, padded_depth());
      for (index_t i = begin; i < end; ++i) {
        exact.widen(row_of(a, i), a.strides[1], depth(), wide.data());
        for (index_t r = 0; r < depth(); ++r)
          if (!(std::abs(wide[r]) <= bound && small_integer(wide[r]))) {
            good[static_cast<std::size_t>(begin / 256)] = 0;
            return;
          }
      }
    });
    return std::count(good.begin(), good.end(), 0) == 0;
  }

  static constexpr index_t k_sample = 512;
  static constexpr index_t k_worth_symmetry = 8192;
};

}  // namespace subspan::detail
