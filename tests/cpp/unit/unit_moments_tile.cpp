// The bodies of the CUDA kernels behind moments_update, on the host.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <sstream>
#include <type_traits>
#include <utility>
#include <vector>

#include "check.hpp"
#include "detail/moments_tile.hpp"
#include "host_lanes.hpp"

namespace subspan::gpu {

template <>
struct storage<bfloat16> {
  static float widen(bfloat16 v) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(v.bits) << 16);
  }
};

}  // namespace subspan::gpu

namespace {

using namespace subspan::gpu;
using subspan::bfloat16;
using subspan::index_t;

constexpr double k_nan = std::numeric_limits<double>::quiet_NaN();

/// Uniform in -1..1, the same on every machine.
class numbers {
 public:
  double next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(static_cast<std::int64_t>(state_) >> 11) * 0x1p-52;
  }

 private:
  std::uint64_t state_ = 17;
};

template <class T>
T stored(double v) {
  if constexpr (std::is_same_v<T, bfloat16>)
    return {static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(v)) >> 16)};
  else
    return static_cast<T>(v);
}

template <class T>
struct sample {
  index_t n, d, stride;
  std::vector<pack<T>> memory;  // for its alignment
  std::vector<double> weights;  // empty: none
  T* data;

  /// Columns that correlate, far from the origin where `offset` is large.
  sample(index_t n, index_t d, index_t stride, bool weighted, double offset)
      : n(n),
        d(d),
        stride(stride),
        memory(static_cast<std::size_t>(n * stride / pack<T>::width + 1)),
        data(memory.data()->at) {
    numbers random;
    for (index_t i = 0; i < n; ++i) {
      double const common = random.next();
      for (index_t j = 0; j < stride; ++j)
        at(i, j) = stored<T>(j < d ? offset + common + random.next() : k_nan);
      if (weighted) weights.push_back(i % 3 == 1 ? 0 : 1 + random.next());
    }
  }
  T& at(index_t i, index_t j) { return data[i * stride + j]; }
  double value(index_t i, index_t j) const {
    return static_cast<double>(storage<T>::widen(data[i * stride + j]));
  }
  double weight(index_t i) const {
    return weights.empty() ? 1 : weights[static_cast<std::size_t>(i)];
  }
  double const* weight_data() const { return weights.empty() ? nullptr : weights.data(); }
  row_view<T> view() const { return {data, n, d, stride}; }
};

struct result {
  std::vector<double> totals, mean, m2;
  index_t bad_row = -1, bad_column = -1;
};

template <class T>
result reference(sample<T> const& x) {
  auto const d = static_cast<std::size_t>(x.d);
  result out{{0, 0, 0}, std::vector<double>(d), std::vector<double>(d * d)};
  for (index_t i = 0; i < x.n; ++i) {
    double const w = x.weight(i);
    out.totals[0] += w > 0;
    out.totals[1] += w;
    out.totals[2] += w * w;
    for (std::size_t j = 0; w > 0 && j < d; ++j)
      out.mean[j] += w * x.value(i, static_cast<index_t>(j));
  }
  for (double& mean : out.mean) mean = out.totals[1] > 0 ? mean / out.totals[1] : 0;
  for (index_t i = 0; i < x.n; ++i)
    for (std::size_t a = 0; x.weight(i) > 0 && a < d; ++a) {
      double const scaled = x.weight(i) * (x.value(i, static_cast<index_t>(a)) - out.mean[a]);
      for (std::size_t b = 0; b < d; ++b)
        out.m2[a * d + b] += scaled * (x.value(i, static_cast<index_t>(b)) - out.mean[b]);
    }
  return out;
}

