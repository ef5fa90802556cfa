// What each public function refuses, and that it says so before it writes anything.

#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "check.hpp"
#include "detail/contract.hpp"
#include "subspan/subspan.hpp"

using namespace subspan;

namespace {

constexpr double k_nan = std::numeric_limits<double>::quiet_NaN();
constexpr double k_inf = std::numeric_limits<double>::infinity();
constexpr device k_cuda{device_kind::cuda, 0};

/// Three 4 x 3 matrices and room for every output.
struct batch {
  std::vector<double> a, s, u, vh, w, v;
  std::vector<std::int32_t> info;
  batch() : a(36), s(9, -7), u(36, -7), vh(27, -7), w(9, -7), v(27, -7), info(3, -7) {
    for (std::size_t i = 0; i < a.size(); ++i) a[i] = std::sin(static_cast<double>(i));
  }
  strided_view<double const, 3> in() const { return make_view<3>(a.data(), {3, 4, 3}); }
  strided_view<double const, 3> square() const { return make_view<3>(a.data(), {3, 3, 3}); }
  auto S() { return make_view<2>(s.data(), {3, 3}); }
  auto U() { return make_view<3>(u.data(), {3, 4, 3}); }
  auto Vh() { return make_view<3>(vh.data(), {3, 3, 3}); }
  auto W() { return make_view<2>(w.data(), {3, 3}); }
  auto V() { return make_view<3>(v.data(), {3, 3, 3}); }
  auto I() { return make_view<1>(info.data(), {3}); }
  void call_svd(decomposition_params params = {}) {
    svd<double>({}, in(), S(), U(), Vh(), I(), params);
  }
  bool untouched() const {
    for (auto const* each : {&s, &u, &vh, &w, &v})
      for (double x : *each)
        if (x != -7) return false;
    for (auto x : info)
      if (x != -7) return false;
    return true;
  }
};

struct rows {
  index_t n = 6, d = 3, e = 2;
  std::vector<double> x, y, weights, mean, mean_y, m2, cross, sums;
  std::vector<index_t> ids;
  index_t count = 0;
  double weight = 0, square = 0, cross_weight = 0;
  rows() : x(18), y(12), weights(6, 1.0), mean(3), mean_y(2), m2(9), cross(6), sums(6), ids(6) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::cos(static_cast<double>(i));
    for (std::size_t i = 0; i < y.size(); ++i) y[i] = std::sin(static_cast<double>(i));
  }
  strided_view<double const, 2> X() const { return make_view<2>(x.data(), {n, d}); }
  strided_view<double const, 2> Y() const { return make_view<2>(y.data(), {n, e}); }
  strided_view<double const, 1> Weights() const { return make_view<1>(weights.data(), {n}); }
  strided_view<index_t const, 1> Ids() const { return make_view<1>(ids.data(), {n}); }
  moments_view state() {
    return {&count, &weight, &square, make_view<1>(mean.data(), {d}),
            make_view<2>(m2.data(), {d, d})};
  }
  cross_moments_view cross_state() {
    return {&cross_weight, make_view<1>(mean.data(), {d}), make_view<1>(mean_y.data(), {e}),
            make_view<2>(cross.data(), {d, e})};
  }
  bool empty() const {
    for (auto const* each : {&mean, &mean_y, &m2, &cross, &sums})
      for (double v : *each)
        if (v != 0) return false;
    return count == 0 && weight == 0 && square == 0 && cross_weight == 0;
  }
};

template <class View>
View on_cuda(View view) {
  view.device = k_cuda;
  return view;
}

}  // namespace

TEST(fail_and_expects_make_the_text) {
  CHECK_THROWS(internal, "[f] a must be 1, got 2.5 x",
               detail::fail(error_kind::internal, "f", "a must be ", 1, ", got ", 2.5, " x"));
  CHECK_THROWS(invalid_argument, "[g] no", detail::expects(false, "g", "no"));
  detail::expects(true, "g", "no");
}

