#pragma once

#include <cmath>

#include "detail/adam_kernels.hpp"
#include "detail/lanes.hpp"

/// The bodies of the kernels of adam.cu: elements as adam.cpp has them, rows by a team of threads.

namespace subspan::gpu {

SUBSPAN_DEVICE float fused(float a, float b, float c) { return std::fma(a, b, c); }
SUBSPAN_DEVICE double fused(double a, double b, double c) { return std::fma(a, b, c); }

/// One element. Its gradient is scale (g - along w).
template <class T>
SUBSPAN_DEVICE void step_element(detail::adam_task<T> const& task, index_t i, T along, T scale) {
  detail::adam_numbers<T> const& c = task.numbers;
  T const w = task.w[i], m = task.m[i];
  T const gradient = scale * fused(-along, w, task.g[i]);
  // Interpolation from whichever end is nearer.
  bool const near = c.first < T(0.5);
  T const first = fused(near ? c.first : c.first - 1, gradient - m, near ? m : gradient);
  T const second = fused(c.second * gradient, gradient, c.second_keep * task.v[i]);
  task.m[i] = first;
  task.v[i] = second;
  task.w[i] = c.decay * w + c.rate * first / (std::sqrt(second) / c.correction + c.eps);
}

/// The sum over the elements i of a row of term(i), in double.
template <class Team, class Term>
SUBSPAN_DEVICE double sum_of_row(Team const& team, index_t d, Term const& term) {
  double sum = 0;
  for (index_t i = team.rank(); i < d; i += team.size()) sum += term(i);
  return team.sum(sum);
}

/// How much of w there is in g.
template <class Team, class T>
SUBSPAN_DEVICE double share_of_row(Team const& team, T const* g, T const* w, index_t d) {
  double const size = sum_of_row(
      team, d, [=](index_t i) { return static_cast<double>(w[i]) * static_cast<double>(w[i]); });
  double const both = sum_of_row(
      team, d, [=](index_t i) { return static_cast<double>(g[i]) * static_cast<double>(w[i]); });
  return size == 0 ? 0 : both / size;
}

/// The sum of squares of g, or of what along w leaves of it.
template <class Team, class T>
SUBSPAN_DEVICE double squares_of_row(Team const& team, T const* g, T const* w, double along,
                                     index_t d) {
  return sum_of_row(team, d, [=](index_t i) {
    double const rest =
        static_cast<double>(g[i]) - (along == 0 ? 0 : along * static_cast<double>(w[i]));
    return rest * rest;
  });
}

/// A row.
template <class Team, class T>
SUBSPAN_DEVICE void step_row(Team const& team, detail::adam_task<T> const& task, index_t row) {
  index_t const d = task.d, begin = row * d;
  T* const w = task.w + begin;
  T const* const g = task.g + begin;
  double const along = task.remove_parallel ? share_of_row(team, g, w, d) : 0;
  double scale = task.scale;
  if (task.row_limit > 0) {
    double const length = scale * std::sqrt(squares_of_row(team, g, w, along, d));
    if (length > task.row_limit) scale *= task.row_limit / length;
  }
  for (index_t i = team.rank(); i < d; i += team.size())
    step_element(task, begin + i, static_cast<T>(along), static_cast<T>(scale));
  if (!task.unit_rows) return;
  // A thread reads what it wrote itself.
  T const length = static_cast<T>(std::sqrt(sum_of_row(
      team, d, [=](index_t i) { return static_cast<double>(w[i]) * static_cast<double>(w[i]); })));
  if (length == 0) return;
  for (index_t i = team.rank(); i < d; i += team.size()) w[i] /= length;
}

/// The squares of rows first, first + pace, ... of `elements` in all; w null: of g itself, where the
/// last row may be shorter.
template <class Team, class T>
SUBSPAN_DEVICE double squares_of_rows(Team const& team, T const* g, T const* w, index_t elements,
                                      index_t d, index_t first, index_t pace) {
  double sum = 0;
  for (index_t begin = first * d; begin < elements; begin += pace * d) {
    index_t const length = elements - begin < d ? elements - begin : d;
    T const* const unit = w == nullptr ? nullptr : w + begin;
    double const along = w == nullptr ? 0 : share_of_row(team, g + begin, unit, length);
    sum += squares_of_row(team, g + begin, unit, along, length);
  }
  return sum;
}

}  // namespace subspan::gpu
