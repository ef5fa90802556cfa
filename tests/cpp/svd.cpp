// Singular value decomposition: a batch of matrices whose singular values are known.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "check.hpp"
#include "subspan/subspan.hpp"

namespace {

// [[2, 2], [-1, 1]] has the singular values sqrt(8) and sqrt(2); [[3, 0], [4, 5]] has sqrt(45) and
// sqrt(5). Both are read as transposed views: any strides will do.
template <class T>
void two_matrices(double tolerance) {
  std::vector<T> const a{2, -1, 2, 1, 3, 4, 0, 5};
  std::vector<T> s(4), u(8), vh(8);
  std::vector<std::int32_t> info(2);

  subspan::context const ctx;
  auto view = subspan::make_view<3>(a.data(), {2, 2, 2});
  view.strides = {4, 1, 2};
  subspan::svd<T>(ctx, view, subspan::make_view<2>(s.data(), {2, 2}),
                  subspan::make_view<3>(u.data(), {2, 2, 2}),
                  subspan::make_view<3>(vh.data(), {2, 2, 2}),
                  subspan::make_view<1>(info.data(), {2}));

  double const known[] = {std::sqrt(8.0), std::sqrt(2.0), std::sqrt(45.0), std::sqrt(5.0)};
  for (int i = 0; i < 4; ++i) check(close(s[i], known[i], tolerance), "the singular values");
  for (int b = 0; b < 2; ++b)
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) {
        double sum = 0;
        for (int k = 0; k < 2; ++k)
          sum += double(u[4 * b + 2 * i + k]) * s[2 * b + k] * vh[4 * b + 2 * k + j];
        check(close(sum, view(b, i, j), tolerance), "u diag(s) vh = a");
      }
  std::printf("singular values, %zu bytes a number: %.7f %.7f and %.7f %.7f\n", sizeof(T),
              double(s[0]), double(s[1]), double(s[2]), double(s[3]));
}

// A 300 x 200 matrix of rank 3 plus noise of standard deviation 1e-3: three values stand out, and
// the fourth is about 1e-3 (sqrt(300) + sqrt(200)), the edge of the noise.
void planted_rank() {
  int const m = 300, n = 200, rank = 3;
  std::vector<double> left(m * rank), right(n * rank), a(m * n), s(n);
  std::vector<std::int32_t> info(1);
  subspan::context const ctx;
  subspan::fill_normal(ctx, subspan::make_view<1>(left.data(), {m * rank}), 7, 0);
  subspan::fill_normal(ctx, subspan::make_view<1>(right.data(), {n * rank}), 7, 1);
  subspan::fill_normal(ctx, subspan::make_view<1>(a.data(), {m * n}), 7, 2);
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) {
      a[i * n + j] *= 1e-3;
      for (int k = 0; k < rank; ++k) a[i * n + j] += left[i * rank + k] * right[j * rank + k];
    }
  subspan::svd<double>(ctx, subspan::make_view<3>(a.data(), {1, m, n}),
                       subspan::make_view<2>(s.data(), {1, n}), {}, {},
                       subspan::make_view<1>(info.data(), {1}));
  std::printf("rank %d plus noise: %.2f %.2f %.2f | %.4f %.4f ...\n", rank, s[0], s[1], s[2], s[3],
              s[4]);
  double const edge = 1e-3 * (std::sqrt(300.0) + std::sqrt(200.0));
  check(s[2] > 100 && s[3] < 1.05 * edge && s[3] > 0.9 * edge, "three values above the noise");
}

void refusal() {
  std::vector<double> const a{1, std::numeric_limits<double>::quiet_NaN()};
  std::vector<double> s(1);
  std::vector<std::int32_t> info(1);
  try {
    subspan::svd<double>({}, subspan::make_view<3>(a.data(), {1, 1, 2}),
                         subspan::make_view<2>(s.data(), {1, 1}), {}, {},
                         subspan::make_view<1>(info.data(), {1}));
  } catch (subspan::error const& error) {
    check(error.kind() == subspan::error_kind::invalid_argument, "the kind of the error");
    std::printf("NaN is refused: %s\n", error.what());
    return;
  }
  check(false, "NaN must be refused");
}

}  // namespace

int main() {
  two_matrices<double>(1e-14);
  two_matrices<float>(1e-6);
  planted_rank();
  refusal();
}
