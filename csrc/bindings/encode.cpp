#include "subspan/encode.hpp"

#include "dispatch.hpp"
#include "ragged.hpp"

namespace py = pybind11;

namespace subspan::bindings {
namespace {

activation activation_of(std::string const& name, char const* function) {
  if (name == "relu") return activation::relu;
  if (name == "relu_first") return activation::relu_first;
  if (name == "identity") return activation::identity;
  raise("InvalidArgumentError",
        std::string("[") + function +
            "] activation must be one of 'relu', 'relu_first', 'identity', got '" + name + "'");
}

/// run(x, encoder<T>) with what all encoders read.
template <class Run>
void with_encoder(py::handle x, py::handle w_enc, py::handle b_enc, py::handle b_pre,
                  char const* function, std::uintptr_t stream, Run&& run) {
  array_ref const rows = read_array(x, function, "x", stream);
  visit_storage(rows, function, "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    auto const in = view_of<T const, 2>(rows, function, "x");
    argument<T const, 2> const matrix(w_enc, function, "w_enc", stream);
    optional_argument<T const, 1> const bias(b_enc, function, "b_enc", stream);
    optional_argument<T const, 1> const shift(b_pre, function, "b_pre", stream);
    run(in, encoder<T>{matrix.view(), bias.view(), shift.view()});
  });
}

}  // namespace

void bind_encode(py::module_& m) {
  m.def(
      "topk_encode",
      [](py::object x, py::object w_enc, py::object b_enc, py::object b_pre, py::object values,
         py::object indices, std::string const& activation, bool certified, std::uintptr_t stream) {
        constexpr char const* function = "topk_encode";
        auto const rectifier = activation_of(activation, function);
        auto const how_exact = certified ? encode_precision::certified : encode_precision::exact;
        argument<index_t, 2> const positions(indices, function, "indices", stream);
        with_encoder(x, w_enc, b_enc, b_pre, function, stream,
                     [&]<class T>(auto in, encoder<T> how) {
                       argument<T, 2> const best(values, function, "values", stream);
                       without_gil(function, [&] {
                         subspan::topk_encode<T>(make_context(stream), in, how, best.view(),
                                                 positions.view(), rectifier, how_exact);
                       });
                     });
      },
      py::arg("x"), py::arg("w_enc"), py::arg("b_enc"), py::arg("b_pre"), py::arg("values"),
      py::arg("indices"), py::arg("activation"), py::arg("certified"), py::arg("stream") = 0,
      "The k largest of each row of (x - b_pre) w_enc + b_enc into caller-owned outputs [B, k].");
  m.def(
      "batch_topk_encode",
      [](py::object x, py::object w_enc, py::object b_enc, py::object b_pre, index_t count,
         py::object offsets, py::function allocate, std::string const& activation,
         std::uintptr_t stream) {
        constexpr char const* function = "batch_topk_encode";
        auto const rectifier = activation_of(activation, function);
        argument<index_t, 1> const ends(offsets, function, "offsets", stream);
        with_encoder(x, w_enc, b_enc, b_pre, function, stream,
                     [&]<class T>(auto in, encoder<T> how) {
                       ragged_arguments<T> codes(allocate, function, stream);
                       without_gil(function, [&] {
                         subspan::batch_topk_encode<T>(make_context(stream), in, how, count,
                                                       ends.view(), codes.allocator(), rectifier);
                       });
                     });
      },
      py::arg("x"), py::arg("w_enc"), py::arg("b_enc"), py::arg("b_pre"), py::arg("count"),
      py::arg("offsets"), py::arg("allocate"), py::arg("activation"), py::arg("stream") = 0,
      "The count largest of all rows into arrays that allocate(n) returns, and offsets [B + 1].");
  m.def(
      "threshold_encode",
      [](py::object x, py::object w_enc, py::object b_enc, py::object b_pre, py::object threshold,
         py::object offsets, py::function allocate, std::uintptr_t stream) {
        constexpr char const* function = "threshold_encode";
        argument<index_t, 1> const ends(offsets, function, "offsets", stream);
        with_encoder(x, w_enc, b_enc, b_pre, function, stream,
                     [&]<class T>(auto in, encoder<T> how) {
                       argument<T const, 1> const bars(threshold, function, "threshold", stream);
                       ragged_arguments<T> codes(allocate, function, stream);
                       without_gil(function, [&] {
                         subspan::threshold_encode<T>(make_context(stream), in, how, bars.view(),
                                                      ends.view(), codes.allocator());
                       });
                     });
      },
      py::arg("x"), py::arg("w_enc"), py::arg("b_enc"), py::arg("b_pre"), py::arg("threshold"),
      py::arg("offsets"), py::arg("allocate"), py::arg("stream") = 0,
      "Entries above their column's threshold into arrays that allocate(n) returns, and offsets.");
}

}  // namespace subspan::bindings
