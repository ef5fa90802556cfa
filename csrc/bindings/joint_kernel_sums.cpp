#include "subspan/joint_kernel_sums.hpp"

#include <string>

#include "dispatch.hpp"

namespace py = pybind11;

namespace subspan::bindings {
namespace {

constexpr char const* k_name = "joint_kernel_sums";

kernel_params params_of(std::string const& name, double alpha) {
  kernel_params how;
  how.alpha = alpha;
  how.function = name == "gaussian"             ? kernel_function::gaussian
                 : name == "laplacian"          ? kernel_function::laplacian
                 : name == "matern32"           ? kernel_function::matern32
                 : name == "matern52"           ? kernel_function::matern52
                 : name == "cauchy"             ? kernel_function::cauchy
                 : name == "rational_quadratic" ? kernel_function::rational_quadratic
                 : name == "sqdistance"         ? kernel_function::sqdistance
                 : name == "distance"           ? kernel_function::distance
                                                : kernel_function::linear;
  if (how.function == kernel_function::linear)
    raise("InvalidArgumentError",
          std::string("[") + k_name + "] kernel must be one of distances, got '" + name + "'");
  return how;
}

}  // namespace

void bind_joint_kernel_sums(py::module_& m) {
  m.def(
      "joint_kernel_sums",
      [](py::object x, py::object y, py::object z, py::object w, py::object bandwidth_x,
         py::object bandwidth_z, py::object joint, py::object first, py::object second,
         std::string const& kernel_x, std::string const& kernel_z, double alpha_x, double alpha_z,
         std::uintptr_t stream) {
        array_ref const rows = read_array(x, k_name, "x", stream);
        kernel_params const of_x = params_of(kernel_x, alpha_x);
        kernel_params const of_z = params_of(kernel_z, alpha_z);
        argument<double const, 1> const widths_x(bandwidth_x, k_name, "bandwidth of x");
        argument<double const, 1> const widths_z(bandwidth_z, k_name, "bandwidth of z");
        argument<double, 2> const of_both(joint, k_name, "joint", stream);
        argument<double, 1> const of_first(first, k_name, "first", stream);
        argument<double, 2> const of_second(second, k_name, "second", stream);
        visit_real(rows, k_name, "x", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const in = view_of<T const, 2>(rows, k_name, "x");
          argument<T const, 2> const points(y, k_name, "y", stream);
          argument<T const, 3> const others(z, k_name, "z", stream);
          argument<T const, 3> const other_points(w, k_name, "w", stream);
          without_gil(k_name, [&] {
            subspan::joint_kernel_sums<T>(make_context(stream), in, points.view(), others.view(),
                                          other_points.view(), widths_x.view(), widths_z.view(),
                                          of_both.view(), of_first.view(), of_second.view(), of_x,
                                          of_z);
          });
        });
      },
      py::arg("x"), py::arg("y"), py::arg("z"), py::arg("w"), py::arg("bandwidth_x"),
      py::arg("bandwidth_z"), py::arg("joint"), py::arg("first"), py::arg("second"),
      py::arg("kernel_x"), py::arg("kernel_z"), py::arg("alpha_x"), py::arg("alpha_z"),
      py::arg("stream") = 0,
      "Sums over pairs of one kernel of x and y, of others of z and w, and of their products.");
  m.def(
      "joint_kernel_sums_backward",
      [](py::object x, py::object y, py::object z, py::object w, py::object of_rows,
         py::object of_columns, py::object bandwidth_x, py::object bandwidth_z, py::object gradient,
         std::string const& kernel_x, std::string const& kernel_z, double alpha_x, double alpha_z,
         std::uintptr_t stream) {
        array_ref const rows = read_array(x, k_name, "x", stream);
        kernel_params const of_x = params_of(kernel_x, alpha_x);
        kernel_params const of_z = params_of(kernel_z, alpha_z);
        argument<double const, 2> const left(of_rows, k_name, "weights", stream);
        argument<double const, 2> const right(of_columns, k_name, "weights", stream);
        argument<double const, 1> const widths_x(bandwidth_x, k_name, "bandwidth of x");
        argument<double const, 1> const widths_z(bandwidth_z, k_name, "bandwidth of z");
        visit_real(rows, k_name, "x", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const in = view_of<T const, 2>(rows, k_name, "x");
          argument<T const, 2> const points(y, k_name, "y", stream);
          argument<T const, 2> const others(z, k_name, "z", stream);
          argument<T const, 2> const other_points(w, k_name, "w", stream);
          argument<T, 2> const out(gradient, k_name, "gradient", stream);
          without_gil(k_name, [&] {
            subspan::joint_kernel_sums_backward<T>(make_context(stream), in, points.view(),
                                                   others.view(), other_points.view(), left.view(),
                                                   right.view(), widths_x.view(), widths_z.view(),
                                                   out.view(), of_x, of_z);
          });
        });
      },
      py::arg("x"), py::arg("y"), py::arg("z"), py::arg("w"), py::arg("of_rows"),
      py::arg("of_columns"), py::arg("bandwidth_x"), py::arg("bandwidth_z"), py::arg("gradient"),
      py::arg("kernel_x"), py::arg("kernel_z"), py::arg("alpha_x"), py::arg("alpha_z"),
      py::arg("stream") = 0, "The gradient in x of weighted sums of the kernel of x and y.");
}

}  // namespace subspan::bindings
