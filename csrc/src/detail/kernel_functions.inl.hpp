// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/vectors.inl.hpp and detail/kernel_tiles.hpp.
//
// Functions of a vector of scores, without tables and calls. `value` is the kernel, `slope` its
// derivative up to the constant of factor_of_gradient. Of kernels that are nowhere 0, `log_value` is
// the logarithm of the value to base 2, also where the value is too small for its type, and
// `log_slope` the slope over the value.

template <class P>
struct float_format;
template <>
struct float_format<float> {
  using bits = std::uint32_t;
  static constexpr int mantissa = 23;
  static constexpr float least = -125, most = 128;  // of exponents: below 0, from there on infinity
  static constexpr float integer = 0x1p23f, to_integer = 0x1.8p23f;
  // 2^f to 2 ulp for |f| <= 1/2, multiplications fused or not: least error in ulp, with 2^0 = 1.
  static constexpr float exp2[] = {0x1.5ab43ap-10f, 0x1.3cec66p-7f, 0x1.c6ba9ep-5f, 0x1.ebf9b2p-3f,
                                   0x1.62e424p-1f};
  static constexpr int exp2_terms = 5, log2_terms = 5;
  static constexpr float lowest = -0x1p120f;  // of logarithms: what is below is that of 0
};
template <>
struct float_format<double> {
  using bits = std::uint64_t;
  static constexpr int mantissa = 52;
  static constexpr double least = -1021, most = 1024;
  static constexpr double integer = 0x1p52, to_integer = 0x1.8p52;
  static constexpr double exp2[] = {
      0x1.e79e7a333240fp-32, 0x1.e61b42555b7a8p-28, 0x1.b5267af033198p-24, 0x1.62bfc7a4a8173p-20,
      0x1.ffcbfbaa7aa8bp-17, 0x1.4309130ed606cp-13, 0x1.5d87fe78cd37fp-10, 0x1.3b2ab6fba0127p-7,
      0x1.c6b08d7049fe9p-5,  0x1.ebfbdff82c5a4p-3,  0x1.62e42fefa39efp-1};
  static constexpr int exp2_terms = 11, log2_terms = 11;
  static constexpr double lowest = -0x1p1000;
};

template <class P>
using tile_vector = typename tile_shape<P>::vector;
template <class P>
struct bits_of {
  typedef typename float_format<P>::bits vector __attribute__((vector_size(SUBSPAN_VECTOR_BYTES)));
};
template <class P>
using tile_bits = typename bits_of<P>::vector;

/// v, in a register: else GCC reads memory again for each of its uses.
template <class V>
[[gnu::always_inline]] inline V in_register(V v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
  return v;
}

/// 2^-s for s > -`most`; beyond -`least` 0, so that nothing is subnormal. NaN stays NaN.
template <class P>
[[gnu::always_inline]] inline tile_vector<P> exp2_minus(tile_vector<P> s) {
  using format = float_format<P>;
  s = in_register(s);
  tile_vector<P> const shifted = format::to_integer - s, f = (format::to_integer - shifted) - s;
  tile_vector<P> p = format::exp2[0] * f + format::exp2[1];
#pragma GCC unroll 16
  for (int i = 2; i < format::exp2_terms; ++i) p = p * f + format::exp2[i];
  p = p * f + P{1};
  auto const power =
      (tile_vector<P>)((tile_bits<P>)p + ((tile_bits<P>)shifted << format::mantissa));
  return s > -format::least ? tile_vector<P>{} : power;
}
/// 2^x; infinity from `most` on.
template <class P>
[[gnu::always_inline]] inline tile_vector<P> exp2_of(tile_vector<P> x) {
  constexpr P infinity = std::numeric_limits<P>::infinity();
  return x >= float_format<P>::most ? infinity - tile_vector<P>{} : exp2_minus<P>(-x);
}

template <class P>
inline constexpr P k_log2_e = P(1.4426950408889634074);

