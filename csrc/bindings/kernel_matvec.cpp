#include "subspan/kernel_matvec.hpp"

#include <array>
#include <optional>
#include <string_view>

#include "dispatch.hpp"

namespace py = pybind11;

namespace subspan::bindings {
namespace {

// In the order of kernel_function.
constexpr std::array<std::string_view, 12> k_names{
    "gaussian", "laplacian", "matern32", "matern52",   "cauchy",   "rational_quadratic",
    "exp_dot",  "softmax",   "linear",   "polynomial", "distance", "sqdistance"};

kernel_params params_of(std::string const& name, double alpha, int degree, double offset,
                        double cutoff, char const* function) {
  for (std::size_t i = 0; i < k_names.size(); ++i)
    if (name == k_names[i]) return {static_cast<kernel_function>(i), alpha, degree, offset, cutoff};
  raise("InvalidArgumentError",
        std::string("[") + function + "] kernel must be a known name, got '" + name + "'");
}

/// None, or rows, columns, offsets and tiles.
class ranges_argument {
 public:
  ranges_argument(py::object const& ranges, char const* function) {
    if (ranges.is_none()) return;
    auto const parts = ranges.cast<py::tuple>();
    constexpr std::array<char const*, 4> names{"ranges.rows", "ranges.columns", "ranges.offsets",
                                               "ranges.tiles"};
    for (std::size_t i = 0; i < 4; ++i)
      arguments_[i].emplace(py::object(parts[i]), function, names[i]);
    ranges_ = {arguments_[0]->view(), arguments_[1]->view(), arguments_[2]->view(),
               arguments_[3]->view()};
  }
  kernel_ranges const* get() const { return ranges_ ? &*ranges_ : nullptr; }