TEST(svd_refuses) {
  batch b;
  CHECK_THROWS(invalid_argument, "[svd] s must",
               svd<double>({}, b.in(), make_view<2>(b.s.data(), {3, 2}), b.U(), b.Vh(), b.I()));
  CHECK_THROWS(invalid_argument, "[svd] u and vh must be given together",
               svd<double>({}, b.in(), b.S(), b.U(), std::nullopt, b.I()));
  CHECK_THROWS(invalid_argument, "[svd] u and vh must be given together",
               svd<double>({}, b.in(), b.S(), std::nullopt, b.Vh(), b.I()));
  CHECK_THROWS(invalid_argument, "[svd] u must",
               svd<double>({}, b.in(), b.S(), b.Vh(), b.Vh(), b.I()));
  auto transposed = b.Vh();
  std::swap(transposed.strides[1], transposed.strides[2]);
  CHECK_THROWS(invalid_argument, "[svd] vh must be C-ordered",
               svd<double>({}, b.in(), b.S(), b.U(), transposed, b.I()));
  CHECK_THROWS(
      invalid_argument,
      "[svd] info must be contiguous, on the device of a, with one entry per matrix (3), got 2",
      svd<double>({}, b.in(), b.S(), b.U(), b.Vh(), make_view<1>(b.info.data(), {2})));
  strided_view<std::int32_t, 1> const back{b.info.data() + 2, {3}, {-1}, {}};
  CHECK_THROWS(invalid_argument, "[svd] info must",
               svd<double>({}, b.in(), b.S(), b.U(), b.Vh(), back));
  CHECK_THROWS(invalid_argument, "[svd] vh must not overlap a",
               svd<double>({}, b.in(), b.S(), b.U(), make_view<3>(b.a.data(), {3, 3, 3}), b.I()));
  CHECK_THROWS(invalid_argument, "[svd] info must be contiguous, on the device of a",
               svd<double>({}, on_cuda(b.in()), b.S(), b.U(), b.Vh(), b.I()));
  CHECK_THROWS(unsupported, "[svd] this build has no CUDA library",
               svd<double>({}, on_cuda(b.in()), on_cuda(b.S()), on_cuda(b.U()), on_cuda(b.Vh()),
                           on_cuda(b.I())));
  CHECK_THROWS(invalid_argument, "[svd] s must",
               svd<double>({}, b.in(), on_cuda(b.S()), b.U(), b.Vh(), b.I()));
  strided_view<double const, 3> const many{b.a.data(), {1, index_t{1} << 31, 0}, {0, 0, 1}, {}};
  CHECK_THROWS(invalid_argument, "[svd] a must have fewer than 2^31 rows and columns",
               svd<double>({}, many, make_view<2>(b.s.data(), {1, 0}), std::nullopt, std::nullopt,
                           make_view<1>(b.info.data(), {1})));
  CHECK(b.untouched());
}

TEST(policies_for_nan_and_infinity) {
  for (double bad : {k_nan, k_inf, -k_inf}) {
    batch b, clean;
    clean.call_svd();
    b.a[12 + 5] = bad;
    CHECK_THROWS(invalid_argument, "[svd] a must be finite, got NaN or infinity in matrix 1 of 3",
                 b.call_svd());
    decomposition_params params;
    params.nonfinite = nonfinite_policy::propagate;
    b.call_svd(params);
    CHECK(b.info[0] == 0 && b.info[1] == -1 && b.info[2] == 0);
    for (int i = 0; i < 3; ++i) {
      CHECK(std::isnan(b.s[3 + i]));
      CHECK_EQUAL(b.s[i], clean.s[i]);
      CHECK_EQUAL(b.s[6 + i], clean.s[6 + i]);
    }
    for (int i = 0; i < 12; ++i) {
      CHECK(std::isnan(b.u[12 + i]));
      CHECK_EQUAL(b.u[i], clean.u[i]);
    }
  }
}

TEST(eigh_refuses) {
  batch b;
  CHECK_THROWS(invalid_argument, "[eigh] a must be square in its last two axes, got 4 x 3",
               eigh<double>({}, b.in(), b.W(), b.V(), b.I()));
  CHECK_THROWS(invalid_argument, "[eigh] values must",
               eigh<double>({}, b.square(), make_view<2>(b.w.data(), {2, 3}), b.V(), b.I()));
  CHECK_THROWS(invalid_argument, "[eigh] vectors must",
               eigh<double>({}, b.square(), b.W(), b.U(), b.I()));
  CHECK_THROWS(invalid_argument, "[eigh] vectors must not overlap a",
               eigh<double>({}, b.square(), b.W(), make_view<3>(b.a.data() + 8, {3, 3, 3}), b.I()));
  CHECK_THROWS(
      unsupported, "[eigh] this build has no CUDA library",
      eigh<double>({}, on_cuda(b.square()), on_cuda(b.W()), on_cuda(b.V()), on_cuda(b.I())));
  b.a[9 + 3] = k_nan;  // lower triangle of the second matrix
  CHECK_THROWS(invalid_argument, "in matrix 1 of 3",
               eigh<double>({}, b.square(), b.W(), b.V(), b.I()));
  batch upper;
  upper.a[9 + 1] = k_nan;  // nobody reads it
  eigh<double>({}, upper.square(), upper.W(), upper.V(), upper.I());
  for (double w : upper.w) CHECK(std::isfinite(w));
}

