#include "subspan/eigh.hpp"

#include "dispatch.hpp"

namespace py = pybind11;

namespace subspan::bindings {

void bind_eigh(py::module_& m) {
  m.def(
      "eigh",
      [](py::object a, py::object values, py::object vectors, py::object info,
         std::string const& nonfinite, bool raise_no_convergence, std::string const& name,
         std::uintptr_t stream) {
        char const* const function = name.c_str();
        array_ref const input = read_array(a, function, "a", stream);
        argument<std::int32_t, 1> const status(info, function, "info", stream);
        visit_real(input, function, "a", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const in = view_of<T const, 3>(input, function, "a");
          argument<T, 2> const out(values, function, "values", stream);
          optional_argument<T, 3> const out_vectors(vectors, function, "vectors", stream);
          without_gil(function, [&] {
            subspan::eigh<T>(make_context(stream), in, out.view(), out_vectors.view(),
                             status.view(), make_params(nonfinite, raise_no_convergence));
          });
        });
      },
      py::arg("a"), py::arg("values"), py::arg("vectors"), py::arg("info"), py::arg("nonfinite"),
      py::arg("raise_no_convergence"), py::arg("function") = "eigh", py::arg("stream") = 0,
      "Symmetric eigendecomposition of a batch [batch, n, n] into caller-owned outputs.");
}

}  // namespace subspan::bindings
