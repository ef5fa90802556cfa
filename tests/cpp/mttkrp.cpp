// Tensors times Khatri-Rao products: sums over two modes, and many factors for one tensor.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "check.hpp"
#include "subspan/subspan.hpp"

int main() {
  std::int64_t const n = 20, m = 30, k = 40;
  std::vector<double> x(n * m * k);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<double>(i % 7);
  std::vector<double> const ones(2 * 40, 1.0);
  auto const columns = [&](std::int64_t rows) {
    return subspan::make_view<3>(ones.data(), {1, rows, 2});
  };

  subspan::mttkrp_tensor<double> tensor;
  tensor.data = x.data();
  tensor.shape = {1, n, m, k};
  tensor.strides = {0, m * k, k, 1};
  for (int mode = 0; mode < 3; ++mode) {
    std::vector<double> out(static_cast<std::size_t>(2 * tensor.shape[mode + 1]));
    subspan::mttkrp<double>({}, tensor, {columns(n), columns(m), columns(k)}, mode,
                            subspan::make_view<3>(out.data(), {1, tensor.shape[mode + 1], 2}));
    double all = 0, found = 0;
    for (double value : x) all += value;
    for (std::size_t i = 0; i < out.size(); i += 2) {
      found += out[i];
      check(out[i] == out[i + 1], "equal columns have equal sums");
    }
    check(found == all, "factors of ones sum over the other modes");
  }

  // One tensor, two members of a batch, whose factors are e_i and 2 e_i.
  tensor.shape[0] = 2;
  std::vector<double> first(2 * n), second(2 * m), out(2 * k);
  first[3] = second[4] = 1;
  first[n + 3] = 2;
  second[m + 4] = 1;
  subspan::mttkrp<double>(
      {}, tensor,
      {subspan::make_view<3>(static_cast<double const*>(first.data()), {2, n, 1}),
       subspan::make_view<3>(static_cast<double const*>(second.data()), {2, m, 1}),
       {}},
      2, subspan::make_view<3>(out.data(), {2, k, 1}));
  for (std::int64_t i = 0; i < k; ++i) {
    double const fibre = x[static_cast<std::size_t>((3 * m + 4) * k + i)];
    check(out[i] == fibre && out[k + i] == 2 * fibre, "unit vectors pick a fibre");
  }
  std::printf("sum over all: mode by mode the same\n");
}
