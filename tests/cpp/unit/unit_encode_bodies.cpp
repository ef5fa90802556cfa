#include <string>

#include "check.hpp"
#include "code_on_host.hpp"
#include "detail/encode_bodies.hpp"

// The body of the kernel of topk_encode: tiles of products, each resumed from the one before, against
// a stable sort of whole rows.

using gpu::rectifier;
using gpu::topk_plan;

namespace {

constexpr rectifier k_rectifiers[] = {rectifier::after, rectifier::before, rectifier::none};

/// z of some rows, as products and biases.
template <class P>
struct problem {
  index_t rows, n;
  std::vector<P> products, biases;
  problem(index_t rows, index_t n) : rows(rows), n(n), products(normal<P>(rows * n)) {}
  P product(index_t r, index_t j) const { return products[static_cast<std::size_t>(r * n + j)]; }
  P bias(index_t j) const { return biases.empty() ? P(0) : biases[static_cast<std::size_t>(j)]; }
};

template <class T>
struct selected {
  std::vector<T> values;
  std::vector<std::int64_t> indices;
};

/// By tiles of `width` columns, whose rows are `pitch` apart, as encode.cu does it.
template <class T>
selected<T> by_tiles(problem<wide<T>> const& z, int k, index_t width, rectifier where, int room,
                     int threads) {
  using P = wide<T>;
  using tile_type = gpu::encode_tile<T>;
  index_t const pitch = (width + 31) / 32 * 32;
  topk_plan plan = topk_plan::of(k, width, std::bit_width(static_cast<std::uint64_t>(z.n - 1)));
  if (threads > 0) plan.threads = threads;
  auto const size = [](index_t count) { return static_cast<std::size_t>(count); };
  // What is not written is not to be read.
  aligned_rows<P> products(z.rows, pitch), biases(1, (z.n + 63) / 32 * 32);
  std::vector<typename tile_type::entry_type> kept(size(z.rows * room)), bounds(size(z.rows));
  std::vector<typename tile_type::entry_type> entries(size(plan.capacity));
  std::vector<int> counts(size(z.rows), -1), words(topk_plan::words, 12345);
  selected<T> out{std::vector<T>(size(z.rows * k)),
                  std::vector<std::int64_t>(size(z.rows * k), -1)};
  for (index_t first = 0; first < z.n; first += width) {
    index_t const columns = std::min(width, z.n - first);
    for (index_t r = 0; r < z.rows; ++r)
      for (index_t j = 0; j < pitch; ++j)
        products.data[r * pitch + j] = j < columns ? z.product(r, first + j) : P(1e30f);
    for (index_t j = 0; j < biases.stride; ++j)
      biases.data[j] = j < columns ? z.bias(first + j) : P(1e30f);
    tile_type const tile{products.data,
                         z.rows,
                         columns,
                         pitch,
                         z.biases.empty() ? nullptr : biases.data,
                         first,
                         where,
                         first == 0,
                         first + columns == z.n,
                         kept.data(),
                         bounds.data(),
                         counts.data(),
                         room,
                         out.values.data(),
                         out.indices.data()};
    host_block::launch(plan.threads, [&](host_lanes const& lanes) {
      for (index_t r = 0; r < z.rows; ++r)
        gpu::select_of_tile(lanes, plan, tile, r, entries.data(), words.data());
    });
    for (int const count : counts) CHECK(tile.is_last || (count >= k && count <= room));
  }
  return out;
}

template <class T>
selected<T> by_sort(problem<wide<T>> const& z, int k, rectifier where) {
  using P = wide<T>;
  selected<T> out;
  for (index_t r = 0; r < z.rows; ++r) {
    std::vector<P> row;
    for (index_t j = 0; j < z.n; ++j) {
      P const v = z.product(r, j) + z.bias(j);
      row.push_back(where == rectifier::before && v < 0 ? P(0) : v);
    }
    std::vector<std::int64_t> order(row.size());
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
      P const left = row[static_cast<std::size_t>(a)], right = row[static_cast<std::size_t>(b)];
      return left != left || right != right ? left == left && right != right : left > right;
    });
    for (int i = 0; i < k; ++i) {
      auto const index = order[static_cast<std::size_t>(i)];
      P v = row[static_cast<std::size_t>(index)];
      if (where != rectifier::none && v < 0) v = 0;
      out.values.push_back(storage<T>::narrow(v == 0 ? P(0) : v));
      out.indices.push_back(index);
    }
  }
  return out;
}

