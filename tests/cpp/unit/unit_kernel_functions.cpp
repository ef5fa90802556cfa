// Powers of two and logarithms of kernel values against libm in more digits. Compiled once per level.

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "check.hpp"
#include "detail/kernel_tiles.hpp"
#include "detail/product_tile.hpp"
#include "one_by_one.hpp"
#include "subspan/device.hpp"

#define SUBSPAN_FILE "unit_kernel_functions.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {
// In this order: the later ones need the earlier.
// clang-format off
#include "detail/widen.inl.hpp"
#include "detail/product_tile.inl.hpp"
#include "detail/tile_engine.inl.hpp"
#include "detail/vectors.inl.hpp"
#include "detail/kernel_functions.inl.hpp"
// clang-format on

template <class P>
struct storing_value {
  template <class Function>
  static void run(Function f, P x, P* out) {
    *out = f.value(x - tile_vector<P>{})[tile_shape<P>::lanes - 1];
  }
};
template <class P>
struct storing_slope {
  template <class Function>
  static void run(Function f, P x, P* out) {
    *out = f.slope(x - tile_vector<P>{})[0];
  }
};

template <class P>
struct storing_logs {
  template <class Function>
  static void run(Function f, P x, P* value, P* slope) {
    if constexpr (requires { f.log_value(tile_vector<P>{}); }) {
      *value = f.log_value(x - tile_vector<P>{})[0];
      *slope = f.log_slope(x - tile_vector<P>{})[tile_shape<P>::lanes - 1];
    }
  }
};

template <class P>
P one_exp2_minus(P x) {
  return exp2_minus<P>(x - tile_vector<P>{})[0];
}
template <class P>
P one_exp2(P x) {
  return exp2_of<P>(x - tile_vector<P>{})[0];
}
template <class P>
P one_log2(P x) {
  return log2_one_plus<P>(x - tile_vector<P>{})[0];
}
template <class P>
P one_value(kernel_params const& how, P x) {
  P out{};
  with_function<P, storing_value<P>>(how, x, &out);
  return out;
}
template <class P>
P one_slope(kernel_params const& how, P x) {
  P out{};
  with_function<P, storing_slope<P>>(how, x, &out);
  return out;
}

template <class P>
void one_log(kernel_params const& how, P x, P* value, P* slope) {
  with_function<P, storing_logs<P>>(how, x, value, slope);
}