/// log2(1 + z) for z >= 0, with a small relative error down to 0; NaN and infinity are not told
/// from numbers.
template <class P>
[[gnu::always_inline]] inline tile_vector<P> log2_one_plus(tile_vector<P> z) {
  using format = float_format<P>;
  using bits = typename format::bits;
  constexpr P root_half = P(0.70710678118654752440);
  tile_vector<P> const w = z + P{1}, lost = z - (w - P{1});
  // w = m 2^e with m from the root of a half to that of two.
  tile_bits<P> const e = ((tile_bits<P>)w - std::bit_cast<bits>(root_half)) >> format::mantissa,
                     power = e << format::mantissa;
  tile_vector<P> const m = (tile_vector<P>)((tile_bits<P>)w - power),
                       down = (tile_vector<P>)(std::bit_cast<bits>(P{1}) - power),
                       whole = (tile_vector<P>)(e | std::bit_cast<bits>(format::integer)) -
                               format::integer;
  // What was lost counts for small z; `down` is no number for the greatest.
  tile_vector<P> const rest = z < format::integer ? lost * down : tile_vector<P>{};
  // log(m) = 2 artanh(s)
  tile_vector<P> const s = ((m - P{1}) + rest) / (m + P{1}), square = s * s;
  tile_vector<P> sum = tile_vector<P>{} + P{2} / (2 * format::log2_terms + 1);
#pragma GCC unroll 16
  for (int k = format::log2_terms - 1; k >= 0; --k) sum = sum * square + P{2} / (2 * k + 1);
  return whole + s * sum * k_log2_e<P>;
}

/// The same of any score: infinity and NaN stay what they are.
template <class P>
[[gnu::always_inline]] inline tile_vector<P> log2_one_plus_any(tile_vector<P> z) {
  return z <= std::numeric_limits<P>::max() ? log2_one_plus<P>(z) : z;
}

