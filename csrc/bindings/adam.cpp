#include "subspan/adam.hpp"

#include "dispatch.hpp"

namespace py = pybind11;

namespace subspan::bindings {

void bind_adam(py::module_& m) {
  m.def(
      "adam_step",
      [](py::object w, py::object g, py::object first, py::object second, index_t step, double lr,
         double beta1, double beta2, double eps, double weight_decay, double scale,
         double row_limit, bool remove_parallel, bool unit_rows, std::uintptr_t stream) {
        constexpr char const* function = "adam_step";
        array_ref const weights = read_array(w, function, "w", stream);
        visit_real(weights, function, "w", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const rows = view_of<T, 2>(weights, function, "w");
          argument<T const, 2> const gradient(g, function, "g", stream);
          argument<T, 2> const mean(first, function, "m", stream);
          argument<T, 2> const square(second, function, "v", stream);
          adam_params const params{step,         lr,    beta1,     beta2,           eps,
                                   weight_decay, scale, row_limit, remove_parallel, unit_rows};
          without_gil(function, [&] {
            subspan::adam_step<T>(make_context(stream), rows, gradient.view(), mean.view(),
                                  square.view(), params);
          });
        });
      },
      py::arg("w"), py::arg("g"), py::arg("m"), py::arg("v"), py::arg("step"), py::arg("lr"),
      py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"), py::arg("scale"),
      py::arg("row_limit"), py::arg("remove_parallel"), py::arg("unit_rows"), py::arg("stream") = 0,
      "One step of Adam on the rows of w [n, d], m and v, in place.");
  m.def(
      "gradient_norm",
      [](py::object g, py::object w, std::uintptr_t stream) {
        constexpr char const* function = "gradient_norm";
        array_ref const gradient = read_array(g, function, "g", stream);
        double norm = 0;
        visit_real(gradient, function, "g", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const rows = view_of<T const, 2>(gradient, function, "g");
          optional_argument<T const, 2> const weights(w, function, "w", stream);
          without_gil(function, [&] {
            norm = subspan::gradient_norm<T>(make_context(stream), rows, weights.view());
          });
        });
        return norm;
      },
      py::arg("g"), py::arg("w"), py::arg("stream") = 0,
      "The Frobenius norm of g [n, d], without what is parallel to the rows of w unless that is "
      "None.");
}

}  // namespace subspan::bindings