TEST(qr_refuses) {
  batch b;
  CHECK_THROWS(invalid_argument, "[qr] q must", qr<double>({}, b.in(), b.Vh(), b.V(), b.I()));
  CHECK_THROWS(invalid_argument, "[qr] r must", qr<double>({}, b.in(), b.U(), b.U(), b.I()));
  CHECK_THROWS(invalid_argument, "[qr] r must not overlap a",
               qr<double>({}, b.in(), b.U(), make_view<3>(b.a.data(), {3, 3, 3}), b.I()));
  CHECK_THROWS(unsupported, "[qr] this build has no CUDA library",
               qr<double>({}, on_cuda(b.in()), on_cuda(b.U()), on_cuda(b.V()), on_cuda(b.I())));
  CHECK(b.untouched());
}

TEST(moments_update_refuses) {
  rows r;
  auto const update = [&](auto x, auto weights, moments_view state) {
    moments_update<double>({}, x, weights, state);
  };
  std::optional<strided_view<double const, 1>> const none;
  auto narrow = r.state();
  narrow.mean.shape[0] = 2;
  CHECK_THROWS(invalid_argument, "[moments_update] state.mean must", update(r.X(), none, narrow));
  auto flat = r.state();
  flat.m2.shape = {3, 2};
  CHECK_THROWS(invalid_argument, "[moments_update] state.m2 must", update(r.X(), none, flat));
  auto few = r.Weights();
  few.shape[0] = 5;
  CHECK_THROWS(invalid_argument, "weights must have one entry per row of x (6), got 5",
               update(r.X(), std::optional(few), r.state()));
  CHECK_THROWS(invalid_argument, "weights must be on the device of x",
               update(r.X(), std::optional(on_cuda(r.Weights())), r.state()));
  for (double bad : {-1.0, k_nan, k_inf}) {
    r.weights[4] = bad;
    CHECK_THROWS(invalid_argument, "weights must be finite and >= 0, got ",
                 update(r.X(), std::optional(r.Weights()), r.state()));
    CHECK_THROWS(invalid_argument, " in row 4",
                 update(r.X(), std::optional(r.Weights()), r.state()));
  }
  r.weights[4] = 0;
  for (double bad : {k_nan, k_inf, -k_inf}) {
    r.x[3 * 3 + 2] = bad;
    CHECK_THROWS(invalid_argument,
                 std::isnan(bad) ? "x must be finite, got NaN in row 3, column 2"
                                 : "got infinity in row 3, column 2",
                 update(r.X(), none, r.state()));
  }
  r.x[3 * 3 + 2] = 1e200;
  CHECK_THROWS(invalid_argument, "x must have squares that float64 can hold",
               update(r.X(), none, r.state()));
  CHECK_THROWS(unsupported, "CUDA", update(on_cuda(r.X()), none, r.state()));
  CHECK(r.empty());
}

TEST(cross_moments_update_refuses) {
  rows r;
  auto const update = [&](auto x, auto y, cross_moments_view state) {
    cross_moments_update<double>({}, x, y, std::nullopt, state);
  };
  auto fewer = r.Y();
  fewer.shape[0] = 4;
  CHECK_THROWS(invalid_argument, "y must have the rows of x (6)",
               update(r.X(), fewer, r.cross_state()));
  CHECK_THROWS(unsupported, "[cross_moments_update] has no CUDA kernel yet",
               update(on_cuda(r.X()), on_cuda(r.Y()), r.cross_state()));
  auto flat = r.cross_state();
  flat.cross.shape = {2, 3};
  CHECK_THROWS(invalid_argument, "state.cross must", update(r.X(), r.Y(), flat));
  r.y[5] = k_nan;
  CHECK_THROWS(invalid_argument, "y must be finite, got NaN in row 2, column 1",
               update(r.X(), r.Y(), r.cross_state()));
  CHECK(r.empty());
}

TEST(merges_refuse) {
  rows a, b;
  auto narrow = b.state();
  narrow.m2.shape = {2, 2};
  CHECK_THROWS(invalid_argument, "[moments_merge] state.m2 must",
               moments_merge({}, a.state(), narrow));
  auto other = b.cross_state();
  other.mean_y.shape[0] = 1;
  CHECK_THROWS(invalid_argument, "[cross_moments_merge] other.mean_y must",
               cross_moments_merge({}, a.cross_state(), other));
  CHECK(a.empty());
}

