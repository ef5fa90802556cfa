#include "subspan/topk.hpp"

#include "dispatch.hpp"

namespace py = pybind11;

namespace subspan::bindings {

void bind_topk(py::module_& m) {
  m.def(
      "topk",
      [](py::object x, py::object values, py::object indices, bool largest, bool sorted,
         std::uintptr_t stream) {
        constexpr char const* function = "topk";
        array_ref const input = read_array(x, function, "x", stream);
        argument<index_t, 3> const positions(indices, function, "indices", stream);
        visit_ordered(input, function, "x", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const in = view_of<T const, 3>(input, function, "x");
          argument<T, 3> const best(values, function, "values", stream);
          without_gil(function, [&] {
            subspan::topk<T>(make_context(stream), in, best.view(), positions.view(),
                             {largest, sorted});
          });
        });
      },
      py::arg("x"), py::arg("values"), py::arg("indices"), py::arg("largest"), py::arg("sorted"),
      py::arg("stream") = 0,
      "The k best of each row of x [outer, inner, n] into caller-owned outputs.");
}

}  // namespace subspan::bindings
