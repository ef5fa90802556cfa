#include <pybind11/stl.h>

#include "detail/blas.hpp"
#include "dispatch.hpp"
#include "subspan/version.hpp"

namespace py = pybind11;

namespace {

/// The kind of a core error decides its Python class; the names are those of subspan.errors.
char const* class_of(subspan::error_kind kind) {
  switch (kind) {
    case subspan::error_kind::invalid_argument:
      return "InvalidArgumentError";
    case subspan::error_kind::unsupported:
      return "UnsupportedError";
    case subspan::error_kind::no_convergence:
      return "ConvergenceError";
    case subspan::error_kind::out_of_memory:
      return "OutOfMemoryError";
    case subspan::error_kind::device:
      return "DeviceError";
    default:
      return "InternalError";
  }
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "Native core of subspan. Private: use the functions of the subspan package.";
  m.attr("__version__") = SUBSPAN_VERSION;
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (subspan::error const& error) {
      py::object const type = py::module_::import("subspan.errors").attr(class_of(error.kind()));
      PyErr_SetString(type.ptr(), error.what());
    }
  });
  subspan::bindings::bind_svd(m);
  subspan::bindings::bind_eigh(m);
  subspan::bindings::bind_qr(m);
  subspan::bindings::bind_cholesky(m);
  subspan::bindings::bind_solve_triangular(m);
  subspan::bindings::bind_gram(m);
  subspan::bindings::bind_pca(m);
  subspan::bindings::bind_random(m);
  subspan::bindings::bind_topk(m);
  subspan::bindings::bind_decode(m);
  subspan::bindings::bind_encode(m);
  subspan::bindings::bind_knn(m);
  subspan::bindings::bind_adam(m);
  subspan::bindings::bind_kernel_matvec(m);
  subspan::bindings::bind_joint_kernel_sums(m);
  subspan::bindings::bind_tensor_power(m);
  subspan::bindings::bind_mttkrp(m);

  m.def("get_num_threads", &subspan::get_num_threads, "Threads that primitives use.");
  m.def("set_num_threads", &subspan::set_num_threads, py::arg("n"),
        "Sets the threads that primitives use; 0 returns to the default.");
  m.def(
      "cpu_level", [] { return subspan::name_of(subspan::active_cpu_level()); },
      "Instruction-set level in use: baseline, v3 or v4.");
  m.def("has_cuda", &subspan::has_cuda, "Whether the CUDA library and a device are present.");
  m.def("blas_name", &subspan::detail::blas_name, "The BLAS behind the library.");
  m.def(
      "describe",
      [](py::object array) {
        auto const ref = subspan::bindings::read_array(array, "describe", "array");
        return py::make_tuple(
            ref.dtype_name, ref.device.kind == subspan::device_kind::cpu ? "cpu" : "cuda",
            ref.device.index, py::tuple(py::cast(ref.shape)), py::tuple(py::cast(ref.strides)),
            ref.read_only, reinterpret_cast<std::uintptr_t>(ref.data));
      },
      py::arg("array"),
      "What the reader sees: dtype, device, index, shape, strides, read-only, address.");
}
