// Two kernels over the same pairs without a matrix: distance covariance on a line and in space.
#include <cmath>
#include <cstdio>
#include <vector>

#include "check.hpp"
#include "subspan/subspan.hpp"

using subspan::index_t;

namespace {

struct sums {
  std::vector<double> joint, first, second;
};

sums sums_of(std::vector<double> const& x, std::vector<double> const& z, index_t n,
             subspan::kernel_params const& how) {
  index_t const d = static_cast<index_t>(x.size()) / n, q = static_cast<index_t>(z.size()) / n;
  std::vector<double> const ones(static_cast<std::size_t>(d + q), 1.0);
  auto const size = static_cast<std::size_t>(n);
  sums out{std::vector<double>(size), std::vector<double>(size), std::vector<double>(size)};
  auto const left = subspan::make_view<2>(x.data(), {n, d});
  auto const right = subspan::make_view<3>(z.data(), {1, n, q});
  subspan::joint_kernel_sums<double>(
      {}, left, left, right, right, subspan::make_view<1>(ones.data(), {d}),
      subspan::make_view<1>(ones.data(), {q}), subspan::make_view<2>(out.joint.data(), {1, n}),
      subspan::make_view<1>(out.first.data(), {n}),
      subspan::make_view<2>(out.second.data(), {1, n}), how, how);
  return out;
}

}  // namespace

int main() {
  // Points i and their squares: a line takes n log n steps, two equal columns of it all pairs.
  index_t const n = 700;
  double const half = std::sqrt(0.5);
  std::vector<double> x, z, wide;
  for (index_t i = 0; i < n; ++i) {
    auto const v = static_cast<double>(i * 9 % n);
    x.push_back(v);
    z.push_back(v * v / 100);
    wide.insert(wide.end(), {half * v, half * v});
  }
  subspan::kernel_params how;
  how.function = subspan::kernel_function::distance;
  sums const sorted = sums_of(x, z, n, how), tiled = sums_of(wide, z, n, how);
  for (index_t i = 0; i < n; ++i) {
    auto const at = static_cast<std::size_t>(i);
    double joint = 0, first = 0;
    for (std::size_t j = 0; j < x.size(); ++j) {
      first += std::abs(x[at] - x[j]);
      joint += std::abs(x[at] - x[j]) * std::abs(z[at] - z[j]);
    }
    check(close(sorted.first[at], first, 1e-12), "distances add up");
    check(close(sorted.joint[at], joint, 1e-12), "products add up");
    check(close(tiled.first[at], first, 1e-12), "tiles add up to the same");
    check(close(tiled.joint[at], joint, 1e-12), "and so do products");
    check(close(tiled.second[at], sorted.second[at], 1e-12), "both know z");
  }

  // An exponent of 2 is the squared distance.
  how.alpha = 2;
  sums const powers = sums_of(wide, z, n, how);
  how.function = subspan::kernel_function::sqdistance;
  how.alpha = 1;
  sums const squares = sums_of(wide, z, n, how);
  for (std::size_t i = 0; i < x.size(); ++i)
    check(close(powers.joint[i] / squares.joint[i], 1, 1e-12), "a power is a power");

  // The gradient of the sum of all |x_i - x_j| counts the points below less those above, twice.
  auto const line = subspan::make_view<2>(static_cast<double const*>(x.data()), {n, 1});
  double const unit = 1;
  auto const width = subspan::make_view<1>(&unit, {1});
  std::vector<double> weights(static_cast<std::size_t>(2 * n), 0.0), slope(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) weights[2 * i + 1] = 1;
  auto const ends = subspan::make_view<2>(static_cast<double const*>(weights.data()), {n, 2});
  how.function = subspan::kernel_function::distance;
  subspan::joint_kernel_sums_backward<double>({}, line, line, line, line, ends, ends, width, width,
                                              subspan::make_view<2>(slope.data(), {n, 1}), how,
                                              how);
  for (std::size_t i = 0; i < x.size(); ++i)
    check(close(slope[i], 2 * (2 * x[i] - static_cast<double>(n - 1)), 1e-12),
          "gradients count points");

  bool refused = false;
  try {
    how.function = subspan::kernel_function::exp_dot;
    sums_of(x, z, n, how);
  } catch (subspan::error const& error) {
    refused = error.kind() == subspan::error_kind::invalid_argument;
  }
  check(refused, "a kernel of products is refused");
  std::printf("joint_kernel_sums: %.10f\n", sorted.joint[0]);
}
