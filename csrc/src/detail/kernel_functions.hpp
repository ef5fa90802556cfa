#pragma once

#include <cmath>

#include "subspan/kernel_matvec.hpp"

/// How kernels are made of scores. A *score* is what the tiles make of a pair of points, whose
/// coordinates were scaled when they were packed: the squared distance, or the inner product. So the
/// constants of a kernel cost nothing per pair. The functions of scores are in
/// kernel_functions.inl.hpp.

namespace subspan::detail {

constexpr bool is_radial(kernel_function k) {
  return k != kernel_function::exp_dot && k != kernel_function::softmax &&
         k != kernel_function::linear && k != kernel_function::polynomial;
}

/// Whether K is positive everywhere, so that it has a logarithm.
constexpr bool has_logarithm(kernel_function k) {
  return k <= kernel_function::exp_dot;  // all before it are, too
}

/// What coordinates are multiplied by after the division by the bandwidth; of a product those of x
/// alone.
inline double scale_of(kernel_params const& how) {
  constexpr double log2_e = 1.4426950408889634;
  switch (how.function) {
    case kernel_function::gaussian:
      return std::sqrt(0.5 * log2_e);
    case kernel_function::laplacian:
    case kernel_function::exp_dot:
    case kernel_function::softmax:
      return log2_e;
    case kernel_function::matern32:
      return std::sqrt(3.0);
    case kernel_function::matern52:
      return std::sqrt(5.0);
    case kernel_function::rational_quadratic:
      return std::sqrt(0.5 / how.alpha);
    default:
      return 1;
  }
}

/// The gradient of K_ij in x_i is this, times the slope of the score, times the scale of the
/// coordinates, times x_i - y_j as they are scaled, of kernels of products y_j.
inline double factor_of_gradient(kernel_params const& how) {
  constexpr double log_2 = 0.6931471805599453;
  switch (how.function) {
    case kernel_function::gaussian:
      return -2 * log_2;
    case kernel_function::laplacian:
      return -log_2;
    case kernel_function::matern32:
      return -1;
    case kernel_function::matern52:
      return -1.0 / 3;
    case kernel_function::cauchy:
      return -2;
    case kernel_function::sqdistance:
      return 2;
    case kernel_function::rational_quadratic:
      return -2 * how.alpha;
    case kernel_function::exp_dot:
    case kernel_function::softmax:
      return log_2;
    case kernel_function::polynomial:
      return how.degree;
    default:
      return 1;
  }
}

}  // namespace subspan::detail
