#include "subspan/tensor_power.hpp"

#include <pybind11/stl.h>

#include "dispatch.hpp"

namespace py = pybind11;

namespace subspan::bindings {

void bind_tensor_power(py::module_& m) {
  m.def(
      "tensor_power",
      [](py::object a, py::object starts, int order, py::tuple pairs, py::tuple runs,
         std::optional<double> shift, std::string const& which, double tol, double merge,
         index_t max_iter, std::string const& nonfinite, bool raise_no_convergence) {
        char const* const function = "tensor_power";
        array_ref const input = read_array(a, function, "a");
        tensor_power_params params;
        params.adaptive = !shift;
        params.shift = shift.value_or(0);
        params.which = which == "max"   ? extremum::maximum
                       : which == "min" ? extremum::minimum
                                        : extremum::both;
        params.tol = tol;
        params.merge = merge;
        params.max_iter = max_iter;
        params.nonfinite = make_policy(nonfinite);
        params.raise_no_convergence = raise_no_convergence;
        visit_real(input, function, "a", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const in = view_of<T const, 2>(input, function, "a");
          argument<T const, 3> const from(starts, function, "starts");
          argument<T, 2> const values(pairs[0], function, "values");
          argument<T, 3> const vectors(pairs[1], function, "vectors");
          argument<T, 2> const residuals(pairs[2], function, "residuals");
          argument<std::int32_t, 2> const kinds(pairs[3], function, "kinds");
          argument<std::int32_t, 2> const counts(pairs[4], function, "counts");
          argument<std::int32_t, 1> const number(pairs[5], function, "pairs");
          argument<std::int32_t, 2> const iterations(runs[0], function, "iterations");
          argument<std::int32_t, 2> const pair_of(runs[1], function, "pair_of");
          argument<std::int32_t, 1> const info(runs[2], function, "info");
          tensor_power_results<T> const out{values.view(),     vectors.view(), residuals.view(),
                                            kinds.view(),      counts.view(),  number.view(),
                                            iterations.view(), pair_of.view(), info.view()};
          without_gil(function, [&] {
            subspan::tensor_power<T>(make_context(), in, from.view(), order, out, params);
          });
        });
      },
      py::arg("a"), py::arg("starts"), py::arg("order"), py::arg("pairs"), py::arg("runs"),
      py::arg("shift"), py::arg("which"), py::arg("tol"), py::arg("merge"), py::arg("max_iter"),
      py::arg("nonfinite"), py::arg("raise_no_convergence"),
      "Eigenpairs of symmetric tensors [batch, n] from starts [batch, m, d] into caller-owned "
      "outputs: pairs = (values, vectors, residuals, kinds, counts, number), runs = (iterations, "
      "pair_of, info).");
}

}  // namespace subspan::bindings
