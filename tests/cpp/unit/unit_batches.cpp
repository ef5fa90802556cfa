// The scratch of svd, eigh and qr, given by an allocator that leaves NaN in it and guards its end.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "check.hpp"
#include "subspan/eigh.hpp"
#include "subspan/qr.hpp"
#include "subspan/svd.hpp"

namespace {

using subspan::index_t;

/// Scratch full of NaN, with a guard behind it that must stay as it is.
struct hostile_memory {
  static constexpr std::size_t k_guard = 256, k_alignment = 64;
  index_t damaged = 0;
  std::size_t most = 0;

  static void* allocate(void* user, std::size_t bytes, std::size_t) {
    auto& self = *static_cast<hostile_memory*>(user);
    self.most = std::max(self.most, bytes);
    void* const p = ::operator new(bytes + k_guard, std::align_val_t{k_alignment});
    std::memset(p, 0xff, bytes + k_guard);
    return p;
  }
  static void deallocate(void* user, void* p, std::size_t bytes) {
    auto const* const end = static_cast<unsigned char const*>(p) + bytes;
    static_cast<hostile_memory*>(user)->damaged +=
        std::any_of(end, end + k_guard, [](unsigned char c) { return c != 0xff; });
    ::operator delete(p, std::align_val_t{k_alignment});
  }
};

template <class T>
index_t not_finite(std::vector<T> const& a) {
  return std::count_if(a.begin(), a.end(), [](T x) { return !std::isfinite(x); });
}

template <class T>
void check_scratch(index_t batch, index_t m, index_t n) {
  hostile_memory memory;
  subspan::context ctx;
  ctx.threads = 1;
  ctx.allocator = {&hostile_memory::allocate, &hostile_memory::deallocate, &memory};
  index_t const k = std::min(m, n);
  std::mt19937 random(4);
  std::vector<T> a(batch * m * n), left(batch * m * k), right(batch * k * n);
  for (T& x : a) x = static_cast<T>(random() % 2001) / 1000 - 1;
  std::vector<T> values(batch * k), square(batch * k * k);
  std::vector<std::int32_t> info(batch, 7);
  auto const matrices = subspan::make_view<3>(static_cast<T const*>(a.data()), {batch, m, n});
  auto const first = subspan::make_view<3>(left.data(), {batch, m, k});
  auto const second = subspan::make_view<3>(right.data(), {batch, k, n});
  auto const few = subspan::make_view<2>(values.data(), {batch, k});
  auto const status = subspan::make_view<1>(info.data(), {batch});
  index_t bad = 0;
  subspan::svd<T>(ctx, matrices, few, first, second, status);
  bad += not_finite(values) + not_finite(left) + not_finite(right);
  subspan::svd<T>(ctx, matrices, few, {}, {}, status);
  bad += not_finite(values);
  subspan::qr<T>(ctx, matrices, first, second, status);
  bad += not_finite(left) + not_finite(right);
  if (m == n) {
    subspan::eigh<T>(ctx, matrices, few, subspan::make_view<3>(square.data(), {batch, k, k}),
                     status);
    bad += not_finite(values) + not_finite(square);
    subspan::eigh<T>(ctx, matrices, few, {}, status);
    bad += not_finite(values);
  }
  bad += std::count_if(info.begin(), info.end(), [](std::int32_t i) { return i != 0; });
  // At most the packs, the parts of a matrix and its factors, of the widest vectors.
  std::size_t const whole = (m + 16) * (k + 16) + 4 * (k + 16) * (k + 16) * 64 * 4;
  bool const fine = bad == 0 && memory.damaged == 0 && memory.most <= whole;
  check::report(fine, __FILE__, __LINE__,
                std::to_string(batch) + " of " + std::to_string(m) + " x " + std::to_string(n) +
                    ": " + std::to_string(bad) + " bad, " + std::to_string(memory.damaged) +
                    " damaged, " + std::to_string(memory.most) + " bytes");
}

}  // namespace

TEST(scratch_is_large_enough_and_may_hold_anything) {
  for (index_t batch : {1, 18})
    for (index_t m : {1, 2, 3, 5, 16, 17, 31, 33, 34, 37, 66, 129, 300})
      for (index_t n : {1, 2, 4, 7, 16, 18, 32, 33, 35, 65, 128, 400}) {
        if (batch * m * n * std::min(m, n) > 6'000'000) continue;
        check_scratch<float>(batch, m, n);
        check_scratch<double>(batch, m, n);
      }
  for (index_t n : {129, 145, 160}) {
    check_scratch<float>(3, n, n);
    check_scratch<double>(3, n, n);
  }
}

int main() { return check::run_all(); }
