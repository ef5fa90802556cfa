// QR decomposition: a least-squares fit of a parabola.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "check.hpp"
#include "subspan/subspan.hpp"

int main() {
  int const m = 50, n = 3;
  std::vector<double> a(m * n), y(m), q(m * n), r(n * n);
  std::vector<std::int32_t> info(1);
  for (int i = 0; i < m; ++i) {
    double const x = -1 + 2.0 * i / (m - 1);
    a[i * n] = 1;
    a[i * n + 1] = x;
    a[i * n + 2] = x * x;
    y[i] = 1 - 2 * x + 0.5 * x * x;
  }
  subspan::qr<double>(
      {}, subspan::make_view<3>(a.data(), {1, m, n}), subspan::make_view<3>(q.data(), {1, m, n}),
      subspan::make_view<3>(r.data(), {1, n, n}), subspan::make_view<1>(info.data(), {1}));

  for (int j = 0; j < n; ++j)
    for (int k = 0; k < n; ++k) {
      double dot = 0;
      for (int i = 0; i < m; ++i) dot += q[i * n + j] * q[i * n + k];
      check(close(dot, j == k, 1e-14), "the columns of q are orthonormal");
      check(k >= j || r[j * n + k] == 0, "r is upper triangular");
    }

  // r c = q^T y, from the last row up.
  double c[n];
  for (int j = n - 1; j >= 0; --j) {
    c[j] = 0;
    for (int i = 0; i < m; ++i) c[j] += q[i * n + j] * y[i];
    for (int k = j + 1; k < n; ++k) c[j] -= r[j * n + k] * c[k];
    c[j] /= r[j * n + j];
  }
  check(close(c[0], 1, 1e-13) && close(c[1], -2, 1e-13) && close(c[2], 0.5, 1e-13),
        "the parabola is found again");
  std::printf("least squares: y = %.6f + %.6f x + %.6f x^2\n", c[0], c[1], c[2]);
}
