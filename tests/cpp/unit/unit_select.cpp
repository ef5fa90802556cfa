// The row selector and the selection by digits, against a sort. Compiled once per level.

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "check.hpp"
#include "detail/radix_select.hpp"
#include "detail/row_selector.hpp"
#include "subspan/device.hpp"

namespace {

using subspan::index_t;
using subspan::detail::index_of;
using subspan::detail::key_of;
using subspan::detail::row_selector;
using subspan::detail::score_order;

template <class S>
using entry_of = typename row_selector<S>::entry_type;

}  // namespace

#define SUBSPAN_FILE "unit_select.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {
#include "detail/row_selector.inl.hpp"

/// As a product tile would: one vector after the other, the last one with lanes that do not count.
template <class S>
index_t select(std::vector<S> const& scores, index_t k, std::vector<entry_of<S>>& out) {
  constexpr index_t width = lanes_of<S>::count;
  auto const n = static_cast<index_t>(scores.size());
  out.assign(static_cast<std::size_t>(row_selector<S>::room(k)), {});
  row_selector<S> best(k, out.data());
  for (index_t j = 0; j < n; j += width) {
    S padded[width];
    std::fill_n(padded, width, std::numeric_limits<S>::max());
    std::copy_n(scores.data() + j, std::min(width, n - j), padded);
    unsigned const valid = n - j >= width ? ~0u : (1u << (n - j)) - 1;
    push<S>(best, load_scores<S>(padded, 0), static_cast<std::uint32_t>(j), valid);
  }
  return best.keep_best();
}

/// The same, where vectors of scores come in any order of their indices.
template <class S>
index_t select_in_any_order(std::vector<S> const& scores, index_t k,
                            std::vector<entry_of<S>>& out) {
  constexpr index_t width = lanes_of<S>::count;
  auto const n = static_cast<index_t>(scores.size());
  out.assign(static_cast<std::size_t>(row_selector<S>::room(k)), {});
  row_selector<S> best(k, out.data(), false);
  std::vector<index_t> order(static_cast<std::size_t>(n / width));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(static_cast<unsigned>(n + k)));
  for (index_t j = n - 1; j >= n / width * width; --j)  // the last come first, one by one
    best.add(scores[static_cast<std::size_t>(j)], static_cast<std::uint32_t>(j));
  for (index_t const v : order)
    push<S>(best, load_scores<S>(scores.data() + v * width, 0),
            static_cast<std::uint32_t>(v * width));
  return best.keep_best();
}

