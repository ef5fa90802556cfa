#include "subspan/gram.hpp"

#include <list>
#include <vector>

#include "dispatch.hpp"

namespace py = pybind11;

namespace subspan::bindings {

void bind_gram(py::module_& m) {
  m.def(
      "gram",
      [](py::object x, py::object y, py::object out) {
        char const* const function = "gram";
        array_ref const input = read_array(x, function, "x");
        visit_real(input, function, "x", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const left = view_of<T const, 3>(input, function, "x");
          optional_argument<T const, 3> const right(y, function, "y");
          argument<T, 3> const product(out, function, "out");
          without_gil(function, [&] {
            if (right.view())
              subspan::gram<T>(make_context(), left, *right.view(), product.view());
            else
              subspan::gram<T>(make_context(), left, product.view());
          });
        });
      },
      py::arg("x"), py::arg("y"), py::arg("out"),
      "x^T y, or x^T x for y None, of a batch [batch, n, p], [batch, n, q] into out.");
  m.def(
      "grams",
      [](py::object x, py::object y, py::object xx, py::object xy, py::object yy) {
        char const* const function = "grams";
        array_ref const input = read_array(x, function, "x");
        visit_real(input, function, "x", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const left = view_of<T const, 3>(input, function, "x");
          argument<T const, 3> const right(y, function, "y");
          argument<T, 3> const of_left(xx, function, "xx"), across(xy, function, "xy"),
              of_right(yy, function, "yy");
          without_gil(function, [&] {
            subspan::grams<T>(make_context(), left, right.view(), of_left.view(), across.view(),
                              of_right.view());
          });
        });
      },
      py::arg("x"), py::arg("y"), py::arg("xx"), py::arg("xy"), py::arg("yy"),
      "x^T x, x^T y and y^T y of a batch into caller-owned outputs.");
  m.def(
      "gram_inner",
      [](py::list xs, py::object out) {
        constexpr char const* function = "gram_inner";
        array_ref const first = read_array(xs[0], function, "xs");
        visit_real(first, function, "xs", [&](auto tag) {
          using T = typename decltype(tag)::type;
          std::list<argument<T const, 2>> owners;  // live as long as their views
          std::vector<strided_view<T const, 2>> views;
          for (py::handle x : xs) views.push_back(owners.emplace_back(x, function, "xs").view());
          argument<double, 2> const products(out, function, "out");
          without_gil(function,
                      [&] { subspan::gram_inner<T>(make_context(), views, products.view()); });
        });
      },
      py::arg("xs"), py::arg("out"),
      "Inner products of x x^T of matrices [n, d] into out [count, count].");
}

}  // namespace subspan::bindings
