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

/// What all encoders read.
template <class T>
class encoder_arguments {
 public:
  encoder_arguments(py::handle w_enc, py::handle b_enc, py::handle b_pre, char const* function,
                    std::uintptr_t stream)
      : w_enc_(w_enc, function, "w_enc", stream),
        b_enc_(b_enc, function, "b_enc", stream),
        b_pre_(b_pre, function, "b_pre", stream) {}
  encoder<T> view() const { return {w_enc_.view(), b_enc_.view(), b_pre_.view()}; }

 private:
  argument<T const, 2> w_enc_;
  optional_argument<T const, 1> b_enc_, b_pre_;
};

}  // namespace

void bind_encode(py::module_& m) {
  m.def(
      "topk_encode",
      [](py::object x, py::object w_enc, py::object b_enc, py::object b_pre, py::object values,
         py::object indices, std::string const& activation, bool certified, std::uintptr_t stream) {
        constexpr char const* function = "topk_encode";
        auto const rectifier = activation_of(activation, function);
        array_ref const rows = read_array(x, function, "x", stream);
        argument<index_t, 2> const positions(indices, function, "indices", stream);
        visit_storage(rows, function, "x", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const in = view_of<T const, 2>(rows, function, "x");
          encoder_arguments<T> const how(w_enc, b_enc, b_pre, function, stream);
          argument<T, 2> const best(values, function, "values", stream);
          without_gil(function, [&] {
            subspan::topk_encode<T>(
                make_context(stream), in, how.view(), best.view(), positions.view(), rectifier,
                certified ? encode_precision::certified : encode_precision::exact);
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
        array_ref const rows = read_array(x, function, "x", stream);
        argument<index_t, 1> const ends(offsets, function, "offsets", stream);
        visit_storage(rows, function, "x", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const in = view_of<T const, 2>(rows, function, "x");
          encoder_arguments<T> const how(w_enc, b_enc, b_pre, function, stream);
          ragged_arguments<T> codes(allocate, function, stream);
          without_gil(function, [&] {
            subspan::batch_topk_encode<T>(make_context(stream), in, how.view(), count, ends.view(),
                                          codes.allocator(), rectifier);
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
        array_ref const rows = read_array(x, function, "x", stream);
        argument<index_t, 1> const ends(offsets, function, "offsets", stream);
        visit_storage(rows, function, "x", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const in = view_of<T const, 2>(rows, function, "x");
          encoder_arguments<T> const how(w_enc, b_enc, b_pre, function, stream);
          argument<T const, 1> const bars(threshold, function, "threshold", stream);
          ragged_arguments<T> codes(allocate, function, stream);
          without_gil(function, [&] {
            subspan::threshold_encode<T>(make_context(stream), in, how.view(), bars.view(),
                                         ends.view(), codes.allocator());
          });
        });
      },
      py::arg("x"), py::arg("w_enc"), py::arg("b_enc"), py::arg("b_pre"), py::arg("threshold"),
      py::arg("offsets"), py::arg("allocate"), py::arg("stream") = 0,
      "Entries above their column's threshold into arrays that allocate(n) returns, and offsets.");
}

}  // namespace subspan::bindings