/// What the kernels of pca.cu do one after the other, with rows in `chunks` chunks.
template <class Shape, bool Aligned, class T>
result run(sample<T> const& x, index_t chunks) {
  using P = typename Shape::P;
  constexpr int threads = 2 * k_warp;  // few, since each is a coroutine
  index_t const n = x.n, d = x.d, chunk_rows = (n + chunks - 1) / chunks;
  chunks = (n + chunk_rows - 1) / chunk_rows;
  result out{{0, 0, 0},
             std::vector<double>(static_cast<std::size_t>(d)),
             std::vector<double>(static_cast<std::size_t>(d * d), k_nan)};
  std::vector<double> memory(threads * pack<T>::width);
  auto const report = [&](index_t row, index_t column) {
    if (out.bad_row >= 0 && std::pair(out.bad_row, out.bad_column) < std::pair(row, column)) return;
    out.bad_row = row;
    out.bad_column = column;
  };
  auto const chunk_of = [&](index_t c) {
    return std::pair(c * chunk_rows, std::min((c + 1) * chunk_rows, n));
  };

  std::vector<P> scale(x.weights.empty() ? 0 : static_cast<std::size_t>(n));
  if (x.weights.empty())
    out.totals.assign(3, static_cast<double>(n));
  else
    host_block::launch(threads, [&](host_lanes const& lanes) {
      weigh_rows(lanes, memory.data(), x.weights.data(), n, lanes.rank(), threads, scale.data(),
                 out.totals.data(), [&](index_t row) { report(row, -1); });
    });

  int const across = d > 2 * pack<T>::width ? 4 : 1, strip = across * pack<T>::width;
  std::vector<double> sums(static_cast<std::size_t>(chunks * d), k_nan);
  for (index_t c = 0; c < chunks; ++c)
    for (int s = 0; s * strip < d; ++s)
      host_block::launch(threads, [&](host_lanes const& lanes) {
        auto const [begin, end] = chunk_of(c);
        sum_columns<Aligned>(lanes, memory.data(), x.view(), x.weight_data(), across, s, begin, end,
                             sums.data() + c * d, report);
      });
  std::vector<P> shift(static_cast<std::size_t>(d));
  for (index_t j = 0; j < d; ++j) {
    double sum = 0;
    for (index_t c = 0; c < chunks; ++c) sum += sums[static_cast<std::size_t>(c * d + j)];
    double const mean = out.totals[1] > 0 ? sum / out.totals[1] : 0;
    out.mean[static_cast<std::size_t>(j)] = mean;
    shift[static_cast<std::size_t>(j)] = static_cast<P>(mean);
  }

  index_t const side = (d + Shape::side - 1) / Shape::side, tiles = tile_of_place({0, int(side)});
  constexpr index_t size = Shape::planes * Shape::side * Shape::side;
  std::vector<pack<P>> partial(static_cast<std::size_t>(chunks * tiles * size / pack<P>::width));
  P* const products = partial.data()->at;
  std::fill_n(products, chunks * tiles * size, static_cast<P>(k_nan));
  auto const shared = std::make_unique<tile_memory<Shape>>();
  for (index_t c = 0; c < chunks; ++c)
    for (int tile = 0; tile < tiles; ++tile)
      host_block::launch(Shape::threads, [&](host_lanes const& lanes) {
        auto const [begin, end] = chunk_of(c);
        tile_products<Shape, Aligned, T, host_lanes> share(
            lanes, *shared, x.view(), x.weights.empty() ? nullptr : scale.data(), shift.data(),
            tile, begin, end);
        share.run();
        share.store(products + (c * tiles + tile) * size);
      });
  int const parts = chunks > 2 ? 2 : 1, rows = threads / k_warp / parts;
  for (index_t block = 0; block * rows < d; ++block)
    for (index_t s = 0; s * k_warp < d; ++s)
      host_block::launch(threads, [&](host_lanes const& lanes) {
        finish_products<Shape>(lanes, memory.data(), products, chunks, parts, block, s,
                               static_cast<int>(d), out.totals[1], out.mean.data(), shift.data(),
                               out.m2.data());
      });
  return out;
}

/// The largest error of m2, each entry relative to its row's and column's deviations.
double error(result const& got, result const& wanted) {
  std::size_t const d = wanted.mean.size();
  double worst = 0;
  for (std::size_t i = 0; i < d; ++i)
    for (std::size_t j = 0; j < d; ++j) {
      double const unit = std::sqrt(wanted.m2[i * d + i] * wanted.m2[j * d + j]) + 1e-12;
      double const off = std::abs(got.m2[i * d + j] - wanted.m2[i * d + j]) / unit;
      worst = off <= worst ? worst : off;  // NaN counts
      if (std::isnan(off)) return off;
    }
  return worst;
}

