#include "dispatch.hpp"

namespace py = pybind11;

namespace subspan::bindings {

void bind_svd(py::module_& m) {
  m.def(
      "svd",
      [](py::object a, py::object s, py::object u, py::object vh, py::object info,
         std::string const& nonfinite, bool raise_no_convergence, std::string const& name,
         std::uintptr_t stream) {
        char const* const function = name.c_str();
        array_ref const input = read_array(a, function, "a", stream);
        argument<std::int32_t, 1> const status(info, function, "info", stream);
        visit_real(input, function, "a", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const in = view_of<T const, 3>(input, function, "a");
          argument<T, 2> const values(s, function, "s", stream);
          optional_argument<T, 3> const left(u, function, "u", stream),
              right(vh, function, "vh", stream);
          without_gil(function, [&] {
            subspan::svd<T>(make_context(stream), in, values.view(), left.view(), right.view(),
                            status.view(), make_params(nonfinite, raise_no_convergence));
          });
        });
      },
      py::arg("a"), py::arg("s"), py::arg("u"), py::arg("vh"), py::arg("info"),
      py::arg("nonfinite"), py::arg("raise_no_convergence"), py::arg("function") = "svd",
      py::arg("stream") = 0, "Thin SVD of a batch [batch, m, n] into caller-owned outputs.");
}

}  // namespace subspan::bindings
