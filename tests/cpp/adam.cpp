// Adam on a dictionary of unit rows: it turns until it fits, and no row changes its length.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "check.hpp"
#include "subspan/subspan.hpp"

int main() {
  // Rows should point to (3, 4) / 5 and (0, -1); the loss is -sum of the cosines.
  std::vector<double> w = {1, 0, 0.6, -0.8}, m(4), v(4), g;
  std::vector<double> const target = {0.6, 0.8, 0, -1};
  subspan::adam_params params;
  params.lr = 0.02;
  params.remove_parallel = true;
  params.unit_rows = true;
  auto const rows = [](auto& x) { return subspan::make_view<2>(x.data(), {2, 2}); };
  for (params.step = 1; params.step <= 400; ++params.step) {
    g = {-target[0], -target[1], -target[2], -target[3]};
    if (params.step == 300) params.lr = 1e-3;
    subspan::adam_step<double>({}, rows(w), rows(g), rows(m), rows(v), params);
  }
  for (int i = 0; i < 4; ++i)
    check(close(w[i], target[i], 1e-3), "the rows point to their targets");
  for (int r = 0; r < 2; ++r)
    check(close(std::hypot(w[2 * r], w[2 * r + 1]), 1, 1e-15), "and have length one");

  g = {3, 4, 0, 12};
  std::vector<double> const axis = {0, 1, 0, 2};
  check(subspan::gradient_norm<double>({}, rows(g)) == 13, "the norm of a gradient");
  check(subspan::gradient_norm<double>({}, rows(g), rows(axis)) == 3,
        "and of what is not parallel");

  params.step = 0;
  bool refused = false;
  try {
    subspan::adam_step<double>({}, rows(w), rows(g), rows(m), rows(v), params);
  } catch (subspan::error const& error) {
    refused = error.kind() == subspan::error_kind::invalid_argument;
  }
  check(refused, "steps count from 1");
  std::printf("rows: (%.3f, %.3f), (%.3f, %.3f)\n", w[0], w[1], w[2], w[3]);
}
