// Sparse decode: a code of two features per row times a dictionary, its gradients, rows of
// different length, and an index that does not exist.
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "check.hpp"
#include "subspan/subspan.hpp"

int main() {
  std::int64_t const rows = 3, k = 2, n = 5, d = 40;
  std::vector<float> const values = {1, 2, 3, -1, 0.5f, 4};
  std::vector<std::int64_t> indices = {4, 0, 1, 1, 4, 2};  // row 1 has feature 1 twice
  std::vector<float> w(n * d), x(rows * d), out(rows * d);
  for (std::int64_t j = 0; j < n; ++j)
    for (std::int64_t c = 0; c < d; ++c) w[j * d + c] = static_cast<float>(10 * j + c % 7);
  for (std::int64_t i = 0; i < rows * d; ++i) x[i] = static_cast<float>(i % 11);
  std::vector<float> const bias(d, 100.0f);

  auto const code = subspan::equal_rows(
      subspan::make_view<2>(values.data(), {rows, k}),
      subspan::make_view<2>(static_cast<std::int64_t const*>(indices.data()), {rows, k}));
  auto const dictionary = subspan::make_view<2>(static_cast<float const*>(w.data()), {n, d});
  auto const inputs = subspan::make_view<2>(static_cast<float const*>(x.data()), {rows, d});
  auto const decoded = subspan::make_view<2>(out.data(), {rows, d});
  subspan::sparse_decode<float>({}, code, dictionary, subspan::make_view<1>(bias.data(), {d}),
                                decoded);
  check(out[3] == 100 + 1 * 43 + 2 * 3, "two rows of the dictionary and the bias");
  check(out[d + 3] == 100 + 2 * 13, "pairs of one feature add up");

  std::vector<float> of_values(rows * k), of_w(n * d, 7.0f), of_b(d);
  subspan::sparse_decode_backward<float>(
      {}, code, dictionary, inputs, subspan::make_view<1>(of_values.data(), {rows * k}),
      subspan::make_view<2>(of_w.data(), {n, d}), subspan::make_view<1>(of_b.data(), {d}));
  double product = 0;
  for (std::int64_t c = 0; c < d; ++c) product += x[c] * w[4 * d + c];
  check(close(of_values[0], product, 1e-6), "the gradient of a value is a product of two rows");
  check(of_w[4 * d + 5] == x[5] + 0.5f * x[2 * d + 5], "that of the dictionary sums over rows");
  check(of_w[3 * d] == 0, "and is zero where nothing was selected");
  check(of_b[5] == x[5] + x[d + 5] + x[2 * d + 5], "that of the bias sums over all rows");

  std::vector<float> by_columns(d * n), of_x(rows * d);
  subspan::encode_gradients<float> wanted;
  wanted.w_enc = subspan::make_view<2>(by_columns.data(), {d, n});
  wanted.x = subspan::make_view<2>(of_x.data(), {rows, d});
  auto encoder = dictionary;  // [d, n]: the transpose of the decoder
  encoder.shape = {d, n};
  encoder.strides = {1, d};
  subspan::topk_encode_backward<float>({}, code, n, inputs, std::nullopt, encoder, wanted);
  check(by_columns[5 * n + 4] == of_w[4 * d + 5], "an encoder's gradient is the transpose");
  check(of_x[3] == out[3] - 100, "and that of its input decodes");

  std::vector<std::int64_t> const offsets = {0, 0, 5, 6};
  auto ragged = code;
  ragged.offsets = subspan::make_view<1>(offsets.data(), {rows + 1});
  subspan::sparse_decode<float>({}, ragged, dictionary, std::nullopt, decoded);
  check(out[0] == 0 && out[2 * d + 3] == 4 * 23, "rows of different length");

  std::string message;
  indices[3] = n;
  out[0] = 7;
  try {
    subspan::sparse_decode<float>({}, code, dictionary, std::nullopt, decoded);
  } catch (subspan::error const& error) {
    check(error.kind() == subspan::error_kind::invalid_argument, "the kind of the error");
    message = error.what();
  }
  check(message.find("got 5 at row 1, position 1") != std::string::npos, "the index is named");
  check(out[0] == 7, "before anything is written");
  std::printf("sparse decode: %.0f\n", static_cast<double>(of_values[0]));
}