template <class Shape, class T>
void check_shape(index_t n, index_t d, index_t stride, index_t chunks, bool weighted,
                 double offset) {
  constexpr int width = pack<T>::width;
  sample<T> x(n, d, stride, weighted, offset);
  if (weighted && n > 1) x.at(1, d / 2) = stored<T>(k_nan);  // its weight is 0
  result const wanted = reference(x), got = run<Shape, false>(x, chunks);
  CHECK(got.bad_row == -1);
  CHECK(got.totals[0] == wanted.totals[0]);
  for (std::size_t t : {1, 2})
    CHECK(std::abs(got.totals[t] - wanted.totals[t]) <= 1e-13 * wanted.totals[t]);
  for (std::size_t j = 0; j < wanted.mean.size(); ++j)
    CHECK(std::abs(got.mean[j] - wanted.mean[j]) <= 1e-13 * (1 + offset));
  double const off = error(got, wanted);
  std::ostringstream text;
  text << "n = " << n << ", d = " << d << ", stride = " << stride << ": error " << off;
  check::report(off <= (std::is_same_v<typename Shape::P, double> ? 1e-13 : 1e-6), __FILE__,
                __LINE__, text.str());
  if (d % width == 0 && stride % width == 0) {
    result const aligned = run<Shape, true>(x, chunks);
    CHECK(aligned.mean == got.mean && aligned.m2 == got.m2);  // alignment moves no bit
  }
}

/// Ragged shapes; strides, weights, offsets and chunks take turns.
template <class Shape, class T>
void check_shapes() {
  constexpr index_t width = pack<T>::width;
  int turn = 0;
  for (index_t d : {1, 3, 31, 64, 65, 128, 130, 200})
    for (index_t n : {1, 2, 7, 255, 256, 257, 1000}) {
      index_t const strides[] = {d, d + 3, (d / width + 2) * width};
      bool const skip = d > 65 && (n + turn) % 3 != 0;  // the large ones take long
      if (!skip)
        check_shape<Shape, T>(n, d, strides[turn % 3], turn % 4 + 1, turn % 2 == 1,
                              turn % 5 == 0 ? 1000 : 0);
      ++turn;
    }
}

}  // namespace

TEST(large_tiles) { check_shapes<large_tile, float>(); }
TEST(small_tiles) { check_shapes<small_tile, float>(); }
TEST(double_tiles) { check_shapes<double_tile, double>(); }
TEST(double_products_of_floats) { check_shapes<double_tile, float>(); }
TEST(packs_of_eight) {
  check_shape<large_tile, bfloat16>(300, 136, 144, 2, true, 1);
  check_shape<small_tile, bfloat16>(300, 40, 40, 9, false, 1);
  check_shape<double_tile, bfloat16>(300, 72, 72, 1, true, 1);
  check_shape<large_tile, bfloat16>(70, 133, 135, 1, true, 1);
}

TEST(places_of_tiles) {
  int tile = 0;
  for (int column = 0; column < 70; ++column)
    for (int row = 0; row <= column; ++row, ++tile) {
      tile_place const at = place_of_tile(tile);
      CHECK(at.row == row && at.column == column);
      CHECK_EQUAL(tile_of_place(at), tile);
    }
}

TEST(many_rows_keep_the_error_of_few) {
  sample<float> const x(60'000, 4, 4, false, 3);
  double const off = error(run<small_tile, true>(x, 1), reference(x));
  CHECK(off < 1e-7);
}

TEST(the_first_element_that_is_not_finite) {
  sample<float> x(500, 70, 72, true, 0);
  for (auto const& [row, column] : {std::pair{301, 2}, {299, 69}, {299, 68}, {498, 0}, {314, 1}})
    x.at(row, column) = column % 2 == 0 ? std::numeric_limits<float>::infinity() : float(k_nan);
  x.at(298, 1) = float(k_nan);  // weight 0, in the thread of row 314
  CHECK(x.weight(298) == 0 && x.weight(299) > 0);
  result const got = run<small_tile, false>(x, 3);
  CHECK_EQUAL(got.bad_row, 299);
  CHECK_EQUAL(got.bad_column, 68);
}

TEST(the_first_bad_weight) {
  for (double const bad : {k_nan, -1.0, std::numeric_limits<double>::infinity()}) {
    sample<float> x(300, 2, 2, true, 0);
    x.weights[280] = x.weights[33] = bad;
    result const got = run<small_tile, false>(x, 1);
    CHECK_EQUAL(got.bad_row, 33);
    CHECK_EQUAL(got.bad_column, -1);
  }
}

TEST(weights_that_are_all_zero) {
  sample<float> x(40, 5, 5, true, 0);
  std::fill(x.weights.begin(), x.weights.end(), 0.0);
  result const got = run<small_tile, false>(x, 1);
  for (double const v : got.m2) CHECK(v == 0);
  CHECK(got.totals[0] == 0 && got.bad_row == -1);
}

int main() { return check::run_all(); }
