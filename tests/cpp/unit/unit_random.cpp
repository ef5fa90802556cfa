#include "subspan/random.hpp"

#include <cmath>
#include <vector>

#include "check.hpp"

using subspan::philox;
using subspan::random_normal;
using subspan::random_words;
using words = std::array<std::uint32_t, 4>;

/// The known answers that come with Random123 (kat_vectors, philox4x32 with 10 rounds).
TEST(known_answers) {
  CHECK(philox({0, 0, 0, 0}, {0, 0}) == words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  std::uint32_t const ones = 0xffffffff;
  CHECK(philox({ones, ones, ones, ones}, {ones, ones}) ==
        words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST(seed_stream_and_index_are_key_and_counter) {
  CHECK(random_words(0x299f31d0a4093822u, 0x0370734413198a2eu, 0x85a308d3243f6a88u) ==
        words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST(normal_moments) {
  // n = 10^6: the k-th moment has standard deviation sqrt(((2k-1)!! - m_k^2) / n); 5 of them.
  long const n = 1000000;
  double sum[5] = {};
  double largest = 0, lag = 0, previous = 0;
  for (long i = 0; i < n; ++i) {
    double const z = random_normal(7, 3, static_cast<std::uint64_t>(i));
    double power = 1;
    for (double& s : sum) s += (power *= z);
    lag += z * previous;
    previous = z;
    largest = std::max(largest, std::abs(z));
  }
  double const wanted[5] = {0, 1, 0, 3, 0}, variance[5] = {1, 2, 15, 96, 945};
  for (int k = 0; k < 5; ++k)
    CHECK(std::abs(sum[k] / n - wanted[k]) < 5 * std::sqrt(variance[k] / n));
  CHECK(std::abs(lag / n) < 5 / std::sqrt(n));
  CHECK(largest > 4 && largest < 6.5);  // P(outside) < 1e-3 each way
}

template <class T>
void same_for_any_threads_and_strides() {
  subspan::index_t const n = 10007;
  std::vector<T> one(n), many(n), strided(3 * n, T(-1));
  subspan::context ctx;
  ctx.threads = 1;
  subspan::fill_normal<T>(ctx, subspan::make_view<1>(one.data(), {n}), 11, 5);
  for (int threads : {2, 3, 8}) {
    ctx.threads = threads;
    std::fill(many.begin(), many.end(), T(0));
    subspan::fill_normal<T>(ctx, subspan::make_view<1>(many.data(), {n}), 11, 5);
    CHECK(one == many);
  }
  subspan::strided_view<T, 1> const back{strided.data() + 3 * (n - 1), {n}, {-3}, {}};
  subspan::fill_normal<T>(ctx, back, 11, 5);
  bool same = true;
  for (subspan::index_t i = 0; i < n; ++i) {
    same &= one[i] == static_cast<T>(random_normal(11, 5, static_cast<std::uint64_t>(i)));
    same &= strided[3 * (n - 1 - i)] == one[i];
    if (i > 0) same &= strided[3 * i - 1] == T(-1);
  }
  CHECK(same);
  subspan::fill_normal<T>(ctx, subspan::make_view<1>(many.data(), {n}), 12, 5);
  CHECK(one != many);
  subspan::fill_normal<T>(ctx, subspan::make_view<1>(many.data(), {n}), 11, 6);
  CHECK(one != many);
  subspan::fill_normal<T>(ctx, subspan::make_view<1>(static_cast<T*>(nullptr), {0}), 11, 6);
}

TEST(fill_normal_float) { same_for_any_threads_and_strides<float>(); }
TEST(fill_normal_double) { same_for_any_threads_and_strides<double>(); }

int main() { return check::run_all(); }
