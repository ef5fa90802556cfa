// Top-k: the three largest of every row, ties by the smaller index, rows read in place.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <vector>

#include "check.hpp"
#include "subspan/subspan.hpp"

int main() {
  std::int64_t const n = 1000, k = 3;
  std::vector<float> x(2 * n, 0.0f);
  x[10] = 2;
  x[500] = 5;
  x[999] = 2;                                          // as good as x[10], but later
  x[n + 7] = std::numeric_limits<float>::quiet_NaN();  // never before a number
  x[n + 300] = -1;
  std::vector<float> values(2 * k);
  std::vector<std::int64_t> indices(2 * k);
  auto const in = subspan::make_view<3>(static_cast<float const*>(x.data()), {1, 2, n});
  auto const best = subspan::make_view<3>(values.data(), {1, 2, k});
  auto const where = subspan::make_view<3>(indices.data(), {1, 2, k});

  subspan::topk<float>({}, in, best, where);
  check(indices == std::vector<std::int64_t>{500, 10, 999, 0, 1, 2}, "the three largest");
  check(values == std::vector<float>{5, 2, 2, 0, 0, 0}, "and their values");

  subspan::topk_params params;
  params.sorted = false;
  subspan::topk<float>({}, in, best, where, params);
  check(indices == std::vector<std::int64_t>{10, 500, 999, 0, 1, 2}, "in the order of the row");

  params.largest = false;
  params.sorted = true;
  auto backwards = in;  // every second element from the end
  backwards.data = x.data() + n - 1;
  backwards.strides[2] = -2;
  backwards.shape[2] = n / 2;
  subspan::topk<float>({}, backwards, best, where, params);
  check(indices[0] == 1 && indices[3] == 0, "the smallest of a strided row");
  check(values[0] == 0 && values[3] == 0, "and its value");

  bool refused = false;
  try {
    std::vector<float> many(2 * (n + 1));
    std::vector<std::int64_t> places(2 * (n + 1));
    subspan::topk<float>({}, in, subspan::make_view<3>(many.data(), {1, 2, n + 1}),
                         subspan::make_view<3>(places.data(), {1, 2, n + 1}));
  } catch (subspan::error const& error) {
    refused = error.kind() == subspan::error_kind::invalid_argument;
  }
  check(refused, "k beyond the row is refused");
  std::printf("top-k: %.0f at %lld\n", 5.0, 500LL);
}