template <class T>
void check_codes(problem<wide<T>> const& z, int k, index_t width, int threads = 0, int extra = -1) {
  for (rectifier const where : k_rectifiers) {
    int const room = extra < 0 ? 2 * topk_plan::power_above(k) : k + extra;
    auto const found = by_tiles<T>(z, k, width, where, room, threads);
    auto const wanted = by_sort<T>(z, k, where);
    CHECK(found.indices == wanted.indices);
    for (std::size_t i = 0; i < found.values.size(); ++i) {
      auto const a = storage<T>::widen(found.values[i]), b = storage<T>::widen(wanted.values[i]);
      CHECK(same(a, b) && std::signbit(a) == std::signbit(b));
    }
  }
}

template <class P>
void draw_integers(std::vector<P>& values, int reach) {
  std::uniform_int_distribution<int> draw(-reach, reach);
  for (P& v : values) v = static_cast<P>(draw(generator));
}

}  // namespace

TEST(one_tile) {
  for (int const n : {1, 2, 5, 31, 64, 100, 1023, 1024, 1500, 5000})
    for (int const k : {1, 7, 64, 300})
      if (k <= n) check_codes<float>(problem<float>(2, n), k, n);
}

TEST(tiles_of_every_width) {
  for (index_t const width : {64, 128, 704, 1088, 2112, 4160}) {
    problem<float> z(3, 9000 % (5 * width) + 3 * width);
    z.biases = normal<float>(z.n);
    for (int const k : {1, 20, 64}) check_codes<float>(z, k, width);
  }
}

TEST(rows_that_rise_and_fall_from_tile_to_tile) {
  problem<float> z(3, 6000);
  std::sort(z.products.begin(), z.products.begin() + 6000);
  std::sort(z.products.begin() + 6000, z.products.begin() + 12000, std::greater<>());
  std::fill(z.products.begin() + 12000, z.products.end(), 0.5f);
  for (int const k : {1, 30, 64, 200}) {
    check_codes<float>(z, k, 1024);
    check_codes<float>(z, k, 640, 32);
    check_codes<float>(z, k, 1024, 64, 0);  // room for k alone
    check_codes<float>(z, k, 1024, 0, 3);
  }
}

TEST(ties_are_broken_by_index_across_tiles) {
  problem<float> z(4, 5000);
  draw_integers(z.products, 3);
  z.biases.resize(5000);
  draw_integers(z.biases, 1);
  for (int const k : {1, 33, 500}) {
    check_codes<float>(z, k, 1088);
    check_codes<float>(z, k, 1088, 64, 1);
  }
}

TEST(nan_zeros_and_infinities) {
  problem<float> z(3, 3000);
  draw_integers(z.products, 1);
  for (std::size_t i = 0; i < z.products.size(); ++i) {
    if (i % 5 == 0) z.products[i] = -z.products[i];  // -0 among them
    if (i % 7 == 0 || i >= 6010) z.products[i] = std::numeric_limits<float>::quiet_NaN();
    if (i % 997 == 3) z.products[i] = std::numeric_limits<float>::infinity();
    if (i % 499 == 3) z.products[i] = -std::numeric_limits<float>::infinity();
  }
  for (int const k : {1, 12, 500}) check_codes<float>(z, k, 576);
  problem<float> none(2, 1500);
  std::fill(none.products.begin(), none.products.end(), std::numeric_limits<float>::quiet_NaN());
  check_codes<float>(none, 40, 512);
  std::fill(none.products.begin(), none.products.end(), std::numeric_limits<float>::infinity());
  check_codes<float>(none, 40, 512);
  std::fill(none.products.begin(), none.products.end(), -3.0f);
  check_codes<float>(none, 40, 512);
}

TEST(doubles_and_narrow_types) {
  problem<double> z(2, 3000);
  z.biases = normal<double>(3000);
  for (int const k : {1, 50, 400}) check_codes<double>(z, k, 1024);
  draw_integers(z.products, 2);
  check_codes<double>(z, 64, 832);
  problem<float> narrow(2, 3000);
  narrow.biases = normal<float>(3000);
  for (int const k : {1, 50, 400}) check_codes<brief>(narrow, k, 1024);
}

TEST(many_of_each_row) {
  problem<float> z(1, 9000);
  check_codes<float>(z, 2048, 4096);
  check_codes<float>(z, 1025, 2112);
  problem<double> wide_z(1, 5000);
  check_codes<double>(wide_z, 1024, 2048);
}

int main() { return check::run_all(); }
