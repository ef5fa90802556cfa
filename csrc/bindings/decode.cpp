#include "subspan/decode.hpp"

#include "dispatch.hpp"

namespace py = pybind11;

namespace subspan::bindings {
namespace {

/// run(code) with a sparse code as it comes from Python: 1-D values and indices, offsets or none, rows.
template <class Run>
void with_code(py::handle values, py::handle indices, py::handle offsets, index_t rows,
               char const* function, std::uintptr_t stream, Run&& run) {
  array_ref const weights = read_array(values, function, "values", stream);
  visit_storage(weights, function, "values", [&](auto tag) {
    using T = typename decltype(tag)::type;
    argument<index_t const, 1> const where(indices, function, "indices", stream);
    optional_argument<index_t const, 1> const ends(offsets, function, "offsets", stream);
    run(sparse_code<T>{view_of<T const, 1>(weights, function, "values"), where.view(),
                       ends.view().value_or(strided_view<index_t const, 1>{}), rows});
  });
}

}  // namespace

void bind_decode(py::module_& m) {
  m.def(
      "sparse_decode",
      [](py::object values, py::object indices, py::object offsets, index_t rows, py::object w_dec,
         py::object b_dec, py::object out, std::uintptr_t stream) {
        constexpr char const* function = "sparse_decode";
        with_code(values, indices, offsets, rows, function, stream,
                  [&]<class T>(sparse_code<T> code) {
                    argument<T const, 2> const matrix(w_dec, function, "w_dec", stream);
                    optional_argument<T const, 1> const bias(b_dec, function, "b_dec", stream);
                    argument<T, 2> const result(out, function, "out", stream);
                    without_gil(function, [&] {
                      subspan::sparse_decode<T>(make_context(stream), code, matrix.view(),
                                                bias.view(), result.view());
                    });
                  });
      },
      py::arg("values"), py::arg("indices"), py::arg("offsets"), py::arg("rows"), py::arg("w_dec"),
      py::arg("b_dec"), py::arg("out"), py::arg("stream") = 0,
      "out [rows, d] = b_dec + the sums of values[i] w_dec[indices[i]] over the pairs of each "
      "row.");
  m.def(
      "sparse_decode_backward",
      [](py::object values, py::object indices, py::object offsets, index_t rows, py::object w_dec,
         py::object grad_out, py::object grad_values, py::object grad_w_dec, py::object grad_b_dec,
         std::uintptr_t stream) {
        constexpr char const* function = "sparse_decode";
        with_code(
            values, indices, offsets, rows, function, stream, [&]<class T>(sparse_code<T> code) {
              argument<T const, 2> const matrix(w_dec, function, "w_dec", stream);
              argument<T const, 2> const gradient(grad_out, function, "grad_out", stream);
              optional_argument<T, 1> const of_values(grad_values, function, "grad_values", stream);
              optional_argument<T, 2> const of_matrix(grad_w_dec, function, "grad_w_dec", stream);
              optional_argument<T, 1> const of_bias(grad_b_dec, function, "grad_b_dec", stream);
              without_gil(function, [&] {
                subspan::sparse_decode_backward<T>(make_context(stream), code, matrix.view(),
                                                   gradient.view(), of_values.view(),
                                                   of_matrix.view(), of_bias.view());
              });
            });
      },
      py::arg("values"), py::arg("indices"), py::arg("offsets"), py::arg("rows"), py::arg("w_dec"),
      py::arg("grad_out"), py::arg("grad_values"), py::arg("grad_w_dec"), py::arg("grad_b_dec"),
      py::arg("stream") = 0, "The gradients of sparse_decode that are not None.");
  m.def(
      "topk_encode_backward",
      [](py::object values, py::object indices, py::object offsets, index_t rows, index_t n,
         py::object x, py::object b_pre, py::object w_enc, py::object grad_w_enc,
         py::object grad_b_enc, py::object grad_x, py::object grad_b_pre, std::uintptr_t stream) {
        constexpr char const* function = "topk_encode";
        with_code(
            values, indices, offsets, rows, function, stream, [&]<class T>(sparse_code<T> code) {
              optional_argument<T const, 2> const inputs(x, function, "x", stream);
              optional_argument<T const, 1> const center(b_pre, function, "b_pre", stream);
              optional_argument<T const, 2> const matrix(w_enc, function, "w_enc", stream);
              optional_argument<T, 2> const of_matrix(grad_w_enc, function, "grad_w_enc", stream);
              optional_argument<T, 1> const of_bias(grad_b_enc, function, "grad_b_enc", stream);
              optional_argument<T, 2> const of_inputs(grad_x, function, "grad_x", stream);
              optional_argument<T, 1> const of_center(grad_b_pre, function, "grad_b_pre", stream);
              without_gil(function, [&] {
                subspan::topk_encode_backward<T>(
                    make_context(stream), code, n, inputs.view(), center.view(), matrix.view(),
                    {of_matrix.view(), of_bias.view(), of_inputs.view(), of_center.view()});
              });
            });
      },
      py::arg("values"), py::arg("indices"), py::arg("offsets"), py::arg("rows"), py::arg("n"),
      py::arg("x"), py::arg("b_pre"), py::arg("w_enc"), py::arg("grad_w_enc"),
      py::arg("grad_b_enc"), py::arg("grad_x"), py::arg("grad_b_pre"), py::arg("stream") = 0,
      "The gradients of a TopK encoder that are not None; values are those of the selected "
      "pre-activations.");
}

}  // namespace subspan::bindings
