// Sparse encoders: the features of a row that a dictionary was made of, for each row k of them, for
// a batch so many, or those above a threshold; and a row again.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "check.hpp"
#include "subspan/subspan.hpp"

namespace {

using subspan::index_t;

/// Codes of a varying number, in memory that grows once the number is known.
struct codes {
  std::vector<double> values;
  std::vector<index_t> indices;

  subspan::ragged_allocator<double> allocator() {
    return [this](index_t count) -> subspan::ragged<double> {
      values.resize(static_cast<std::size_t>(count));
      indices.resize(static_cast<std::size_t>(count));
      return {subspan::make_view<1>(values.data(), {count}),
              subspan::make_view<1>(indices.data(), {count})};
    };
  }
};

}  // namespace

int main() {
  // Directions 2 j and 2 j + 1 of the n are +e_j and -e_j, one column each.
  index_t const rows = 3, d = 50, n = 2 * d, k = 2;
  std::vector<double> w_enc(d * n, 0.0), b_pre(d, 1.0);
  for (index_t j = 0; j < d; ++j) {
    w_enc[j * n + 2 * j] = 1;
    w_enc[j * n + 2 * j + 1] = -1;
  }
  std::vector<double> x(rows * d, 1.0);
  x[7] += 3;  // row 0: 3 e_7 - 2 e_40
  x[40] -= 2;
  x[d + 10] -= 5;  // row 1: -5 e_10
  x[2 * d] += 1;   // row 2: e_0 + 4 e_1
  x[2 * d + 1] += 4;

  auto const in = subspan::make_view<2>(static_cast<double const*>(x.data()), {rows, d});
  subspan::encoder<double> how{
      subspan::make_view<2>(static_cast<double const*>(w_enc.data()), {d, n}), {}, {}};
  how.b_pre = subspan::make_view<1>(static_cast<double const*>(b_pre.data()), {d});

  std::vector<double> values(rows * k);
  std::vector<index_t> indices(rows * k);
  subspan::topk_encode<double>({}, in, how, subspan::make_view<2>(values.data(), {rows, k}),
                               subspan::make_view<2>(indices.data(), {rows, k}));
  check(indices == std::vector<index_t>{14, 81, 21, 0, 2, 0}, "the two features of each row");
  check(values == std::vector<double>{3, 2, 5, 0, 4, 1}, "and their values");

  codes batch;
  std::vector<index_t> offsets(rows + 1);
  auto const ends = subspan::make_view<1>(offsets.data(), {rows + 1});
  subspan::batch_topk_encode<double>({}, in, how, 3, ends, batch.allocator());
  check(offsets == std::vector<index_t>{0, 1, 2, 3}, "the three largest of the batch");
  check(batch.indices == std::vector<index_t>{14, 21, 2}, "row by row");
  check(batch.values == std::vector<double>{3, 5, 4}, "with their values");

  codes above;
  std::vector<double> threshold(n, 1.5);
  threshold[81] = 2;  // which x[40] reaches and does not exceed
  subspan::threshold_encode<double>(
      {}, in, how, subspan::make_view<1>(static_cast<double const*>(threshold.data()), {n}), ends,
      above.allocator());
  check(offsets == std::vector<index_t>{0, 1, 2, 3}, "what exceeds its threshold");
  check(above.indices == batch.indices && above.values == batch.values, "is the same here");

  bool refused = false;
  try {
    std::vector<double> many(rows * (n + 1));
    std::vector<index_t> places(rows * (n + 1));
    subspan::topk_encode<double>({}, in, how, subspan::make_view<2>(many.data(), {rows, n + 1}),
                                 subspan::make_view<2>(places.data(), {rows, n + 1}));
  } catch (subspan::error const& error) {
    refused = error.kind() == subspan::error_kind::invalid_argument;
  }
  check(refused, "more codes than features are refused");
  std::printf("encode: feature %lld at %.0f\n", static_cast<long long>(indices[0]), values[0]);
}
