#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "check.hpp"
#include "detail/topk_bodies.hpp"
#include "host_lanes.hpp"

// The bodies of the kernels of topk, against a sort of all entries.

using namespace subspan;
using gpu::host_block;
using gpu::host_lanes;
using gpu::topk_plan;

namespace {

using indices = std::vector<std::uint32_t>;

template <class U, class T>
std::vector<U> bits_of(std::vector<T> const& x) {
  std::vector<U> out;
  for (T const v : x) out.push_back(std::bit_cast<U>(v));
  return out;
}

template <class T>
bool better(T a, T b, bool largest) {
  if (a != a || b != b) return a == a && b != b;
  return largest ? a > b : a < b;
}

template <class T>
indices wanted(std::vector<T> const& x, int k, bool largest, bool sorted) {
  indices order(x.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(),
                   [&](auto a, auto b) { return better(x[a], x[b], largest); });
  order.resize(static_cast<std::size_t>(k));
  if (!sorted) std::sort(order.begin(), order.end());
  return order;
}

template <class U, bool Float, class T>
gpu::topk_format<U, Float> format_of(bool largest) {
  using format = gpu::topk_format<U, Float>;
  using key = typename format::key_type;
  if constexpr (Float) {
    auto const infinity = std::bit_cast<U>(std::numeric_limits<T>::infinity());
    return {largest ? key{0} : format::sign, static_cast<key>(infinity) << format::shift};
  } else {
    key const flip = std::is_signed_v<T> ? format::sign : key{0};
    return {largest ? flip : flip ^ static_cast<key>(~key{0}) << format::shift, key{0}};
  }
}

/// As the kernels do it: a block for each of `parts`, and one for what they found.
template <class U, bool Float>
indices selected(gpu::topk_row<U, Float> const& row, std::int64_t n, int k, bool sorted, int parts,
                 int threads) {
  using source = gpu::topk_row<U, Float>;
  using key = typename source::key_type;
  using entry = typename source::entry_type;
  auto const index_bits = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(n - 1)));
  std::vector<entry> candidates;
  indices found;
  auto const run = [&](topk_plan plan, auto const& from, std::int64_t begin, std::int64_t end,
                       bool last) {
    std::vector<entry> entries(static_cast<std::size_t>(plan.capacity));
    std::vector<int> words(topk_plan::words, 12345);
    host_block::launch(plan.threads, [&](host_lanes const& lanes) {
      gpu::topk_block<key, host_lanes> block(lanes, plan, entries.data(), words.data());
      block.scan(from, begin, end);
      if (last)
        block.order(sorted);
      else
        block.select();
    });
    if (last)
      for (int j = 0; j < k; ++j) found.push_back(detail::index_of(entries[j]));
    else
      candidates.insert(candidates.end(), entries.begin(), entries.begin() + k);
  };
  auto const plan_of = [&](std::int64_t length) {
    topk_plan plan = topk_plan::of(k, length, index_bits);
    if (threads > 0) plan.threads = threads;
    return plan;
  };
  for (std::int64_t p = 0; p < parts; ++p)
    run(plan_of(n / parts), row, p * n / parts, (p + 1) * n / parts, parts == 1);
  if (parts > 1) {
    auto const count = static_cast<std::int64_t>(candidates.size());
    auto const all = candidates;
    run(plan_of(count), gpu::topk_candidates<key>{all.data()}, 0, count, true);
  }
  return found;
}

/// Both directions and orders; `offset` elements off a multiple of 16 bytes.
template <class U, bool Float, class T>
void check_row(std::vector<T> const& x, int k, int parts = 1, int offset = 0, int threads = 0,
               bool brief = false) {
  auto const n = static_cast<std::int64_t>(x.size());
  std::vector<gpu::topk_vector<U>> memory(x.size() / (16 / sizeof(U)) + 2);
  U* const data = memory[0].part + offset;
  std::vector<U> const bits = bits_of<U>(x);
  std::copy(bits.begin(), bits.end(), data);
  for (bool const largest : {true, false})
    for (bool const sorted : {true, false}) {
      if (brief && largest != sorted) continue;
      gpu::topk_row<U, Float> const row{format_of<U, Float, T>(largest), data, 1};
      CHECK(selected(row, n, k, sorted, parts, threads) == wanted(x, k, largest, sorted));
    }
}

