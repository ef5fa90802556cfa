#pragma once

#include <optional>
#include <string>

#include "array.hpp"
#include "subspan/context.hpp"
#include "subspan/error.hpp"
#include "subspan/svd.hpp"
#include "subspan/view.hpp"

/// THE dtype switch and the way from array_ref to strided_view.

namespace subspan::bindings {

template <class T>
constexpr dtype dtype_of() {
  if constexpr (std::is_same_v<T, half>) return dtype::float16;
  if constexpr (std::is_same_v<T, bfloat16>) return dtype::bfloat16;
  if constexpr (std::is_same_v<T, float>) return dtype::float32;
  if constexpr (std::is_same_v<T, double>) return dtype::float64;
  if constexpr (std::is_same_v<T, index_t>) return dtype::int64;
  if constexpr (std::is_same_v<T, std::int32_t>) return dtype::int32;
  if constexpr (std::is_same_v<T, std::int16_t>) return dtype::int16;
  if constexpr (std::is_same_v<T, std::int8_t>) return dtype::int8;
  if constexpr (std::is_same_v<T, std::uint8_t>) return dtype::uint8;
}

/// `T const` for inputs; a writable T refuses read-only arrays.
template <class T, int Rank>
strided_view<T, Rank> view_of(array_ref const& array, char const* function, char const* name) {
  using element = std::remove_const_t<T>;
  std::string const who = std::string("[") + function + "] " + name;
  if (array.dtype != dtype_of<element>())
    raise("DtypeError",
          who + " must be " + label_of(dtype_of<element>()) + ", got " + array.dtype_name);
  if (array.ndim() != Rank)
    raise("InvalidArgumentError", who + " must have " + std::to_string(Rank) + " axes, got " +
                                      std::to_string(array.ndim()));
  if (!std::is_const_v<T> && array.read_only)
    raise("InvalidArgumentError", who + " must be writable, got a read-only array");
  strided_view<T, Rank> view;
  view.data = static_cast<T*>(array.data);
  view.device = array.device;
  for (int axis = 0; axis < Rank; ++axis) {
    view.shape[axis] = array.shape[axis];
    view.strides[axis] = array.strides[axis];
  }
  return view;
}

/// Reads and views one argument in one step; the owner lives as long as the object.
template <class T, int Rank>
class argument {
 public:
  argument(pybind11::handle object, char const* function, char const* name,
           std::uintptr_t stream = 0)
      : array_(read_array(object, function, name, stream)),
        view_(view_of<T, Rank>(array_, function, name)) {}
  strided_view<T, Rank> const& view() const { return view_; }

 private:
  array_ref array_;
  strided_view<T, Rank> view_;
};

template <class T, int Rank>
class optional_argument {
 public:
  optional_argument(pybind11::handle object, char const* function, char const* name,
                    std::uintptr_t stream = 0) {
    if (!object.is_none()) argument_.emplace(object, function, name, stream);
  }
  std::optional<strided_view<T, Rank>> view() const {
    return argument_ ? std::optional(argument_->view()) : std::nullopt;
  }

 private:
  std::optional<argument<T, Rank>> argument_;
};

template <class T>
struct type_tag {
  using type = T;
};

[[noreturn]] inline void refuse_dtype(array_ref const& array, char const* function,
                                      char const* name, char const* wanted) {
  raise("DtypeError", std::string("[") + function + "] " + name + " must be " + wanted + ", got " +
                          array.dtype_name + ". Convert it first");
}

/// visit(type_tag<T>) for the computation types.
template <class Visit>
void visit_real(array_ref const& array, char const* function, char const* name, Visit&& visit) {
  switch (array.dtype) {
    case dtype::float32:
      return visit(type_tag<float>{});
    case dtype::float64:
      return visit(type_tag<double>{});
    default:
      refuse_dtype(array, function, name, "float32 or float64");
  }
}

/// visit(type_tag<T>) for the types that can be read.
template <class Visit>
void visit_storage(array_ref const& array, char const* function, char const* name, Visit&& visit) {
  switch (array.dtype) {
    case dtype::float16:
      return visit(type_tag<half>{});
    case dtype::bfloat16:
      return visit(type_tag<bfloat16>{});
    case dtype::float32:
      return visit(type_tag<float>{});
    case dtype::float64:
      return visit(type_tag<double>{});
    default:
      refuse_dtype(array, function, name, "float16, bfloat16, float32 or float64");
  }
}

/// visit(type_tag<T>) for the types that have an order.
template <class Visit>
void visit_ordered(array_ref const& array, char const* function, char const* name, Visit&& visit) {
  switch (array.dtype) {
    case dtype::int64:
      return visit(type_tag<std::int64_t>{});
    case dtype::int32:
      return visit(type_tag<std::int32_t>{});
    case dtype::int16:
      return visit(type_tag<std::int16_t>{});
    case dtype::int8:
      return visit(type_tag<std::int8_t>{});
    case dtype::uint8:
      return visit(type_tag<std::uint8_t>{});
    case dtype::other:
      refuse_dtype(array, function, name,
                   "a float or an integer of up to 64 bits (of unsigned: "
                   "uint8)");
    default:
      visit_storage(array, function, name, visit);
  }
}

inline context make_context(std::uintptr_t stream = 0) {
  context ctx;
  ctx.stream = reinterpret_cast<void*>(stream);
  return ctx;
}

/// Runs the primitive without the GIL. Its errors name the Python function that was called.
template <class Body>
void without_gil(char const* function, Body&& body) {
  pybind11::gil_scoped_release const released;
  try {
    body();
  } catch (error const& thrown) {
    std::string const text = thrown.what();
    auto const end = text.find(']');
    // What an environment variable is to blame for keeps its name.
    if (text.rfind("[SUBSPAN_", 0) == 0 || end == std::string::npos) throw;
    throw error(thrown.kind(), std::string("[") + function + text.substr(end));
  }
}

inline nonfinite_policy make_policy(std::string const& nonfinite) {
  return nonfinite == "propagate" ? nonfinite_policy::propagate
         : nonfinite == "ignore"  ? nonfinite_policy::ignore
                                  : nonfinite_policy::raise;
}

inline decomposition_params make_params(std::string const& nonfinite, bool raise_no_convergence) {
  decomposition_params params;
  params.nonfinite = make_policy(nonfinite);
  params.raise_no_convergence = raise_no_convergence;
  return params;
}

void bind_svd(pybind11::module_& m);
void bind_eigh(pybind11::module_& m);
void bind_qr(pybind11::module_& m);
void bind_cholesky(pybind11::module_& m);
void bind_solve_triangular(pybind11::module_& m);
void bind_gram(pybind11::module_& m);
void bind_pca(pybind11::module_& m);
void bind_random(pybind11::module_& m);
void bind_topk(pybind11::module_& m);
void bind_decode(pybind11::module_& m);
void bind_encode(pybind11::module_& m);
void bind_knn(pybind11::module_& m);
void bind_adam(pybind11::module_& m);
void bind_kernel_matvec(pybind11::module_& m);
void bind_joint_kernel_sums(pybind11::module_& m);
void bind_tensor_power(pybind11::module_& m);
void bind_mttkrp(pybind11::module_& m);

}  // namespace subspan::bindings