template <class P>
constexpr one_by_one<P> functions{&one_exp2_minus<P>, &one_exp2<P>,  &one_log2<P>,
                                  &one_value<P>,      &one_slope<P>, &one_log<P>};

}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace {

template <class P>
std::vector<one_by_one<P>> levels() {
  using namespace subspan::cpu;
  std::vector<one_by_one<P>> all{baseline::functions<P>};
#if defined(SUBSPAN_HAS_LEVELS)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    all.push_back(v3::functions<P>);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
    all.push_back(v4::functions<P>);
#endif
  return all;
}

/// check(functions, P{}) at every level, in both types.
template <class Check>
void each_level(Check&& check) {
  for (auto const& f : levels<float>()) check(f, float{});
  for (auto const& f : levels<double>()) check(f, double{});
}

/// Distance in units of the last place of what is right.
template <class P>
double ulp(P got, long double wanted) {
  auto const size = static_cast<P>(std::abs(wanted));
  auto const place =
      static_cast<long double>(std::nextafter(size, std::numeric_limits<P>::infinity())) - size;
  return static_cast<double>(std::abs(static_cast<long double>(got) - wanted) / place);
}

TEST(powers_of_two_have_at_most_two_ulp) {
  each_level([](auto const& f, auto zero) {
    using P = decltype(zero);
    double const most = sizeof(P) == 4 ? 125 : 1021;
    std::mt19937_64 random(1);
    std::uniform_real_distribution<double> wide(-most, most + 2), narrow(-0.5, 0.5);
    double worst = 0;
    for (int i = 0; i < 400000; ++i) {
      P const x = static_cast<P>(i % 2 == 0 ? wide(random) : narrow(random));
      worst = std::max(worst, ulp(f.exp2(x), std::exp2(static_cast<long double>(x))));
      if (std::abs(x) <= most)
        worst = std::max(worst, ulp(f.exp2_minus(x), std::exp2(-static_cast<long double>(x))));
    }
    CHECK(worst <= 2);
  });
}

TEST(powers_of_integers_are_exact_and_the_ends_are_kept) {
  each_level([](auto const& f, auto zero) {
    using P = decltype(zero);
    using limits = std::numeric_limits<P>;
    int const most = sizeof(P) == 4 ? 125 : 1021;
    for (int n = -most; n <= most + 2; ++n) CHECK_EQUAL(f.exp2(P(n)), std::ldexp(P(1), n));
    P const top = P(most + 3);
    CHECK(std::isfinite(f.exp2(std::nextafter(top, P(0)))));
    for (P const x : {top, top * 2, limits::max(), limits::infinity()})
      CHECK_EQUAL(f.exp2(x), limits::infinity());
    for (P const x :
         {std::nextafter(P(most), top), top, top * 100, limits::max(), limits::infinity()}) {
      CHECK_EQUAL(f.exp2_minus(x), P(0));
      CHECK_EQUAL(f.exp2(-x), P(0));
    }
    CHECK_EQUAL(f.exp2_minus(P(-0.0)), P(1));
    CHECK_EQUAL(f.exp2_minus(limits::denorm_min()), P(1));
    CHECK(std::isnan(f.exp2(limits::quiet_NaN())) &&
          std::isnan(f.exp2_minus(-limits::quiet_NaN())));
  });
}

TEST(logarithms_are_right_down_to_zero) {
  each_level([](auto const& f, auto zero) {
    using P = decltype(zero);
    std::mt19937_64 random(2);
    double const span = sizeof(P) == 4 ? 120 : 1000;
    std::uniform_real_distribution<double> exponent(-span, span), near(-3, 3);
    double worst = 0;
    for (int i = 0; i < 200000; ++i) {
      P const z = static_cast<P>(std::exp2(i % 2 == 0 ? exponent(random) : near(random)));
      long double const wanted =
          std::log1p(static_cast<long double>(z)) * 1.44269504088896340735992468100189214L;
      worst = std::max(worst, ulp(f.log2_one_plus(z), wanted));
    }
    CHECK(worst <= 4);
    CHECK_EQUAL(f.log2_one_plus(P(0)), P(0));
    for (int n = 1; n < 20; ++n) CHECK_EQUAL(f.log2_one_plus(std::ldexp(P(1), n) - 1), P(n));
  });
}

TEST(values_at_zero_far_away_and_of_nan) {
  using kind = subspan::kernel_function;
  each_level([](auto const& f, auto zero) {
    using P = decltype(zero);
    using limits = std::numeric_limits<P>;
    for (kind const k : {kind::gaussian, kind::laplacian, kind::matern32, kind::matern52,
                         kind::cauchy, kind::rational_quadratic}) {
      subspan::kernel_params how;
      how.function = k;
      CHECK_EQUAL(f.value(how, P(0)), P(1));
      CHECK_EQUAL(f.slope(how, P(0)), k == kind::laplacian ? P(0) : P(1));
      CHECK(f.value(how, limits::max()) < P(1e-30));
      CHECK(std::isnan(f.value(how, limits::quiet_NaN())));
    }
    for (kind const k : {kind::distance, kind::sqdistance, kind::polynomial, kind::exp_dot}) {
      subspan::kernel_params how;
      how.function = k;
      CHECK(std::isnan(f.value(how, limits::quiet_NaN())));
    }
    subspan::kernel_params how;
    how.function = kind::distance;
    CHECK_EQUAL(f.value(how, P(9)), P(3));
    CHECK_EQUAL(f.slope(how, P(4)), P(0.5));
    CHECK_EQUAL(f.slope(how, P(0)), P(0));
    how = {kind::polynomial, 1, 5, 1};
    CHECK_EQUAL(f.value(how, P(2)), P(243));
    CHECK_EQUAL(f.slope(how, P(2)), P(81));
  });
}

TEST(logarithms_of_values_go_on_where_values_end) {
  using kind = subspan::kernel_function;
  each_level([](auto const& f, auto zero) {
    using P = decltype(zero);
    double const unit = std::numeric_limits<P>::epsilon();
    for (kind const k : {kind::gaussian, kind::laplacian, kind::matern32, kind::matern52,
                         kind::cauchy, kind::rational_quadratic, kind::exp_dot}) {
      subspan::kernel_params how;
      how.function = k;
      how.alpha = 0.7;
      P value{}, slope{};
      for (double s = 0.01; s < 90; s *= 1.17) {
        P const x = static_cast<P>(s);
        f.log_value(how, x, &value, &slope);
        double const wanted = std::log2(static_cast<double>(f.value(how, x)));
        CHECK(std::abs(static_cast<double>(value) - wanted) <= 8 * unit * (1 + std::abs(wanted)));
        double const ratio =
            static_cast<double>(f.slope(how, x)) / static_cast<double>(f.value(how, x));
        CHECK(std::abs(static_cast<double>(slope) - ratio) <= 8 * unit * ratio);
      }
      f.log_value(how, P(0), &value, &slope);
      CHECK_EQUAL(value, P(0));
      f.log_value(how, std::numeric_limits<P>::quiet_NaN(), &value, &slope);
      CHECK(std::isnan(value));
      f.log_value(how, P(1e30), &value, &slope);
      CHECK(std::isfinite(value) && (k == kind::exp_dot) == (value > 0));
    }
  });
}

}  // namespace

int main() { return check::run_all(); }

#endif  // SUBSPAN_ONCE