std::mt19937 generator(7);

template <class T>
std::vector<T> normal(int n) {
  std::normal_distribution<double> draw;
  std::vector<T> x(static_cast<std::size_t>(n));
  for (T& v : x) v = static_cast<T>(draw(generator));
  return x;
}

template <class T>
std::vector<T> integers(int n, std::int64_t low, std::int64_t high) {
  std::uniform_int_distribution<std::int64_t> draw(low, high);
  std::vector<T> x(static_cast<std::size_t>(n));
  for (T& v : x) v = static_cast<T>(draw(generator));
  return x;
}

constexpr float k_nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

}  // namespace

TEST(every_length_of_a_short_row) {
  for (int const n : {1, 2, 3, 5, 16, 31, 33, 64, 100, 255, 257, 700}) {
    auto const x = normal<float>(n);
    for (int const k : {1, 2, 7, 33, n - 1, n})
      if (k >= 1 && k <= n) check_row<std::uint32_t, true>(x, k, 1, n % 4);
  }
}

TEST(random_rows) {
  for (int const n : {1023, 1024, 1025, 2049, 4096, 4100, 9000, 20000})
    for (int const k : {1, 32, 64, 192, 193, 256})
      if (k <= n) check_row<std::uint32_t, true>(normal<float>(n), k, 1, (n + k) % 4, 0, n > 4100);
}

TEST(around_the_size_of_the_buffer) {
  // Of 64 threads: 1024 entries; with k = 500 nothing can be seeded, with 513 there are 4096.
  for (int const n : {1022, 1023, 1024})
    for (int const k : {191, 192, 193, 500, 512, 513, 1021})
      check_row<std::uint32_t, true>(normal<float>(n), k, 1, 0, 0, true);
  for (int const k : {767, 768, 769, 1024, 2047, 2048})
    check_row<std::uint32_t, true>(normal<float>(9001), k, 1, 3, 0, true);
}

TEST(any_order_of_the_elements) {
  auto x = normal<float>(12001);
  std::sort(x.begin(), x.end());
  std::vector<float> const equal(12001, -2.5f);
  auto reversed = x;
  std::reverse(reversed.begin(), reversed.end());
  auto two = x;
  for (float& v : two) v = v > 1 ? 1.0f : 0.0f;
  std::shuffle(two.begin(), two.end(), generator);
  auto close = two;
  for (std::size_t i = 0; i < close.size(); ++i)
    close[i] = std::bit_cast<float>(0x3f800000u + static_cast<std::uint32_t>(i * 7919 % 1024));
  for (auto const& row : {x, reversed, equal, two, close})
    for (int const k : {1, 64, 300, 1500}) check_row<std::uint32_t, true>(row, k, 1, 1, 0, true);
}

TEST(few_threads_fill_the_buffer_again_and_again) {
  auto x = normal<float>(6000);
  std::sort(x.begin(), x.end());
  check_row<std::uint32_t, true>(x, 100, 1, 0, 32);
  check_row<std::uint32_t, true>(x, 1000, 1, 2, 96);
}

TEST(nan_zeros_and_infinities) {
  auto x = integers<float>(5000, -2, 2);
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (x[i] == 0 && i % 2 == 0) x[i] = -0.0f;
    if (i % 7 == 0) x[i] = i % 2 == 0 ? k_nan : -k_nan;
    if (i % 97 == 0) x[i] = i % 2 == 0 ? infinity : -infinity;
  }
  for (int const k : {1, 60, 700, 2000}) check_row<std::uint32_t, true>(x, k);
  std::vector<float> mostly(5000, k_nan);
  for (int const i : {4999, 17, 300}) mostly[static_cast<std::size_t>(i)] = static_cast<float>(i);
  for (int const k : {1, 3, 4, 900}) check_row<std::uint32_t, true>(mostly, k);
  check_row<std::uint32_t, true>(std::vector<float>(4500, k_nan), 70);
  check_row<std::uint32_t, true>(std::vector<float>(4500, infinity), 70);
}