 private:
  std::array<std::optional<argument<index_t const, 1>>, 4> arguments_;
  std::optional<kernel_ranges> ranges_;
};

}  // namespace

void bind_kernel_matvec(py::module_& m) {
  m.def(
      "kernel_matvec",
      [](py::object x, py::object y, py::object v, py::object bandwidth, py::object out,
         py::object lse, std::string const& kernel, double alpha, int degree, double offset,
         double cutoff, py::object ranges, std::uintptr_t stream) {
        constexpr char const* function = "kernel_matvec";
        array_ref const rows = read_array(x, function, "x", stream);
        kernel_params const how = params_of(kernel, alpha, degree, offset, cutoff, function);
        ranges_argument const pattern(ranges, function);
        argument<double const, 1> const widths(bandwidth, function, "bandwidth");
        optional_argument<double, 2> const logs(lse, function, "lse", stream);
        visit_real(rows, function, "x", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const in = view_of<T const, 3>(rows, function, "x");
          argument<T const, 3> const points(y, function, "y", stream);
          argument<T const, 3> const weights(v, function, "v", stream);
          argument<T, 3> const sums(out, function, "out", stream);
          without_gil(function, [&] {
            subspan::kernel_matvec<T>(make_context(stream), in, points.view(), weights.view(),
                                      widths.view(), sums.view(), how, logs.view(), pattern.get());
          });
        });
      },
      py::arg("x"), py::arg("y"), py::arg("v"), py::arg("bandwidth"), py::arg("out"),
      py::arg("lse"), py::arg("kernel"), py::arg("alpha"), py::arg("degree"), py::arg("offset"),
      py::arg("cutoff"), py::arg("ranges"), py::arg("stream") = 0,
      "Products of kernel matrices [batch, n, m] and v into out.");
  m.def(
      "kernel_matvec_backward",
      [](py::object x, py::object y, py::object v, py::object g, py::object bandwidth,
         py::object of_x, std::string const& kernel, double alpha, int degree, double offset,
         py::object ranges, std::uintptr_t stream) {
        constexpr char const* function = "kernel_matvec";
        array_ref const rows = read_array(x, function, "x", stream);
        kernel_params const how = params_of(kernel, alpha, degree, offset, 0, function);
        ranges_argument const pattern(ranges, function);
        argument<double const, 1> const widths(bandwidth, function, "bandwidth");
        visit_real(rows, function, "x", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const in = view_of<T const, 3>(rows, function, "x");
          argument<T const, 3> const points(y, function, "y", stream);
          argument<T const, 3> const weights(v, function, "v", stream);
          argument<T const, 3> const gradient(g, function, "gradient", stream);
          argument<T, 3> const out(of_x, function, "of_x", stream);
          without_gil(function, [&] {
            subspan::kernel_matvec_backward<T>(make_context(stream), in, points.view(),
                                               weights.view(), gradient.view(), widths.view(),
                                               out.view(), how, pattern.get());
          });
        });
      },
      py::arg("x"), py::arg("y"), py::arg("v"), py::arg("g"), py::arg("bandwidth"), py::arg("of_x"),
      py::arg("kernel"), py::arg("alpha"), py::arg("degree"), py::arg("offset"), py::arg("ranges"),
      py::arg("stream") = 0, "The gradient of <g, K v> in x into of_x.");
  m.def(
      "kernel_logsumexp",
      [](py::object x, py::object y, py::object v, py::object bandwidth, py::object out,
         py::object parts, std::string const& kernel, double alpha, py::object ranges,
         std::uintptr_t stream) {
        constexpr char const* function = "kernel_logsumexp";
        optional_argument<double, 3> const sums(parts, function, "parts", stream);
        array_ref const rows = read_array(x, function, "x", stream);
        kernel_params const how = params_of(kernel, alpha, 3, 1, 0, function);
        ranges_argument const pattern(ranges, function);
        argument<double const, 1> const widths(bandwidth, function, "bandwidth");
        visit_real(rows, function, "x", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const in = view_of<T const, 3>(rows, function, "x");
          argument<T const, 3> const points(y, function, "y", stream);
          argument<T const, 3> const weights(v, function, "v", stream);
          argument<T, 3> const logs(out, function, "out", stream);
          without_gil(function, [&] {
            subspan::kernel_logsumexp<T>(make_context(stream), in, points.view(), weights.view(),
                                         widths.view(), logs.view(), how, sums.view(),
                                         pattern.get());
          });
        });
      },
      py::arg("x"), py::arg("y"), py::arg("v"), py::arg("bandwidth"), py::arg("out"),
      py::arg("parts"), py::arg("kernel"), py::arg("alpha"), py::arg("ranges"),
      py::arg("stream") = 0,
      "Logarithms of products of kernel matrices [batch, n, m] and v into out.");
  m.def(
      "kernel_logsumexp_backward",
      [](py::object x, py::object y, py::object terms_x, py::object terms_y, py::object bandwidth,
         py::object sums, py::object of_x, bool exchanged, std::string const& kernel, double alpha,
         py::object ranges, std::uintptr_t stream) {
        constexpr char const* function = "kernel_logsumexp";
        array_ref const rows = read_array(x, function, "x", stream);
        kernel_params const how = params_of(kernel, alpha, 3, 1, 0, function);
        ranges_argument const pattern(ranges, function);
        argument<double const, 1> const widths(bandwidth, function, "bandwidth");
        argument<double const, 3> const of_rows(terms_x, function, "terms_x", stream);
        argument<double const, 3> const of_columns(terms_y, function, "terms_y", stream);
        visit_real(rows, function, "x", [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const in = view_of<T const, 3>(rows, function, "x");
          argument<T const, 3> const points(y, function, "y", stream);
          optional_argument<T, 3> const totals(sums, function, "sums", stream);
          optional_argument<T, 3> const out(of_x, function, "of_x", stream);
          without_gil(function, [&] {
            subspan::kernel_logsumexp_backward<T>(
                make_context(stream), in, points.view(), of_rows.view(), of_columns.view(),
                widths.view(), totals.view(), out.view(), exchanged, how, pattern.get());
          });
        });
      },
      py::arg("x"), py::arg("y"), py::arg("terms_x"), py::arg("terms_y"), py::arg("bandwidth"),
      py::arg("sums"), py::arg("of_x"), py::arg("exchanged"), py::arg("kernel"), py::arg("alpha"),
      py::arg("ranges"), py::arg("stream") = 0,
      "Gradients of kernel_logsumexp from exponents and factors.");
}

}  // namespace subspan::bindings
