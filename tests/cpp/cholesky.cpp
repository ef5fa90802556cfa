// Cholesky factors: the log-determinants of covariances, and which of them is none.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "check.hpp"
#include "subspan/subspan.hpp"

int main() {
  // [1 c; c 1] is positive definite for |c| < 1, with determinant 1 - c^2.
  int const batch = 5;
  double const c[batch] = {0, 0.5, -0.8, 1.5, 0.6};
  std::vector<double> a, l(batch * 4);
  std::vector<std::int32_t> info(batch);
  for (double const x : c) a.insert(a.end(), {1, x, x, 1});

  subspan::cholesky_params params;
  params.raise_not_definite = false;
  subspan::cholesky<double>({}, subspan::make_view<3>(a.data(), {batch, 2, 2}),
                            subspan::make_view<3>(l.data(), {batch, 2, 2}),
                            subspan::make_view<1>(info.data(), {batch}), params);
  for (int b = 0; b < batch; ++b) {
    double const* const factor = l.data() + b * 4;
    if (b == 3) {
      check(info[b] == 2 && std::isnan(factor[0]), "a correlation of 1.5 is none");
      continue;
    }
    check(info[b] == 0 && factor[1] == 0, "the factor is lower triangular");
    check(close(factor[2] * factor[0], c[b], 1e-15), "l l^T is the matrix");
    double const log_determinant = 2 * (std::log(factor[0]) + std::log(factor[3]));
    check(close(std::exp(log_determinant), 1 - c[b] * c[b], 1e-14), "the determinant is right");
    std::printf("correlation %4.1f: log-determinant %.6f\n", c[b], log_determinant);
  }

  try {
    subspan::cholesky<double>({}, subspan::make_view<3>(a.data(), {batch, 2, 2}),
                              subspan::make_view<3>(l.data(), {batch, 2, 2}),
                              subspan::make_view<1>(info.data(), {batch}));
    check(false, "it is refused by default");
  } catch (subspan::error const& error) {
    check(error.kind() == subspan::error_kind::invalid_argument, "as an invalid argument");
    std::printf("%s\n", error.what());
  }
}
