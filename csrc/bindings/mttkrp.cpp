#include "subspan/mttkrp.hpp"

#include <list>
#include <vector>

#include "dispatch.hpp"

namespace py = pybind11;

namespace subspan::bindings {

void bind_mttkrp(py::module_& m) {
  m.def(
      "mttkrp",
      [](py::object x, py::sequence factors, int mode, py::object out) {
        constexpr char const* function = "mttkrp";
        array_ref const tensor = read_array(x, function, "x");
        visit_real(tensor, function, "x", [&](auto tag) {
          using T = typename decltype(tag)::type;
          std::list<argument<T const, 3>> owners;  // live as long as their views
          std::vector<strided_view<T const, 3>> views;
          for (py::handle factor : factors) {
            if (factor.is_none())
              views.emplace_back();
            else
              views.push_back(owners.emplace_back(factor, function, "factors").view());
          }
          argument<T, 3> const product(out, function, "out");
          mttkrp_tensor<T> const in{static_cast<T const*>(tensor.data), tensor.shape,
                                    tensor.strides, tensor.device};
          without_gil(function,
                      [&] { subspan::mttkrp<T>(make_context(), in, views, mode, product.view()); });
        });
      },
      py::arg("x"), py::arg("factors"), py::arg("mode"), py::arg("out"),
      "Tensors [batch, ...] times Khatri-Rao products of factors [batch, n, r], of which that of "
      "the "
      "mode may be None, into out.");
}

}  // namespace subspan::bindings