/// By way of summaries, as a row in memory is read.
template <class S>
index_t select_stacks(std::vector<S> const& scores, index_t k, std::vector<entry_of<S>>& out) {
  constexpr index_t width = lanes_of<S>::count, size = stack_size<S>;
  auto const n = static_cast<index_t>(scores.size());
  index_t const stacks = n / size;
  out.assign(static_cast<std::size_t>(row_selector<S>::room(k)), {});
  std::vector<S> summary(static_cast<std::size_t>(stacks * width + 1)),
      maxima(static_cast<std::size_t>(group_count<S>(k)));
  std::vector<std::uint32_t> list(static_cast<std::size_t>(stacks + 1));
  row_selector<S> best(k, out.data());
  summarize<S>(scores.data(), stacks, 0, summary.data());
  if (raise_by<S>(best, summary.data(), stacks, maxima.data())) {
    index_t const listed = list_stacks<S>(summary.data(), stacks, best.least(), list.data());
    for (index_t i = 0; i < listed; ++i) {
      auto const first = list[static_cast<std::size_t>(i)] * static_cast<std::uint32_t>(size);
      push_stack<S>(best, scores.data() + first, first, 0);
    }
  }
  for (index_t j = stacks * size; j < n; ++j)
    best.add(scores[static_cast<std::size_t>(j)], static_cast<std::uint32_t>(j));
  return best.keep_best();
}

}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace {

template <class S>
std::vector<entry_of<S>> reference(std::vector<S> const& scores, index_t k) {
  using key_type = typename score_order<S>::key_type;
  std::vector<entry_of<S>> all;
  for (std::size_t j = 0; j < scores.size(); ++j)
    if (scores[j] == scores[j])
      all.push_back(subspan::detail::make_entry<key_type>(score_order<S>::key(scores[j]),
                                                          static_cast<std::uint32_t>(j)));
  std::sort(all.begin(), all.end(), std::greater<>());
  all.resize(std::min(all.size(), static_cast<std::size_t>(k)));
  return all;
}

template <class S>
std::vector<std::vector<S>> rows(index_t n) {
  std::mt19937_64 random(static_cast<std::uint64_t>(n));
  std::vector<std::vector<S>> all(6, std::vector<S>(static_cast<std::size_t>(n)));
  for (std::size_t j = 0; j < all[0].size(); ++j) {
    auto const r = random();
    all[0][j] = static_cast<S>(static_cast<std::int64_t>(r % 100000) - 50000);
    all[1][j] = static_cast<S>(j);                     // every score passes
    all[2][j] = static_cast<S>(-static_cast<int>(j));  // none does after the first
    all[3][j] = static_cast<S>(r % 2);
    all[4][j] = score_order<S>::highest;
    all[5][j] = r % 3 == 0   ? score_order<S>::lowest
                : r % 3 == 1 ? std::numeric_limits<S>::quiet_NaN()  // 0 for integers
                             : static_cast<S>(r % 50);
  }
  return all;
}

template <class S, class Select>
int wrong(Select select) {
  int count = 0;
  for (index_t n : {1, 3, 15, 16, 17, 64, 191, 192, 193, 1000, 5003})
    for (index_t k : {1, 2, 31, 63, 64, 65, 300})
      for (auto const& row : rows<S>(n)) {
        std::vector<entry_of<S>> found;
        auto const size = static_cast<std::size_t>(select(row, k, found));
        found.resize(size);
        std::sort(found.begin(), found.end(), std::greater<>());
        count += found != reference(row, k);
      }
  return count;
}

template <class S>
int wrong_digits() {
  using key_type = typename score_order<S>::key_type;
  subspan::context ctx;
  int count = 0;
  for (int threads : {1, 3}) {
    ctx.threads = threads;
    for (index_t n : {1, 100, 3000, 200000})
      for (auto const& row : rows<S>(n))
        for (index_t k : {index_t{1}, n / 2, n}) {
          if (k == 0) continue;
          auto const read = [&](index_t begin, index_t length, key_type* keys) {
            for (index_t j = 0; j < length; ++j)
              keys[j] = score_order<S>::key(row[static_cast<std::size_t>(begin + j)]);
          };
          auto const last = subspan::detail::kth_entry<key_type>(ctx, n, k, read);
          std::vector<entry_of<S>> chosen(static_cast<std::size_t>(k)), spare(chosen);
          subspan::detail::collect<key_type>(
              ctx, n, read,
              [&](key_type key, std::uint32_t j) {
                return subspan::detail::make_entry<key_type>(key, j) >= last;
              },
              chosen.data());
          bool ascending = true;
          for (std::size_t j = 1; j < chosen.size(); ++j)
            ascending &= index_of(chosen[j - 1]) < index_of(chosen[j]);
          count += !ascending;
          auto const* const sorted = subspan::detail::sort_by_digits<key_type>(
              ctx, chosen.data(), spare.data(), k, 0, 8 * sizeof(S));
          std::vector<S> numbers(row);
          auto const wanted = reference(numbers, k);  // without NaN, which follow
          count += !std::equal(wanted.begin(), wanted.end(), sorted);
          for (index_t j = static_cast<index_t>(wanted.size()); j < k; ++j)
            count += key_of(sorted[j]) != 0;
        }
  }
  return count;
}

#define CHECK_LEVEL(level)                                                                        \
  CHECK_EQUAL((wrong<float>(&subspan::cpu::level::select<float>)), 0);                            \
  CHECK_EQUAL((wrong<double>(&subspan::cpu::level::select<double>)), 0);                          \
  CHECK_EQUAL((wrong<std::int32_t>(&subspan::cpu::level::select<std::int32_t>)), 0);              \
  CHECK_EQUAL((wrong<std::int64_t>(&subspan::cpu::level::select<std::int64_t>)), 0);              \
  CHECK_EQUAL((wrong<float>(&subspan::cpu::level::select_stacks<float>)), 0);                     \
  CHECK_EQUAL((wrong<double>(&subspan::cpu::level::select_stacks<double>)), 0);                   \
  CHECK_EQUAL((wrong<std::int32_t>(&subspan::cpu::level::select_stacks<std::int32_t>)), 0);       \
  CHECK_EQUAL((wrong<std::int64_t>(&subspan::cpu::level::select_stacks<std::int64_t>)), 0);       \
  CHECK_EQUAL((wrong<float>(&subspan::cpu::level::select_in_any_order<float>)), 0);               \
  CHECK_EQUAL((wrong<double>(&subspan::cpu::level::select_in_any_order<double>)), 0);             \
  CHECK_EQUAL((wrong<std::int32_t>(&subspan::cpu::level::select_in_any_order<std::int32_t>)), 0); \
  CHECK_EQUAL((wrong<std::int64_t>(&subspan::cpu::level::select_in_any_order<std::int64_t>)), 0); \
  for (int n : {1, 2, 31, 64, 128}) CHECK(ranks(n, &subspan::cpu::level::rank_entries))

bool ranks(int n, void (*rank)(std::uint64_t*, index_t, index_t, std::uint64_t*)) {
  std::mt19937_64 random(1);
  std::vector<std::uint64_t> entries(static_cast<std::size_t>(n) + 8);
  for (auto& e : entries) e = random();
  for (int k = 1; k <= n; k += 7) {
    std::vector<std::uint64_t> out(static_cast<std::size_t>(k) + 1, 42), wanted(entries);
    rank(entries.data(), n, k, out.data());
    std::sort(wanted.begin(), wanted.begin() + n, std::greater<>());
    if (!std::equal(out.begin(), out.end() - 1, wanted.begin()) || out.back() != 42) return false;
  }
  return true;
}

}  // namespace

