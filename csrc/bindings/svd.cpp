#include "dispatch.hpp"

namespace py = pybind11;

namespace subspan::bindings {

void bind_svd(py::module_& m) {
  m.def(
      "svd",
      [](py::object a, py::object s, py::object u, py::object vh, py::object info,
         std::string const& nonfinite, bool raise_no_convergence) {
        array_ref const input = read_array(a, "svd", "a");
        argument<std::int32_t, 1> const status(info, "svd", "info");
        visit_real(input, "svd", "a", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const in = view_of<T const, 3>(input, "svd", "a");
          argument<T, 2> const values(s, "svd", "s");
          optional_argument<T, 3> const left(u, "svd", "u"), right(vh, "svd", "vh");
          without_gil([&] {
            subspan::svd<T>(make_context(), in, values.view(), left.view(), right.view(),
                            status.view(), make_params(nonfinite, raise_no_convergence));
          });
        });
      },
      py::arg("a"), py::arg("s"), py::arg("u"), py::arg("vh"), py::arg("info"),
      py::arg("nonfinite"), py::arg("raise_no_convergence"),
      "Thin SVD of a batch [batch, m, n] into caller-owned outputs.");
}

}  // namespace subspan::bindings
