// Gram matrices: sums of powers, and one matrix against many.
#include <cstdio>
#include <vector>

#include "check.hpp"
#include "subspan/subspan.hpp"

int main() {
  int const n = 1000, p = 3;
  std::vector<double> x(n * p), sums(p * p);
  for (int i = 0; i < n; ++i) {
    x[i * p] = 1;
    x[i * p + 1] = i;
    x[i * p + 2] = static_cast<double>(i) * i;
  }
  auto const powers = subspan::make_view<3>(static_cast<double const*>(x.data()), {1, n, p});
  subspan::gram<double>({}, powers, subspan::make_view<3>(sums.data(), {1, p, p}));
  check(sums[0] == n, "ones are counted");
  check(sums[1] == 499500 && sums[3] == sums[1], "so are the first n numbers, on both sides");
  check(sums[4] == 332833500 && sums[2] == sums[4], "and their squares");
  std::printf("0 + 1 + ... + %d = %.0f\n", n - 1, sums[1]);

  // One x for two y, by a stride of 0.
  subspan::strided_view<double const, 3> both = powers;
  both.shape[0] = 2;
  both.strides[0] = 0;
  std::vector<double> y(2 * n, 1), across(2 * p);
  for (int i = 0; i < n; ++i) y[n + i] = i;
  subspan::gram<double>({}, both,
                        subspan::make_view<3>(static_cast<double const*>(y.data()), {2, n, 1}),
                        subspan::make_view<3>(across.data(), {2, p, 1}));
  check(across[1] == 499500 && across[p] == 499500, "one matrix meets many");

  std::vector<double> xx(p * p), xy(p), yy(1);
  subspan::grams<double>(
      {}, powers, subspan::make_view<3>(static_cast<double const*>(y.data()), {1, n, 1}),
      subspan::make_view<3>(xx.data(), {1, p, p}), subspan::make_view<3>(xy.data(), {1, p, 1}),
      subspan::make_view<3>(yy.data(), {1, 1, 1}));
  check(xx == sums && xy[2] == sums[2] && yy[0] == n, "three products at once are the same");

  // Inner products of row Grams: what the products of columns say, squared and summed.
  std::vector<double> table(4);
  auto const rows = subspan::make_view<2>(static_cast<double const*>(x.data()), {n, 2});
  auto const ones = subspan::make_view<2>(static_cast<double const*>(y.data()), {n, 1});
  subspan::strided_view<double const, 2> narrow = rows;
  narrow.strides[0] = p;
  subspan::gram_inner<double>({}, {narrow, ones}, subspan::make_view<2>(table.data(), {2, 2}));
  check(table[1] == sums[0] * sums[0] + sums[1] * sums[1], "gram_inner is |x^T y|^2");
  check(table[2] == table[1] && table[3] == 1.0 * n * n, "for all pairs");
}