TEST(keys_are_in_the_order_of_the_scores) {
  float const infinity = std::numeric_limits<float>::infinity();
  float const ascending[] = {-infinity, -1.5f, -1e-45f, 0.0f, 1e-45f, 1.0f, 3e38f, infinity};
  using order = score_order<float>;
  for (int i = 1; i < 8; ++i) {
    CHECK(order::key(ascending[i - 1]) < order::key(ascending[i]));
    CHECK_EQUAL(order::score(order::key(ascending[i])), ascending[i]);
  }
  CHECK_EQUAL(order::key(-0.0f), order::key(0.0f));
  CHECK_EQUAL(order::key(std::nanf("")), 0u);
  CHECK_EQUAL(order::key(-std::nanf("")), 0u);
  CHECK(order::key(-infinity) > 0u);
  using integers = score_order<std::int64_t>;
  CHECK_EQUAL(integers::key(std::numeric_limits<std::int64_t>::min()), 0u);
  CHECK(integers::key(-1) < integers::key(0));
  CHECK_EQUAL(integers::score(integers::key(-7)), -7);
}

TEST(the_threshold_follows_the_kth_score) {
  std::vector<std::uint64_t> buffer(static_cast<std::size_t>(row_selector<float>::room(2)));
  row_selector<float> best(2, buffer.data());
  CHECK(best.least() == -std::numeric_limits<float>::infinity());
  for (int j = 0; j < 5; ++j) best.add(static_cast<float>(j), static_cast<std::uint32_t>(j));
  CHECK_EQUAL(best.keep_best(), 2);
  CHECK_EQUAL(best.least(), std::nextafter(3.0f, 4.0f));
  best.raise(1.0f);  // weaker than what is known
  CHECK_EQUAL(best.least(), std::nextafter(3.0f, 4.0f));
  best.add(3.0f, 9);  // equal, but later
  CHECK_EQUAL(best.count(), 2);
  float const infinity = std::numeric_limits<float>::infinity();
  best.add(infinity, 10);
  best.add(infinity, 11);
  CHECK(!best.closed());
  CHECK_EQUAL(best.keep_best(), 2);
  CHECK(best.closed());
  best.add(infinity, 12);
  CHECK_EQUAL(best.count(), 2);
}

TEST(equal_scores_get_in_while_indices_may_come_in_any_order) {
  float const infinity = std::numeric_limits<float>::infinity();
  std::vector<std::uint64_t> buffer(static_cast<std::size_t>(row_selector<float>::room(2)));
  row_selector<float> best(2, buffer.data(), false);
  for (std::uint32_t j : {9, 8, 7}) best.add(3.0f, j);
  CHECK_EQUAL(best.keep_best(), 2);
  CHECK_EQUAL(best.least(), 3.0f);
  best.add(std::nextafter(3.0f, 2.0f), 0);
  CHECK_EQUAL(best.count(), 2);
  for (std::uint32_t j : {30, 20, 10, 5}) best.add(infinity, j);
  CHECK_EQUAL(best.keep_best(), 2);
  CHECK(!best.closed());
  best.add(infinity, 1);
  CHECK_EQUAL(best.keep_best(), 2);
  std::sort(buffer.begin(), buffer.begin() + 2, std::greater<>());
  CHECK_EQUAL(index_of(buffer[0]), 1u);
  CHECK_EQUAL(index_of(buffer[1]), 5u);
}

TEST(selection_at_the_baseline) { CHECK_LEVEL(baseline); }

#if defined(SUBSPAN_HAS_LEVELS)
TEST(selection_at_v3) {
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    CHECK_LEVEL(v3);
  } else {
    std::printf("     this CPU has no v3\n");
  }
}

TEST(selection_at_v4) {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    CHECK_LEVEL(v4);
  } else {
    std::printf("     this CPU has no v4\n");
  }
}
#endif

TEST(selection_by_digits) {
  CHECK_EQUAL(wrong_digits<float>(), 0);
  CHECK_EQUAL(wrong_digits<double>(), 0);
  CHECK_EQUAL(wrong_digits<std::int32_t>(), 0);
}

int main() { return check::run_all(); }

#endif  // SUBSPAN_ONCE
