// Symmetric eigenproblem: the second-difference matrix, whose spectrum has a closed form.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "check.hpp"
#include "subspan/subspan.hpp"

int main() {
  int const n = 100;
  std::vector<double> a(n * n), values(n), vectors(n * n);
  std::vector<std::int32_t> info(1);
  for (int i = 0; i < n; ++i) {
    a[i * n + i] = 2;
    if (i > 0) a[i * n + i - 1] = -1;  // the lower triangle is enough
  }
  subspan::eigh<double>(
      {}, subspan::make_view<3>(a.data(), {1, n, n}), subspan::make_view<2>(values.data(), {1, n}),
      subspan::make_view<3>(vectors.data(), {1, n, n}), subspan::make_view<1>(info.data(), {1}));

  double const pi = std::acos(-1.0);
  for (int k = 0; k < n; ++k)
    check(close(values[k], 2 - 2 * std::cos((k + 1) * pi / (n + 1)), 1e-13),
          "eigenvalue k is 2 - 2 cos(k pi / (n + 1))");

  // Column k is sin(k pi i / (n + 1)) up to scale and sign.
  double const scale = std::sqrt(2.0 / (n + 1));
  for (int k = 0; k < n; ++k) {
    double dot = 0;
    for (int i = 0; i < n; ++i)
      dot += vectors[i * n + k] * scale * std::sin((k + 1) * pi * (i + 1) / (n + 1));
    check(close(std::abs(dot), 1, 1e-10), "eigenvector k is a sine wave");
  }
  std::printf("second differences, n = %d: smallest %.10f, largest %.10f\n", n, values[0],
              values[n - 1]);
}
