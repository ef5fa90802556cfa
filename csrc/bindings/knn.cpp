#include "subspan/knn.hpp"

#include "dispatch.hpp"
#include "ragged.hpp"

namespace py = pybind11;

namespace subspan::bindings {
namespace {

metric metric_of(std::string const& name, char const* function) {
  if (name == "euclidean") return metric::euclidean;
  if (name == "sqeuclidean") return metric::sqeuclidean;
  if (name == "inner_product") return metric::inner_product;
  if (name == "cosine") return metric::cosine;
  raise("InvalidArgumentError", std::string("[") + function +
                                    "] metric must be one of 'euclidean', 'sqeuclidean', "
                                    "'inner_product', 'cosine', got '" +
                                    name + "'");
}

knn_precision precision_of(std::string const& name, char const* function) {
  if (name == "exact") return knn_precision::exact;
  if (name == "certified") return knn_precision::certified;
  if (name == "fast") return knn_precision::fast;
  raise("InvalidArgumentError",
        std::string("[") + function +
            "] precision must be one of 'exact', 'certified', 'fast', got '" + name + "'");
}

/// visit(type_tag<T>) for the types whose rows have distances.
template <class Visit>
void visit_rows(array_ref const& array, char const* function, Visit&& visit) {
  switch (array.dtype) {
    case dtype::int8:
      return visit(type_tag<std::int8_t>{});
    case dtype::uint8:
      return visit(type_tag<std::uint8_t>{});
    case dtype::float16:
    case dtype::bfloat16:
    case dtype::float32:
    case dtype::float64:
      return visit_storage(array, function, "x", visit);
    default:
      refuse_dtype(array, function, "x", "float16, bfloat16, float32, float64, int8 or uint8");
  }
}

py::dict by_name(knn_stats const& stats) {
  py::dict out;
  out["symmetric"] = stats.symmetric;
  out["in_place_rows"] = stats.in_place_rows;
  out["difference_tiles"] = stats.difference_tiles;
  out["uncertified_rows"] = stats.uncertified_rows;
  out["repeated_rows"] = stats.repeated_rows;
  out["scanned_rows"] = stats.scanned_rows;
  return out;
}

}  // namespace

void bind_knn(py::module_& m) {
  m.def(
      "knn",
      [](py::object x, py::object y, py::object mask, py::object distances, py::object indices,
         std::string const& metric, bool exclude_self, std::string const& precision,
         std::uintptr_t stream) {
        constexpr char const* function = "knn";
        knn_params const params{metric_of(metric, function), exclude_self,
                                precision_of(precision, function)};
        array_ref const rows = read_array(x, function, "x", stream);
        argument<double, 2> const found(distances, function, "distances", stream);
        argument<index_t, 2> const where(indices, function, "indices", stream);
        optional_argument<std::uint8_t const, 2> const allowed(mask, function, "mask", stream);
        knn_stats stats;
        visit_rows(rows, function, [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const from = view_of<T const, 2>(rows, function, "x");
          argument<T const, 2> const to(y, function, "y", stream);
          without_gil(function, [&] {
            stats = subspan::knn<T>(make_context(stream), from, to.view(), allowed.view(),
                                    found.view(), where.view(), params);
          });
        });
        return by_name(stats);
      },
      py::arg("x"), py::arg("y"), py::arg("mask"), py::arg("distances"), py::arg("indices"),
      py::arg("metric"), py::arg("exclude_self"), py::arg("precision"), py::arg("stream") = 0,
      "The k nearest rows of y [n, d] for every row of x [q, d] into caller-owned outputs [q, k]; "
      "returns how the search went.");
  m.def(
      "knn_both",
      [](py::object x, py::object y, py::object distances, py::object indices,
         py::object back_distances, py::object back_indices, std::string const& metric,
         std::uintptr_t stream) {
        constexpr char const* function = "knn_both";
        auto const how = metric_of(metric, function);
        array_ref const rows = read_array(x, function, "x", stream);
        argument<double, 2> const found(distances, function, "distances", stream);
        argument<index_t, 2> const where(indices, function, "indices", stream);
        argument<double, 2> const back_found(back_distances, function, "back_distances", stream);
        argument<index_t, 2> const back_where(back_indices, function, "back_indices", stream);
        knn_stats stats;
        visit_rows(rows, function, [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const from = view_of<T const, 2>(rows, function, "x");
          argument<T const, 2> const to(y, function, "y", stream);
          without_gil(function, [&] {
            stats = subspan::knn_both<T>(make_context(stream), from, to.view(), found.view(),
                                         where.view(), back_found.view(), back_where.view(), how);
          });
        });
        return by_name(stats);
      },
      py::arg("x"), py::arg("y"), py::arg("distances"), py::arg("indices"),
      py::arg("back_distances"), py::arg("back_indices"), py::arg("metric"), py::arg("stream") = 0,
      "knn of x [q, d] in y [n, d] into outputs [q, k], and of y in x into outputs [n, k]; returns "
      "how the search went.");
  m.def(
      "radius_neighbors",
      [](py::object x, py::object y, py::object mask, double radius, py::object offsets,
         py::function allocate, std::string const& metric, bool exclude_self,
         std::uintptr_t stream) {
        constexpr char const* function = "radius_neighbors";
        knn_params const params{metric_of(metric, function), exclude_self, knn_precision::exact};
        array_ref const rows = read_array(x, function, "x", stream);
        argument<index_t, 1> const ends(offsets, function, "offsets", stream);
        optional_argument<std::uint8_t const, 2> const allowed(mask, function, "mask", stream);
        ragged_arguments<double> found(allocate, function, stream);
        knn_stats stats;
        visit_rows(rows, function, [&](auto tag) {
          using T = typename decltype(tag)::type;
          auto const from = view_of<T const, 2>(rows, function, "x");
          argument<T const, 2> const to(y, function, "y", stream);
          without_gil(function, [&] {
            stats =
                subspan::radius_neighbors<T>(make_context(stream), from, to.view(), allowed.view(),
                                             radius, ends.view(), found.allocator(), params);
          });
        });
        return by_name(stats);
      },
      py::arg("x"), py::arg("y"), py::arg("mask"), py::arg("radius"), py::arg("offsets"),
      py::arg("allocate"), py::arg("metric"), py::arg("exclude_self"), py::arg("stream") = 0,
      "The rows of y within radius of every row of x into arrays that allocate(n) returns, and "
      "offsets [q + 1]; returns how the search went.");
}

}  // namespace subspan::bindings
