// Nearest rows: ties by the smaller index, far from the origin, a mask, and all within a radius.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "check.hpp"
#include "subspan/subspan.hpp"

int main() {
  using subspan::make_view;
  std::int64_t const n = 500, d = 3, k = 3;
  // Rows (1000 + i, 1000, 1000), and the last two are copies of row 10.
  std::vector<float> y(n * d, 1000.0f);
  for (std::int64_t i = 0; i < n; ++i) y[i * d] += static_cast<float>(i < n - 2 ? i : 10);
  std::vector<float> x{1010.25f, 1000, 1000, 1000, 1000, 1000};
  auto const from = make_view<2>(static_cast<float const*>(x.data()), {2, d});
  auto const to = make_view<2>(static_cast<float const*>(y.data()), {n, d});

  std::vector<double> distances(2 * k);
  std::vector<std::int64_t> indices(2 * k);
  auto const far = make_view<2>(distances.data(), {2, k});
  auto const where = make_view<2>(indices.data(), {2, k});
  subspan::knn<float>({}, from, to, std::nullopt, far, where);
  check(indices == std::vector<std::int64_t>{10, 498, 499, 0, 1, 2}, "copies come by index");
  check(distances == std::vector<double>{0.25, 0.25, 0.25, 0, 1, 2}, "and are as far");

  std::vector<double> back_distances(n);
  std::vector<std::int64_t> back_indices(n), forth_indices(2);
  subspan::knn_both<float>({}, from, to, make_view<2>(distances.data(), {2, 1}),
                           make_view<2>(forth_indices.data(), {2, 1}),
                           make_view<2>(back_distances.data(), {n, 1}),
                           make_view<2>(back_indices.data(), {n, 1}));
  check(forth_indices == std::vector<std::int64_t>{10, 0}, "there");
  check(back_indices[5] == 1 && back_indices[6] == 0 && back_distances[6] == 4.25, "and back");

  std::vector<std::uint8_t> allowed(n, 0);
  allowed[499] = allowed[7] = 1;
  auto const mask = make_view<2>(static_cast<std::uint8_t const*>(allowed.data()), {1, n});
  subspan::knn_params params;
  params.metric = subspan::metric::sqeuclidean;
  subspan::knn<float>({}, from, to, mask, far, where, params);
  check(indices == std::vector<std::int64_t>{499, 7, -1, 7, 499, -1}, "only what the mask allows");
  check(distances[1] == 3.25 * 3.25 && std::isinf(distances[2]), "and nothing beyond");

  std::vector<std::int64_t> offsets(3), near;
  std::vector<double> values;
  auto const room = [&](std::int64_t count) {
    near.resize(static_cast<std::size_t>(count));
    values.resize(static_cast<std::size_t>(count));
    return subspan::ragged<double>{make_view<1>(values.data(), {count}),
                                   make_view<1>(near.data(), {count})};
  };
  subspan::radius_neighbors<float>({}, from, to, std::nullopt, 0.75,
                                   make_view<1>(offsets.data(), {3}), room);
  check(offsets == std::vector<std::int64_t>{0, 4, 5}, "how many are within the radius");
  check(near == std::vector<std::int64_t>{10, 498, 499, 11, 0}, "at the radius, too");

  bool refused = false;
  try {
    auto const narrow = make_view<2>(static_cast<float const*>(y.data()), {n, d - 1});
    subspan::knn<float>({}, from, narrow, std::nullopt, far, where);
  } catch (subspan::error const& error) {
    refused = error.kind() == subspan::error_kind::invalid_argument;
  }
  check(refused, "rows of another length are refused");
  std::printf("knn: %.2f to row %lld\n", 0.25, 10LL);
}
