#include "subspan/random.hpp"

#include <pybind11/stl.h>

#include "dispatch.hpp"

namespace py = pybind11;

namespace subspan::bindings {

void bind_random(py::module_& m) {
  m.def(
      "fill_normal",
      [](py::object out, std::uint64_t seed, std::uint64_t stream) {
        array_ref const target = read_array(out, "fill_normal", "out");
        visit_real(target, "fill_normal", "out", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const view = view_of<T, 1>(target, "fill_normal", "out");
          without_gil("fill_normal", [&] { fill_normal<T>(make_context(), view, seed, stream); });
        });
      },
      py::arg("out"), py::arg("seed"), py::arg("stream"),
      "Fills out [n] with the standard normals of (seed, stream, index).");
  m.def(
      "philox",
      [](std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
        return philox(counter, key);
      },
      py::arg("counter"), py::arg("key"), "One block of Philox4x32-10.");
}

}  // namespace subspan::bindings
