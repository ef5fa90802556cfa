#include "subspan/cholesky.hpp"

#include "dispatch.hpp"

namespace py = pybind11;

namespace subspan::bindings {

void bind_cholesky(py::module_& m) {
  m.def(
      "cholesky",
      [](py::object a, py::object l, py::object info, std::string const& nonfinite,
         bool raise_not_definite, std::uintptr_t stream) {
        array_ref const input = read_array(a, "cholesky", "a", stream);
        argument<std::int32_t, 1> const status(info, "cholesky", "info", stream);
        cholesky_params const params{make_policy(nonfinite), raise_not_definite};
        visit_real(input, "cholesky", "a", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const in = view_of<T const, 3>(input, "cholesky", "a");
          argument<T, 3> const out(l, "cholesky", "l", stream);
          without_gil("cholesky", [&] {
            subspan::cholesky<T>(make_context(stream), in, out.view(), status.view(), params);
          });
        });
      },
      py::arg("a"), py::arg("l"), py::arg("info"), py::arg("nonfinite"),
      py::arg("raise_not_definite"), py::arg("stream") = 0,
      "Lower Cholesky factors of a batch [batch, n, n] into caller-owned outputs.");
}

}  // namespace subspan::bindings
