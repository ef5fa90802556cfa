// Principal component analysis of rows that arrive in batches, with axes that are known.
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "check.hpp"
#include "subspan/subspan.hpp"

namespace {

constexpr int d = 16;

/// The memory behind a moments_view.
struct moments {
  subspan::index_t count = 0;
  double weight_sum = 0, weight_sq_sum = 0;
  std::vector<double> mean = std::vector<double>(d), m2 = std::vector<double>(d * d);

  subspan::moments_view view() {
    return {&count, &weight_sum, &weight_sq_sum, subspan::make_view<1>(mean.data(), {d}),
            subspan::make_view<2>(m2.data(), {d, d})};
  }
};

/// Rows [n, d] whose entry j has standard deviation 2^-j, all mirrored by I - 2 h h^T, plus 5:
/// principal axis j is column j of the mirror, its variance 4^-j.
std::vector<float> batch(int n, unsigned seed, std::vector<double> const& h) {
  std::vector<float> x(n * d);
  subspan::fill_normal({}, subspan::make_view<1>(x.data(), {n * d}), seed, 0);
  for (int i = 0; i < n; ++i) {
    float* row = x.data() + i * d;
    double dot = 0;
    for (int j = 0; j < d; ++j) dot += h[j] * std::ldexp(row[j], -j);
    for (int j = 0; j < d; ++j) row[j] = float(std::ldexp(row[j], -j) - 2 * dot * h[j] + 5);
  }
  return x;
}

}  // namespace

int main() {
  subspan::context const ctx;
  std::vector<double> const h(d, 1 / std::sqrt(double(d)));

  // Two states, as on two machines; then one.
  moments first, second;
  int const n = 20000, batches = 4;
  for (int b = 0; b < batches; ++b) {
    std::vector<float> const x = batch(n, b, h);
    subspan::moments_update<float>(ctx, subspan::make_view<2>(x.data(), {n, d}), {},
                                   (b % 2 == 0 ? first : second).view());
  }
  subspan::moments_merge(ctx, first.view(), second.view());
  check(first.count == n * batches, "the rows are counted");

  int const k = 4;
  std::vector<double> axes(k * d), variances(k);
  subspan::principal_axes(ctx, subspan::make_view<2>(first.m2.data(), {d, d}), first.weight_sum - 1,
                          subspan::make_view<2>(axes.data(), {k, d}),
                          subspan::make_view<1>(variances.data(), {k}));

  double total = 0;
  for (int j = 0; j < d; ++j) total += first.m2[j * d + j] / (first.weight_sum - 1);
  for (int j = 0; j < k; ++j) {
    double const known = std::ldexp(1.0, -2 * j);
    double cosine = 0;
    for (int i = 0; i < d; ++i) cosine += axes[j * d + i] * ((i == j) - 2 * h[i] * h[j]);
    std::printf("axis %d: variance %.5f (planted %.5f), share %4.1f %%, |cosine| %.6f\n", j,
                variances[j], known, 100 * variances[j] / total, std::abs(cosine));
    // Five standard errors of a variance from n rows: sqrt(2 / n) of it each.
    check(std::abs(variances[j] - known) < 5 * known * std::sqrt(2.0 / (n * batches)),
          "the planted variances");
    check(std::abs(cosine) > 0.999, "the planted axes");
  }

  // An array on a device that this machine does not have is refused, in words.
  if (!subspan::has_cuda()) {
    std::vector<float> const x(d, 1.0f);
    auto where = subspan::make_view<2>(x.data(), {1, d});
    where.device = {subspan::device_kind::cuda, 0};
    std::string told;
    try {
      subspan::moments_update<float>(ctx, where, {}, first.view());
    } catch (subspan::error const& error) {
      check(error.kind() == subspan::error_kind::unsupported, "the kind of the error");
      told = error.what();
    }
    check(told.find("CUDA") != std::string::npos, "the error says what is missing");
    check(first.count == n * batches, "a refused call leaves the state alone");
    std::printf("no CUDA here: %s\n", told.c_str());
  }
}
