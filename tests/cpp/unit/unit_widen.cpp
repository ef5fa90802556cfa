// Compiled once per instruction-set level, like the kernels that it tests.

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.hpp"
#include "subspan/device.hpp"
#include "subspan/types.hpp"

#define SUBSPAN_FILE "unit_widen.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
#include "detail/widen.inl.hpp"
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace {

using subspan::bfloat16;
using subspan::half;
using subspan::index_t;

/// From the definition of binary16, without tricks.
double reference(half h) {
  int const exponent = h.bits >> 10 & 31, fraction = h.bits & 1023;
  double const sign = h.bits >> 15 != 0 ? -1.0 : 1.0;
  if (exponent == 31)
    return fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

double reference(bfloat16 b) {
  float value = 0;
  std::uint32_t const bits = std::uint32_t{b.bits} << 16;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

bool same(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return a == b && std::signbit(a) == std::signbit(b);
}

/// All 65536 values, with every stride that takes another loop.
template <class T, class P>
int wrong(void (*widen)(T const*, index_t, index_t, P*)) {
  int count = 0;
  constexpr index_t n = 65536;
  for (index_t stride : {1, 3, -1}) {
    std::vector<T> in(static_cast<std::size_t>(n * std::abs(stride)));
    std::vector<P> out(static_cast<std::size_t>(n) + 1, P(42));
    T* const first = in.data() + (stride < 0 ? (n - 1) * -stride : 0);
    for (index_t i = 0; i < n; ++i) first[i * stride].bits = static_cast<std::uint16_t>(i);
    widen(first, stride, n, out.data());
    for (index_t i = 0; i < n; ++i)
      count += !same(static_cast<double>(out[static_cast<std::size_t>(i)]),
                     reference(T{static_cast<std::uint16_t>(i)}));
    count += out[static_cast<std::size_t>(n)] != P(42);  // nothing behind the end
  }
  return count;
}

#define CHECK_LEVEL(level)                                                                \
  CHECK_EQUAL((wrong<half, float>(&subspan::cpu::level::widen<half, float>)), 0);         \
  CHECK_EQUAL((wrong<half, double>(&subspan::cpu::level::widen<half, double>)), 0);       \
  CHECK_EQUAL((wrong<bfloat16, float>(&subspan::cpu::level::widen<bfloat16, float>)), 0); \
  CHECK_EQUAL((wrong<bfloat16, double>(&subspan::cpu::level::widen<bfloat16, double>)), 0)

}  // namespace

TEST(all_values_at_the_baseline) { CHECK_LEVEL(baseline); }

#if defined(SUBSPAN_HAS_LEVELS)
TEST(all_values_at_v3) {
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    CHECK_LEVEL(v3);
  } else {
    std::printf("     this CPU has no v3\n");
  }
}

TEST(all_values_at_v4) {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    CHECK_LEVEL(v4);
  } else {
    std::printf("     this CPU has no v4\n");
  }
}
#endif

#if defined(__FLT16_MAX__)
TEST(the_compiler_agrees_with_the_reference) {
  int count = 0;
  for (int i = 0; i < 65536; ++i) {
    auto const bits = static_cast<std::uint16_t>(i);
    count += !same(static_cast<double>(std::bit_cast<_Float16>(bits)), reference(half{bits}));
  }
  CHECK_EQUAL(count, 0);
}
#endif

int main() { return check::run_all(); }

#endif  // SUBSPAN_ONCE