template <class P>
struct of_gaussian {
  using V = tile_vector<P>;
  [[gnu::always_inline]] V value(V s) const { return exp2_minus<P>(s); }
  [[gnu::always_inline]] V slope(V s) const { return value(s); }
  [[gnu::always_inline]] V log_value(V s) const { return -s; }
  [[gnu::always_inline]] V log_slope(V) const { return V{} + P{1}; }
};
/// 1 over the root of a score; 0 of 0, where distances have no derivative.
template <class P>
[[gnu::always_inline]] inline tile_vector<P> over_root(tile_vector<P> s) {
  tile_vector<P> const r = square_root(s);
  return r == 0 ? r : 1 / r;
}
template <class P>
struct of_laplacian {
  using V = tile_vector<P>;
  [[gnu::always_inline]] V value(V s) const { return exp2_minus<P>(square_root(s)); }
  [[gnu::always_inline]] V slope(V s) const {
    V const r = square_root(s);
    return r == 0 ? r : exp2_minus<P>(r) / r;
  }
  [[gnu::always_inline]] V log_value(V s) const { return -square_root(s); }
  [[gnu::always_inline]] V log_slope(V s) const { return over_root<P>(s); }
};
/// e^-t, t the root of the score.
template <class P>
[[gnu::always_inline]] inline tile_vector<P> exp_below(tile_vector<P> t) {
  return exp2_minus<P>(t * k_log2_e<P>);
}
template <class P>
struct of_matern32 {
  using V = tile_vector<P>;
  [[gnu::always_inline]] V value(V s) const {
    V const t = square_root(s);
    return (t + P{1}) * exp_below<P>(t);
  }
  [[gnu::always_inline]] V slope(V s) const { return exp_below<P>(square_root(s)); }
  [[gnu::always_inline]] V log_value(V s) const {
    V const t = square_root(s);
    return log2_one_plus<P>(t) - t * k_log2_e<P>;
  }
  [[gnu::always_inline]] V log_slope(V s) const { return 1 / (square_root(s) + P{1}); }
};
template <class P>
struct of_matern52 {
  using V = tile_vector<P>;
  [[gnu::always_inline]] V value(V s) const {
    V const t = square_root(s);
    return (s * (P{1} / 3) + (t + P{1})) * exp_below<P>(t);
  }
  [[gnu::always_inline]] V slope(V s) const {
    V const t = square_root(s);
    return (t + P{1}) * exp_below<P>(t);
  }
  [[gnu::always_inline]] V log_value(V s) const {
    V const t = square_root(s);
    return log2_one_plus<P>(s * (P{1} / 3) + t) - t * k_log2_e<P>;
  }
  [[gnu::always_inline]] V log_slope(V s) const {
    V const above = square_root(s) + P{1};
    return above / (s * (P{1} / 3) + above);
  }
};
template <class P>
struct of_cauchy {
  using V = tile_vector<P>;
  [[gnu::always_inline]] V value(V s) const { return 1 / (s + P{1}); }
  [[gnu::always_inline]] V slope(V s) const { return value(s) * value(s); }
  [[gnu::always_inline]] V log_value(V s) const { return -log2_one_plus_any<P>(s); }
  [[gnu::always_inline]] V log_slope(V s) const { return 1 / (s + P{1}); }
};
template <class P>
struct of_rational_quadratic {
  using V = tile_vector<P>;
  P alpha;
  [[gnu::always_inline]] V value(V s) const {
    constexpr P most = std::numeric_limits<P>::max();
    V const made = exp2_minus<P>(log2_one_plus<P>(s) * alpha), kept = s > most ? V{} : made;
    return s == s ? kept : s;
  }
  [[gnu::always_inline]] V slope(V s) const { return value(s) / (s + P{1}); }
  [[gnu::always_inline]] V log_value(V s) const { return -log2_one_plus_any<P>(s) * alpha; }
  [[gnu::always_inline]] V log_slope(V s) const { return 1 / (s + P{1}); }
};
template <class P>
struct of_exp_dot {
  using V = tile_vector<P>;
  [[gnu::always_inline]] V value(V s) const { return exp2_of<P>(s); }
  [[gnu::always_inline]] V slope(V s) const { return value(s); }
  [[gnu::always_inline]] V log_value(V s) const { return s; }
  [[gnu::always_inline]] V log_slope(V) const { return V{} + P{1}; }
};
template <class P>
struct of_score {
  using V = tile_vector<P>;
  [[gnu::always_inline]] V value(V s) const { return s; }
  [[gnu::always_inline]] V slope(V) const { return V{} + P{1}; }
};
template <class P>
struct of_polynomial {
  using V = tile_vector<P>;
  P offset;
  int degree;
  [[gnu::always_inline]] static V power(V base, int n) {
    V result = V{} + P{1};
    for (; n > 0; n >>= 1, base *= base)
      if ((n & 1) != 0) result *= base;
    return result;
  }
  [[gnu::always_inline]] V value(V s) const { return power(s + offset, degree); }
  [[gnu::always_inline]] V slope(V s) const { return power(s + offset, degree - 1); }
};
template <class P>
struct of_distance {
  using V = tile_vector<P>;
  [[gnu::always_inline]] V value(V s) const { return square_root(s); }
  [[gnu::always_inline]] V slope(V s) const { return over_root<P>(s); }
};

/// Action::run(f, arguments...) with the functions of a kernel: the only place that knows all of
/// them. No lambda: its body would not be compiled for the level.
template <class P, class Action, class... Argument>
void with_function(kernel_params const& how, Argument... arguments) {
  switch (how.function) {
    case kernel_function::gaussian:
      return Action::run(of_gaussian<P>{}, arguments...);
    case kernel_function::laplacian:
      return Action::run(of_laplacian<P>{}, arguments...);
    case kernel_function::matern32:
      return Action::run(of_matern32<P>{}, arguments...);
    case kernel_function::matern52:
      return Action::run(of_matern52<P>{}, arguments...);
    case kernel_function::cauchy:
      return Action::run(of_cauchy<P>{}, arguments...);
    case kernel_function::rational_quadratic:
      return Action::run(of_rational_quadratic<P>{static_cast<P>(how.alpha)}, arguments...);
    case kernel_function::exp_dot:
    case kernel_function::softmax:
      return Action::run(of_exp_dot<P>{}, arguments...);
    case kernel_function::linear:
    case kernel_function::sqdistance:
      return Action::run(of_score<P>{}, arguments...);
    case kernel_function::polynomial:
      return Action::run(of_polynomial<P>{static_cast<P>(how.offset), how.degree}, arguments...);
    case kernel_function::distance:
      return Action::run(of_distance<P>{}, arguments...);
  }
}
