#include "subspan/solve_triangular.hpp"

#include "dispatch.hpp"

namespace py = pybind11;

namespace subspan::bindings {

void bind_solve_triangular(py::module_& m) {
  m.def(
      "solve_triangular",
      [](py::object a, py::object b, py::object x, py::object info, bool lower, bool transposed,
         bool unit_diagonal, std::string const& nonfinite, bool raise_singular,
         std::uintptr_t stream) {
        char const* const function = "solve_triangular";
        array_ref const input = read_array(a, function, "a", stream);
        argument<std::int32_t, 1> const status(info, function, "info", stream);
        solve_triangular_params const params{lower, transposed, unit_diagonal,
                                             make_policy(nonfinite), raise_singular};
        visit_real(input, function, "a", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const in = view_of<T const, 3>(input, function, "a");
          argument<T const, 3> const right(b, function, "b", stream);
          argument<T, 3> const out(x, function, "x", stream);
          without_gil(function, [&] {
            subspan::solve_triangular<T>(make_context(stream), in, right.view(), out.view(),
                                         status.view(), params);
          });
        });
      },
      py::arg("a"), py::arg("b"), py::arg("x"), py::arg("info"), py::arg("lower"),
      py::arg("transposed"), py::arg("unit_diagonal"), py::arg("nonfinite"),
      py::arg("raise_singular"), py::arg("stream") = 0,
      "Solves the triangular systems of a batch [batch, n, n] into caller-owned outputs.");
}

}  // namespace subspan::bindings
