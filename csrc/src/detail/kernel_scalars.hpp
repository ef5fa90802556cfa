#pragma once

#include <cmath>
#include <limits>

#include "detail/lanes.hpp"
#include "subspan/kernel_matvec.hpp"

/// Functions of one score on the device; what they are is told in detail/kernel_functions.inl.hpp,
/// which has them for the vectors of the CPU.

namespace subspan::gpu {

template <class T>
inline constexpr T k_log2_e = T(1.4426950408889634074);

/// 2^x to 2 ulp: 0 where the power is subnormal, infinity where it is none.
SUBSPAN_DEVICE float exp2_of(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return x < -126 ? 0.0f : std::exp2(x);
#endif
}
SUBSPAN_DEVICE double exp2_of(double x) {
  double const y = std::exp2(x);
  return x < -1022 ? 0.0 : y;
}

/// The root of a score and 1 over a number, to an ulp.
SUBSPAN_DEVICE float root_of(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::sqrt(x);
#endif
}
SUBSPAN_DEVICE double root_of(double x) { return std::sqrt(x); }
SUBSPAN_DEVICE float one_over(float x) { return rough_inverse(x); }
SUBSPAN_DEVICE double one_over(double x) { return 1 / x; }

/// log2(1 + z), with a small relative error down to 0.
template <class T>
SUBSPAN_DEVICE T log2_one_plus(T z) {
  return std::log1p(z) * k_log2_e<T>;
}
template <class T>
SUBSPAN_DEVICE T exp_below(T t) {
  return exp2_of(-t * k_log2_e<T>);
}
/// 1 over the root of a score; 0 of 0, where distances have no derivative.
template <class T>
SUBSPAN_DEVICE T over_root(T s) {
  T const r = root_of(s);
  return r == 0 ? r : one_over(r);
}

template <class T>
struct of_gaussian {
  SUBSPAN_DEVICE T value(T s) const { return exp2_of(-s); }
  SUBSPAN_DEVICE T slope(T s) const { return value(s); }
  SUBSPAN_DEVICE T log_value(T s) const { return -s; }
  SUBSPAN_DEVICE T log_slope(T) const { return T(1); }
};
template <class T>
struct of_laplacian {
  SUBSPAN_DEVICE T value(T s) const { return exp2_of(-root_of(s)); }
  SUBSPAN_DEVICE T slope(T s) const {
    T const r = root_of(s);
    return r == 0 ? r : exp2_of(-r) * one_over(r);
  }
  SUBSPAN_DEVICE T log_value(T s) const { return -root_of(s); }
  SUBSPAN_DEVICE T log_slope(T s) const { return over_root(s); }
};
template <class T>
struct of_matern32 {
  SUBSPAN_DEVICE T value(T s) const {
    T const t = root_of(s);
    return (t + 1) * exp_below(t);
  }
  SUBSPAN_DEVICE T slope(T s) const { return exp_below(root_of(s)); }
  SUBSPAN_DEVICE T log_value(T s) const {
    T const t = root_of(s);
    return log2_one_plus(t) - t * k_log2_e<T>;
  }
  SUBSPAN_DEVICE T log_slope(T s) const { return one_over(root_of(s) + 1); }
};
template <class T>
struct of_matern52 {
  SUBSPAN_DEVICE T value(T s) const {
    T const t = root_of(s);
    return (s * T(1.0 / 3) + (t + 1)) * exp_below(t);
  }
  SUBSPAN_DEVICE T slope(T s) const {
    T const t = root_of(s);
    return (t + 1) * exp_below(t);
  }
  SUBSPAN_DEVICE T log_value(T s) const {
    T const t = root_of(s);
    return log2_one_plus(s * T(1.0 / 3) + t) - t * k_log2_e<T>;
  }
  SUBSPAN_DEVICE T log_slope(T s) const {
    T const above = root_of(s) + 1;
    return above * one_over(s * T(1.0 / 3) + above);
  }
};
template <class T>
struct of_cauchy {
  SUBSPAN_DEVICE T value(T s) const { return one_over(s + 1); }
  SUBSPAN_DEVICE T slope(T s) const { return value(s) * value(s); }
  SUBSPAN_DEVICE T log_value(T s) const { return -log2_one_plus(s); }
  SUBSPAN_DEVICE T log_slope(T s) const { return one_over(s + 1); }
};
template <class T>
struct of_rational_quadratic {
  T alpha;
  SUBSPAN_DEVICE T value(T s) const { return exp2_of(log_value(s)); }
  SUBSPAN_DEVICE T slope(T s) const { return value(s) * one_over(s + 1); }
  SUBSPAN_DEVICE T log_value(T s) const { return -log2_one_plus(s) * alpha; }
  SUBSPAN_DEVICE T log_slope(T s) const { return one_over(s + 1); }
};
template <class T>
struct of_exp_dot {
  SUBSPAN_DEVICE T value(T s) const { return exp2_of(s); }
  SUBSPAN_DEVICE T slope(T s) const { return value(s); }
  SUBSPAN_DEVICE T log_value(T s) const { return s; }
  SUBSPAN_DEVICE T log_slope(T) const { return T(1); }
};
template <class T>
struct of_score {
  SUBSPAN_DEVICE T value(T s) const { return s; }
  SUBSPAN_DEVICE T slope(T) const { return T(1); }
};
template <class T>
struct of_polynomial {
  T offset;
  int degree;
  static SUBSPAN_DEVICE T power(T base, int n) {
    T result = 1;
    for (; n > 0; n >>= 1, base *= base)
      if ((n & 1) != 0) result *= base;
    return result;
  }
  SUBSPAN_DEVICE T value(T s) const { return power(s + offset, degree); }
  SUBSPAN_DEVICE T slope(T s) const { return power(s + offset, degree - 1); }
};
template <class T>
struct of_distance {
  SUBSPAN_DEVICE T value(T s) const { return root_of(s); }
  SUBSPAN_DEVICE T slope(T s) const { return over_root(s); }
};

/// action(f) with the functions of a kernel that is nowhere 0.
template <class T, class Action>
SUBSPAN_DEVICE void with_log_function(kernel_params const& how, Action const& action) {
  switch (how.function) {
    case kernel_function::laplacian:
      return action(of_laplacian<T>{});
    case kernel_function::matern32:
      return action(of_matern32<T>{});
    case kernel_function::matern52:
      return action(of_matern52<T>{});
    case kernel_function::cauchy:
      return action(of_cauchy<T>{});
    case kernel_function::rational_quadratic:
      return action(of_rational_quadratic<T>{static_cast<T>(how.alpha)});
    case kernel_function::exp_dot:
    case kernel_function::softmax:
      return action(of_exp_dot<T>{});
    default:
      return action(of_gaussian<T>{});
  }
}

/// The same of any kernel.
template <class T, class Action>
SUBSPAN_DEVICE void with_function(kernel_params const& how, Action const& action) {
  switch (how.function) {
    case kernel_function::linear:
    case kernel_function::sqdistance:
      return action(of_score<T>{});
    case kernel_function::polynomial:
      return action(of_polynomial<T>{static_cast<T>(how.offset), how.degree});
    case kernel_function::distance:
      return action(of_distance<T>{});
    default:
      return with_log_function<T>(how, action);
  }
}

}  // namespace subspan::gpu
