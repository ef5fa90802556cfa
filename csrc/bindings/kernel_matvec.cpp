#include "subspan/kernel_matvec.hpp"

#include <array>
#include <string_view>

#include "dispatch.hpp"

namespace py = pybind11;

namespace subspan::bindings {
namespace {

// In the order of kernel_function.
constexpr std::array<std::string_view, 12> k_names{
    "gaussian", "laplacian", "matern32", "matern52",   "cauchy",   "rational_quadratic",
    "exp_dot",  "softmax",   "linear",   "polynomial", "distance", "sqdistance"};

kernel_params params_of(std::string const& name, double alpha, int degree, double offset,
                        double cutoff, char const* function) {
  for (std::size_t i = 0; i < k_names.size(); ++i)
    if (name == k_names[i]) return {static_cast<kernel_function>(i), alpha, degree, offset, cutoff};
  raise("InvalidArgumentError",
        std::string("[") + function + "] kernel must be a known name, got '" + name + "'");
}

}  // namespace

void bind_kernel_matvec(py::module_& m) {
  m.def(
      "kernel_matvec",
      [](py::object x, py::object y, py::object v, py::object bandwidth, py::object out,
         py::object lse, std::string const& kernel, double alpha, int degree, double offset,
         double cutoff, std::uintptr_t stream) {
        constexpr char const* function = "kernel_matvec";
        array_ref const rows = read_array(x, function, "x", stream);
        kernel_params const how = params_of(kernel, alpha, degree, offset, cutoff, function);
        argument<double const, 1> const widths(bandwidth, function, "bandwidth");
        optional_argument<double, 2> const logs(lse, function, "lse", stream);
        visit_real(rows, function, "x", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const in = view_of<T const, 3>(rows, function, "x");
          argument<T const, 3> const points(y, function, "y", stream);
          argument<T const, 3> const weights(v, function, "v", stream);
          argument<T, 3> const sums(out, function, "out", stream);
          without_gil(function, [&] {
            subspan::kernel_matvec<T>(make_context(stream), in, points.view(), weights.view(),
                                      widths.view(), sums.view(), how, logs.view());
          });
        });
      },
      py::arg("x"), py::arg("y"), py::arg("v"), py::arg("bandwidth"), py::arg("out"),
      py::arg("lse"), py::arg("kernel"), py::arg("alpha"), py::arg("degree"), py::arg("offset"),
      py::arg("cutoff"), py::arg("stream") = 0,
      "Products of kernel matrices [batch, n, m] and v into out.");
  m.def(
      "kernel_matvec_backward",
      [](py::object x, py::object y, py::object v, py::object g, py::object bandwidth,
         py::object of_x, std::string const& kernel, double alpha, int degree, double offset,
         std::uintptr_t stream) {
        constexpr char const* function = "kernel_matvec";
        array_ref const rows = read_array(x, function, "x", stream);
        kernel_params const how = params_of(kernel, alpha, degree, offset, 0, function);
        argument<double const, 1> const widths(bandwidth, function, "bandwidth");
        visit_real(rows, function, "x", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const in = view_of<T const, 3>(rows, function, "x");
          argument<T const, 3> const points(y, function, "y", stream);
          argument<T const, 3> const weights(v, function, "v", stream);
          argument<T const, 3> const gradient(g, function, "gradient", stream);
          argument<T, 3> const out(of_x, function, "of_x", stream);
          without_gil(function, [&] {
            subspan::kernel_matvec_backward<T>(make_context(stream), in, points.view(),
                                               weights.view(), gradient.view(), widths.view(),
                                               out.view(), how);
          });
        });
      },
      py::arg("x"), py::arg("y"), py::arg("v"), py::arg("g"), py::arg("bandwidth"), py::arg("of_x"),
      py::arg("kernel"), py::arg("alpha"), py::arg("degree"), py::arg("offset"),
      py::arg("stream") = 0, "The gradient of <g, K v> in x into of_x.");
}

}  // namespace subspan::bindings
