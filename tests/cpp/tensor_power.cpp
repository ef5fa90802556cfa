// Eigenpairs of symmetric tensors: three orthogonal components come back out of their sum.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "check.hpp"
#include "subspan/subspan.hpp"

int main() {
  // Columns of a rotation, and the weights of their third powers.
  int const d = 3, order = 3, entries = 10, starts = 12;
  double const c = std::cos(0.5), s = std::sin(0.5);
  double const a[d][d] = {{c, -s, 0}, {s, c, 0}, {0, 0, 1}};
  double const weights[d] = {3, 2, 1};
  std::vector<double> tensor;
  for (int i = 0; i < d; ++i)
    for (int j = i; j < d; ++j)
      for (int k = j; k < d; ++k) {
        double sum = 0;
        for (int r = 0; r < d; ++r) sum += weights[r] * a[i][r] * a[j][r] * a[k][r];
        tensor.push_back(sum);
      }

  std::vector<double> start(starts * d);
  subspan::fill_normal<double>({}, subspan::make_view<1>(start.data(), {starts * d}), 7, 0);
  std::vector<double> values(starts), vectors(starts * d), residuals(starts);
  std::vector<std::int32_t> kinds(starts), counts(starts), iterations(starts), pair_of(starts);
  std::vector<std::int32_t> pairs(1), info(1);
  subspan::tensor_power_results<double> out;
  out.values = subspan::make_view<2>(values.data(), {1, starts});
  out.vectors = subspan::make_view<3>(vectors.data(), {1, starts, d});
  out.residuals = subspan::make_view<2>(residuals.data(), {1, starts});
  out.kinds = subspan::make_view<2>(kinds.data(), {1, starts});
  out.counts = subspan::make_view<2>(counts.data(), {1, starts});
  out.pairs = subspan::make_view<1>(pairs.data(), {1});
  out.iterations = subspan::make_view<2>(iterations.data(), {1, starts});
  out.pair_of = subspan::make_view<2>(pair_of.data(), {1, starts});
  out.info = subspan::make_view<1>(info.data(), {1});
  auto const x = subspan::make_view<2>(static_cast<double const*>(tensor.data()), {1, entries});
  auto const from = subspan::make_view<3>(static_cast<double const*>(start.data()), {1, starts, d});
  subspan::tensor_power<double>({}, x, from, order, out);

  check(info[0] == 0, "all runs converge");
  check(pairs[0] == d, "three maxima");
  for (int p = 0; p < d; ++p) {
    double cosine = 0;
    for (int i = 0; i < d; ++i) cosine += vectors[p * d + i] * a[i][p];
    check(close(values[p], weights[p], 1e-13), "the value is the weight");
    check(close(cosine, 1, 1e-14), "the vector is the component");
    check(kinds[p] == 1 && residuals[p] < 1e-13, "a strict maximum");
    std::printf("value %.12f from %d starts\n", values[p], counts[p]);
  }

  try {
    subspan::tensor_power<double>({}, x, from, 2, out);
    check(false, "matrices are refused");
  } catch (subspan::error const& error) {
    check(error.kind() == subspan::error_kind::invalid_argument, "as an invalid argument");
    std::printf("%s\n", error.what());
  }
}
