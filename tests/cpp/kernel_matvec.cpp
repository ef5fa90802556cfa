// Sums over all pairs without a matrix: a density, distances on a line, and attention.
#include <cmath>
#include <cstdio>
#include <vector>

#include "check.hpp"
#include "subspan/subspan.hpp"

using subspan::index_t;

int main() {
  // Points 0, 1, ..., n - 1 on a line: distances sum to (i (i + 1) + (n - 1 - i) (n - i)) / 2.
  index_t const n = 300;
  std::vector<double> x, ones(n, 1.0), out(n);
  for (index_t i = 0; i < n; ++i) x.push_back(1000.0 + static_cast<double>(i));
  auto const points = subspan::make_view<3>(static_cast<double const*>(x.data()), {1, n, 1});
  auto const weights = subspan::make_view<3>(static_cast<double const*>(ones.data()), {1, n, 1});
  auto const sums = subspan::make_view<3>(out.data(), {1, n, 1});
  double const unit = 1;
  auto const bandwidth = subspan::make_view<1>(&unit, {1});

  subspan::kernel_params how;
  how.function = subspan::kernel_function::distance;
  subspan::kernel_matvec<double>({}, points, points, weights, bandwidth, sums, how);
  for (index_t i = 0; i < n; ++i) {
    double const wanted = static_cast<double>(i * (i + 1) + (n - 1 - i) * (n - i)) / 2;
    check(close(out[static_cast<std::size_t>(i)], wanted, 1e-13), "distances add up");
  }

  // A Gaussian of width 1 on the integers sums to the root of 2 pi, but for 1e-8 of it.
  how.function = subspan::kernel_function::gaussian;
  subspan::kernel_matvec<double>({}, points, points, weights, bandwidth, sums, how);
  check(close(out[n / 2], std::sqrt(2 * std::acos(-1.0)), 1e-7), "the density is even");

  // Softmax weights sum to one, and their logarithmic mass is that of the last point here.
  std::vector<double> mass(n);
  how.function = subspan::kernel_function::softmax;
  subspan::kernel_matvec<double>({}, points, points, weights, bandwidth, sums, how,
                                 subspan::make_view<2>(mass.data(), {1, n}));
  for (index_t i = 0; i < n; ++i) {
    auto const at = static_cast<std::size_t>(i);
    check(close(out[at], 1, 1e-14), "weights sum to one");
    check(close(mass[at], x[at] * x.back(), 1e-12), "the greatest product is the mass");
  }

  // The gradient of sum_j |x_i - x_j| is the number of points on the left less that on the right.
  std::vector<double> slope(n);
  how.function = subspan::kernel_function::distance;
  subspan::kernel_matvec_backward<double>({}, points, points, weights, weights, bandwidth,
                                          subspan::make_view<3>(slope.data(), {1, n, 1}), how);
  check(slope[0] == static_cast<double>(1 - n) && slope[n - 1] == static_cast<double>(n - 1),
        "gradients count points");

  // Logarithms do not underflow: the nearest of the points 0 .. n - 1 to 10^4 is the last.
  std::vector<double> far(n, 11000.0), logs(n);
  subspan::kernel_logsumexp<double>(
      {}, subspan::make_view<3>(static_cast<double const*>(far.data()), {1, n, 1}), points, weights,
      bandwidth, subspan::make_view<3>(logs.data(), {1, n, 1}));
  double const gap = 11000 - x.back();
  check(close(logs[0], -gap * gap / 2, 1e-12), "the nearest point decides");

  // Half of the rows meets the first hundred points, the other half nothing.
  std::vector<subspan::index_t> const rows{0, n / 2, n}, columns{0, 100, n}, offsets{0, 1, 1},
      tiles{0};
  subspan::kernel_ranges const ranges{
      subspan::make_view<1>(rows.data(), {3}), subspan::make_view<1>(columns.data(), {3}),
      subspan::make_view<1>(offsets.data(), {3}), subspan::make_view<1>(tiles.data(), {1})};
  how.function = subspan::kernel_function::sqdistance;
  subspan::kernel_matvec<double>({}, points, points, weights, bandwidth, sums, how, std::nullopt,
                                 &ranges);
  check(close(out[0], 99.0 * 100 * 199 / 6, 1e-13), "squares of a hundred distances add up");
  check(out[n - 1] == 0, "a row that meets nothing is 0");
  how.function = subspan::kernel_function::gaussian;
  subspan::kernel_matvec<double>({}, points, points, weights, bandwidth, sums, how);

  bool refused = false;
  try {
    double const none = 0;
    subspan::kernel_matvec<double>({}, points, points, weights, subspan::make_view<1>(&none, {1}),
                                   sums);
  } catch (subspan::error const& error) {
    refused = error.kind() == subspan::error_kind::invalid_argument;
  }
  check(refused, "a bandwidth of zero is refused");
  std::printf("kernel_matvec: %.10f\n", out[n / 2]);
}
