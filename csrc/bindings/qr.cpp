#include "subspan/qr.hpp"

#include "dispatch.hpp"

namespace py = pybind11;

namespace subspan::bindings {

void bind_qr(py::module_& m) {
  m.def(
      "qr",
      [](py::object a, py::object q, py::object r, py::object info, std::string const& nonfinite,
         bool raise_no_convergence, std::uintptr_t stream) {
        array_ref const input = read_array(a, "qr", "a", stream);
        argument<std::int32_t, 1> const status(info, "qr", "info", stream);
        visit_real(input, "qr", "a", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const in = view_of<T const, 3>(input, "qr", "a");
          argument<T, 3> const out_q(q, "qr", "q", stream), out_r(r, "qr", "r", stream);
          without_gil("qr", [&] {
            subspan::qr<T>(make_context(stream), in, out_q.view(), out_r.view(), status.view(),
                           make_params(nonfinite, raise_no_convergence));
          });
        });
      },
      py::arg("a"), py::arg("q"), py::arg("r"), py::arg("info"), py::arg("nonfinite"),
      py::arg("raise_no_convergence") = true, py::arg("stream") = 0,
      "Thin QR of a batch [batch, m, n] into caller-owned outputs.");
}

}  // namespace subspan::bindings
