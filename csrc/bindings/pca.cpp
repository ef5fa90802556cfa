#include "subspan/pca.hpp"

#include "dispatch.hpp"

namespace py = pybind11;

namespace subspan::bindings {
namespace {

/// A state as Python holds it: counts int64 [1], totals float64 [2] (sum w, sum w^2), mean, m2.
class moments_argument {
 public:
  moments_argument(py::tuple const& state, char const* function)
      : count_(state[0], function, "state count"),
        totals_(state[1], function, "state totals"),
        mean_(state[2], function, "state mean"),
        m2_(state[3], function, "state m2") {}
  moments_view view() const {
    double* const totals = totals_.view().data;
    return {count_.view().data, totals, totals + 1, mean_.view(), m2_.view()};
  }

 private:
  argument<index_t, 1> count_;
  argument<double, 1> totals_, mean_;
  argument<double, 2> m2_;
};

/// totals float64 [1] (sum w), mean_x, mean_y, cross.
class cross_argument {
 public:
  cross_argument(py::tuple const& state, char const* function)
      : totals_(state[0], function, "state totals"),
        mean_x_(state[1], function, "state mean_x"),
        mean_y_(state[2], function, "state mean_y"),
        cross_(state[3], function, "state cross") {}
  cross_moments_view view() const {
    return {totals_.view().data, mean_x_.view(), mean_y_.view(), cross_.view()};
  }

 private:
  argument<double, 1> totals_, mean_x_, mean_y_;
  argument<double, 2> cross_;
};

moments_precision to_precision(bool float64) {
  return float64 ? moments_precision::float64 : moments_precision::automatic;
}

void moments_update_py(py::object x, py::object weights, py::tuple state, bool float64,
                       std::uintptr_t stream) {
  constexpr char const* function = "Moments.update";
  array_ref const rows = read_array(x, function, "x", stream);
  optional_argument<double const, 1> const w(weights, function, "weights", stream);
  moments_argument const target(state, function);
  visit_storage(rows, function, "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    auto const in = view_of<T const, 2>(rows, function, "x");
    without_gil(function, [&] {
      moments_update<T>(make_context(stream), in, w.view(), target.view(), to_precision(float64));
    });
  });
}

void cross_moments_update_py(py::object x, py::object y, py::object weights, py::tuple state,
                             bool float64) {
  constexpr char const* function = "Moments.update";
  array_ref const left = read_array(x, function, "x"), right = read_array(y, function, "y");
  optional_argument<double const, 1> const w(weights, function, "weights");
  cross_argument const target(state, function);
  visit_storage(left, function, "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    auto const in_x = view_of<T const, 2>(left, function, "x");
    auto const in_y = view_of<T const, 2>(right, function, "y");
    without_gil(function, [&] {
      cross_moments_update<T>(make_context(), in_x, in_y, w.view(), target.view(),
                              to_precision(float64));
    });
  });
}

void group_sums_py(py::object x, py::object weights, py::object ids, py::object sums) {
  constexpr char const* function = "Moments.update";
  array_ref const rows = read_array(x, function, "x");
  optional_argument<double const, 1> const w(weights, function, "weights");
  argument<index_t const, 1> const labels(ids, function, "groups");
  argument<double, 2> const out(sums, function, "sums");
  visit_storage(rows, function, "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    auto const in = view_of<T const, 2>(rows, function, "x");
    without_gil(function,
                [&] { group_sums<T>(make_context(), in, w.view(), labels.view(), out.view()); });
  });
}

}  // namespace

void bind_pca(py::module_& m) {
  m.def("moments_update", &moments_update_py, py::arg("x"), py::arg("weights"), py::arg("state"),
        py::arg("float64"), py::arg("stream"), "Adds rows [n, d] to a moments state.");
  m.def("cross_moments_update", &cross_moments_update_py, py::arg("x"), py::arg("y"),
        py::arg("weights"), py::arg("state"), py::arg("float64"),
        "Adds paired rows to a cross state.");
  m.def("group_sums", &group_sums_py, py::arg("x"), py::arg("weights"), py::arg("ids"),
        py::arg("sums"), "Adds the weighted sum of the rows of each group to sums [groups, d].");
  m.def(
      "moments_merge",
      [](py::tuple state, py::tuple other) {
        moments_argument const a(state, "Moments.merge"), b(other, "Moments.merge");
        without_gil("Moments.merge", [&] { moments_merge(make_context(), a.view(), b.view()); });
      },
      py::arg("state"), py::arg("other"), "Merges a moments state into another.");
  m.def(
      "cross_moments_merge",
      [](py::tuple state, py::tuple other) {
        cross_argument const a(state, "Moments.merge"), b(other, "Moments.merge");
        without_gil("Moments.merge",
                    [&] { cross_moments_merge(make_context(), a.view(), b.view()); });
      },
      py::arg("state"), py::arg("other"), "Merges a cross state into another.");
  m.def(
      "principal_axes",
      [](py::object m2, double denominator, py::object components, py::object variances,
         double negative_tolerance) {
        constexpr char const* function = "principal_axes";
        argument<double const, 2> const in(m2, function, "m2");
        argument<double, 2> const axes(components, function, "components");
        argument<double, 1> const values(variances, function, "variances");
        without_gil(function, [&] {
          principal_axes(make_context(), in.view(), denominator, axes.view(), values.view(),
                         negative_tolerance);
        });
      },
      py::arg("m2"), py::arg("denominator"), py::arg("components"), py::arg("variances"),
      py::arg("negative_tolerance"),
      "Leading eigenpairs of m2 / denominator, descending, sign fixed.");
}

}  // namespace subspan::bindings
