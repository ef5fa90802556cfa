// Triangular systems: prices from running totals, and a symmetric system by its Cholesky factor.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "check.hpp"
#include "subspan/subspan.hpp"

int main() {
  int const n = 100;
  std::vector<float> sums(n * n), totals(n), parts(n);
  std::vector<std::int32_t> info(1);
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j <= i; ++j) sums[i * n + j] = 1;
    totals[i] = static_cast<float>((i + 1) * (i + 1));
  }
  subspan::solve_triangular<float>({}, subspan::make_view<3>(sums.data(), {1, n, n}),
                                   subspan::make_view<3>(totals.data(), {1, n, 1}),
                                   subspan::make_view<3>(parts.data(), {1, n, 1}),
                                   subspan::make_view<1>(info.data(), {1}));
  for (int i = 0; i < n; ++i) check(parts[i] == 2 * i + 1, "squares are sums of odd numbers");
  std::printf("1 + 3 + ... + %.0f = %.0f\n", parts[n - 1], totals[n - 1]);

  // l l^T x = b: forward, then back with the transpose.
  double const a[] = {4, 2, 2, 2, 5, 3, 2, 3, 6}, b[] = {8, 10, 11};
  double l[9], y[3], x[3];
  auto const status = subspan::make_view<1>(info.data(), {1});
  subspan::cholesky<double>({}, subspan::make_view<3>(a, {1, 3, 3}),
                            subspan::make_view<3>(l, {1, 3, 3}), status);
  auto const factor = subspan::make_view<3>(static_cast<double const*>(l), {1, 3, 3});
  subspan::solve_triangular<double>({}, factor, subspan::make_view<3>(b, {1, 3, 1}),
                                    subspan::make_view<3>(y, {1, 3, 1}), status);
  subspan::solve_triangular_params back;
  back.transposed = true;
  subspan::solve_triangular<double>({}, factor,
                                    subspan::make_view<3>(static_cast<double const*>(y), {1, 3, 1}),
                                    subspan::make_view<3>(x, {1, 3, 1}), status, back);
  for (int i = 0; i < 3; ++i)
    check(close(x[i], 1, 1e-14), "the solution of a symmetric system is found");
  std::printf("x = %.3f %.3f %.3f\n", x[0], x[1], x[2]);
}