TEST(group_sums_refuses) {
  rows r;
  auto const sums = make_view<2>(r.sums.data(), {2, 3});
  auto few = r.Ids();
  few.shape[0] = 3;
  CHECK_THROWS(invalid_argument, "ids must have one entry per row of x (6), got 3",
               group_sums<double>({}, r.X(), std::nullopt, few, sums));
  for (index_t bad : {index_t{-1}, index_t{2}}) {
    r.ids[5] = bad;
    CHECK_THROWS(invalid_argument, "ids must be in 0..1, got ",
                 group_sums<double>({}, r.X(), std::nullopt, r.Ids(), sums));
  }
  r.ids[5] = 0;
  CHECK_THROWS(
      invalid_argument, "sums must",
      group_sums<double>({}, r.X(), std::nullopt, r.Ids(), make_view<2>(r.sums.data(), {3, 2})));
  CHECK_THROWS(unsupported, "[group_sums]",
               group_sums<double>({}, on_cuda(r.X()), std::nullopt, r.Ids(), sums));
  CHECK(r.empty());
}

TEST(principal_axes_refuses) {
  std::vector<double> m2{2, 0, 0, 0, 1, 0, 0, 0, 1}, components(9, -7), variances(3, -7);
  auto const call = [&](index_t d, index_t k, double denominator) {
    principal_axes({}, make_view<2, double const>(m2.data(), {3, d}), denominator,
                   make_view<2>(components.data(), {k, 3}), make_view<1>(variances.data(), {k}));
  };
  CHECK_THROWS(invalid_argument, "m2 must be square and not empty, got 3 x 2", call(2, 1, 1));
  CHECK_THROWS(invalid_argument, "denominator must be > 0, got 0", call(3, 1, 0));
  CHECK_THROWS(invalid_argument, "denominator must be > 0", call(3, 1, k_nan));
  CHECK_THROWS(invalid_argument, "k must be in 1..3, got 0", call(3, 0, 1));
  CHECK_THROWS(
      unsupported, "[principal_axes]",
      principal_axes({}, on_cuda(make_view<2, double const>(m2.data(), {3, 3})), 1,
                     make_view<2>(components.data(), {1, 3}), make_view<1>(variances.data(), {1})));
  for (auto const* each : {&components, &variances})
    for (double v : *each) CHECK_EQUAL(v, -7.0);
  m2[8] = -1;
  CHECK_THROWS(invalid_argument, "m2 must be positive semidefinite", call(3, 3, 1));
}

TEST(fill_normal_refuses) {
  std::vector<double> out(3, -7);
  CHECK_THROWS(invalid_argument, "[fill_normal] out must be on the CPU",
               fill_normal<double>({}, on_cuda(make_view<1>(out.data(), {3})), 0, 0));
  CHECK_EQUAL(out[0], -7.0);
}

TEST(empty_inputs_are_fine) {
  for (auto shape : {std::array<index_t, 3>{0, 4, 3}, {2, 0, 3}, {2, 3, 0}, {0, 0, 0}}) {
    index_t const k = std::min(shape[1], shape[2]);
    std::int32_t info[2] = {-7, -7};
    double none = 0;
    auto const status = make_view<1>(info, {shape[0]});
    svd<double>({}, make_view<3, double const>(&none, shape), make_view<2>(&none, {shape[0], k}),
                make_view<3>(&none, {shape[0], shape[1], k}),
                make_view<3>(&none, {shape[0], k, shape[2]}), status);
    for (index_t i = 0; i < shape[0]; ++i) CHECK_EQUAL(info[i], 0);
    qr<double>({}, make_view<3, double const>(&none, shape),
               make_view<3>(&none, {shape[0], shape[1], k}),
               make_view<3>(&none, {shape[0], k, shape[2]}), status);
    eigh<double>({}, make_view<3, double const>(&none, {shape[0], 0, 0}),
                 make_view<2>(&none, {shape[0], 0}), std::nullopt, status);
  }
  rows r;
  auto x = r.X();
  x.shape[0] = 0;
  moments_update<double>({}, x, std::nullopt, r.state());
  r.weights.assign(6, 0.0);
  r.x.assign(18, k_nan);
  moments_update<double>({}, r.X(), r.Weights(), r.state());
  CHECK(r.empty());
}

TEST(cpu_level_has_a_name) {
  std::string const name = name_of(active_cpu_level());
  CHECK(name == "baseline" || name == "v3" || name == "v4");
  char const* forced = std::getenv("SUBSPAN_CPU_LEVEL");
  if (forced != nullptr && *forced != '\0') CHECK_EQUAL(name, std::string(forced));
}

int main() { return check::run_all(); }