TEST(doubles_and_integers) {
  check_row<std::uint64_t, true>(normal<double>(5000), 64, 1, 1);
  check_row<std::uint64_t, true>(normal<double>(5000), 1024, 1, 0, 0, true);
  check_row<std::uint8_t, false>(integers<std::int8_t>(6000, -128, 127), 90, 1, 5);
  check_row<std::uint8_t, false>(integers<std::uint8_t>(6000, 0, 255), 90, 1, 15);
  check_row<std::uint16_t, false>(integers<std::int16_t>(6000, -32768, 32767), 300, 1, 7);
  check_row<std::uint32_t, false>(integers<std::int32_t>(6000, INT32_MIN, INT32_MAX), 40, 1, 3);
  auto wide = integers<std::int64_t>(3000, INT64_MIN, INT64_MAX);
  wide[5] = wide[2000] = INT64_MIN;
  wide[6] = wide[2001] = INT64_MAX;
  for (int const k : {2, 40, 1000}) check_row<std::uint64_t, false>(wide, k, 1, 1, 0, true);
  std::vector<std::uint8_t> const full(5000, 255);
  check_row<std::uint8_t, false>(full, 33);
}

TEST(halves_have_the_order_of_their_values) {
  // All bit patterns. 10 and 7 bits of fraction; NaN, and both zeros, as of float.
  std::vector<std::uint16_t> patterns(65536);
  std::iota(patterns.begin(), patterns.end(), std::uint16_t{0});
  for (int const fraction : {10, 7}) {
    int const exponents = 15 - fraction, bias = (1 << (exponents - 1)) - 1;
    std::vector<float> values;
    for (std::uint16_t const p : patterns) {
      int const e = p >> fraction & ((1 << exponents) - 1), f = p & ((1 << fraction) - 1);
      float v = 0;
      if (e == (1 << exponents) - 1)
        v = f == 0 ? infinity : k_nan;
      else
        v = std::ldexp(static_cast<float>(e == 0 ? f : f + (1 << fraction)),
                       std::max(e, 1) - bias - fraction);
      values.push_back((p & 0x8000) != 0 ? -v : v);
    }
    auto const limit = static_cast<std::uint32_t>(((1 << exponents) - 1) << fraction) << 16;
    for (bool const largest : {true, false}) {
      gpu::topk_format<std::uint16_t, true> const format{largest ? 0 : 0x80000000u, limit};
      indices order(65536);
      std::iota(order.begin(), order.end(), 0u);
      std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
        return format.key(patterns[a]) > format.key(patterns[b]);
      });
      CHECK(order == wanted(values, 65536, largest, true));
      gpu::topk_row<std::uint16_t, true> const row{format, patterns.data(), 1};
      CHECK(selected(row, 65536, 100, true, 1, 0) == wanted(values, 100, largest, true));
    }
  }
}

TEST(parts_are_merged) {
  auto x = integers<float>(20003, -500, 500);
  for (int const parts : {2, 3, 7}) {
    check_row<std::uint32_t, true>(x, 100, parts, 1, 0, true);
    check_row<std::uint32_t, true>(std::vector<float>(20003, 1.0f), 200, parts, 0, 0, true);
  }
  std::sort(x.begin(), x.end());
  check_row<std::uint32_t, true>(x, 600, 6, 0, 0, true);
  check_row<std::uint64_t, true>(normal<double>(9000), 100, 4, 0, 0, true);
}

TEST(strides) {
  auto const x = normal<float>(3000);
  auto const bits = bits_of<std::uint32_t>(x);
  std::vector<std::uint32_t> apart(9000);
  for (std::size_t i = 0; i < bits.size(); ++i) apart[3 * i] = bits[i];
  gpu::topk_format<std::uint32_t, true> const format = format_of<std::uint32_t, true, float>(true);
  gpu::topk_row<std::uint32_t, true> const row{format, apart.data(), 3};
  CHECK(selected(row, 3000, 50, true, 1, 0) == wanted(x, 50, true, true));
  gpu::topk_row<std::uint32_t, true> const back{format, bits.data() + 2999, -1};
  auto const reversed = std::vector<float>(x.rbegin(), x.rend());
  CHECK(selected(back, 3000, 50, true, 2, 0) == wanted(reversed, 50, true, true));
}

int main() { return check::run_all(); }
