#include "array.hpp"

#include "dlpack.hpp"

namespace py = pybind11;

namespace subspan::bindings {
namespace {

std::string prefix(char const* function, char const* name) {
  return std::string("[") + function + "] " + name;
}

std::string type_name(py::handle object) {
  return py::cast<std::string>(py::type::handle_of(object).attr("__name__"));
}

array_ref read_numpy(py::array const& array, std::string const& who) {
  array_ref out;
  py::dtype const type = array.dtype();
  // numpy takes microseconds to spell a dtype, so it is asked only for those without a label here.
  auto const spelled = [&] {
    return py::cast<std::string>(py::str(static_cast<py::object const&>(type)));
  };
  char const kind = type.kind();
  auto const size = type.itemsize();
  if (type.byteorder() == '>' || (type.byteorder() == '<' && PY_LITTLE_ENDIAN == 0))
    raise("DtypeError", who + " must have native byte order, got " + spelled());
  if (kind == 'f')
    out.dtype = size == 2   ? dtype::float16
                : size == 4 ? dtype::float32
                : size == 8 ? dtype::float64
                            : dtype::other;
  else if (kind == 'i')
    out.dtype = size == 8   ? dtype::int64
                : size == 4 ? dtype::int32
                : size == 2 ? dtype::int16
                : size == 1 ? dtype::int8
                            : dtype::other;
  else if (kind == 'u' && size == 1)
    out.dtype = dtype::uint8;
  else if (kind == 'V' && spelled() == "bfloat16")  // ml_dtypes
    out.dtype = dtype::bfloat16;
  out.dtype_name = out.dtype == dtype::other ? spelled() : label_of(out.dtype);
  for (py::ssize_t axis = 0; axis < array.ndim() && size > 0; ++axis) {
    if (array.shape(axis) > 1 && array.strides(axis) % size != 0)
      raise("DtypeError", who + " must have strides that are multiples of its element size, got " +
                              std::to_string(array.strides(axis)) + " bytes");
    out.shape.push_back(array.shape(axis));
    out.strides.push_back(array.strides(axis) / size);
  }
  out.data = const_cast<void*>(array.data());
  out.read_only = !array.writeable();
  // The caller's reference lives as long as the call; nothing to own.
  return out;
}

bindings::dtype to_dtype(dlpack::data_type type) {
  if (type.lanes != 1) return dtype::other;
  switch (type.code) {
    case dlpack::code_float:
      return type.bits == 16   ? dtype::float16
             : type.bits == 32 ? dtype::float32
             : type.bits == 64 ? dtype::float64
                               : dtype::other;
    case dlpack::code_bfloat:
      return type.bits == 16 ? dtype::bfloat16 : dtype::other;
    case dlpack::code_int:
      return type.bits == 64   ? dtype::int64
             : type.bits == 32 ? dtype::int32
             : type.bits == 16 ? dtype::int16
             : type.bits == 8  ? dtype::int8
                               : dtype::other;
    case dlpack::code_uint:
      return type.bits == 8 ? dtype::uint8 : dtype::other;
    default:
      return dtype::other;
  }
}

array_ref read_tensor(dlpack::tensor const& tensor, bool read_only, std::string const& who) {
  array_ref out;
  switch (tensor.device.type) {
    case dlpack::cpu:
    case dlpack::cuda_host:
      break;
    case dlpack::cuda:
    case dlpack::cuda_managed:
      out.device = {device_kind::cuda, tensor.device.id};
      break;
    default:
      raise("UnsupportedError", who +
                                    " must be on the CPU or on a CUDA device, got DLPack device " +
                                    std::to_string(tensor.device.type));
  }
  out.dtype = to_dtype(tensor.dtype);
  constexpr char const* codes[] = {"int", "uint", "float", "handle", "bfloat", "complex", "bool"};
  out.dtype_name =
      (tensor.dtype.code < 7 ? codes[tensor.dtype.code]
                             : "DLPack type " + std::to_string(tensor.dtype.code) + " of bits ") +
      std::to_string(tensor.dtype.bits);
  out.shape.assign(tensor.shape, tensor.shape + tensor.ndim);
  if (tensor.strides != nullptr) {
    out.strides.assign(tensor.strides, tensor.strides + tensor.ndim);
  } else {
    out.strides.assign(out.shape.size(), 1);
    for (std::size_t axis = out.shape.size(); axis-- > 1;)
      out.strides[axis - 1] = out.strides[axis] * out.shape[axis];
  }
  out.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  out.read_only = read_only;
  return out;
}

/// Takes the tensor out of its capsule, which must be renamed so that it will not free it, too.
template <class Managed>
std::shared_ptr<Managed> take(py::object const& capsule, char const* name, char const* used) {
  auto* const managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule.ptr(), name));
  if (managed == nullptr || PyCapsule_SetName(capsule.ptr(), used) != 0)
    throw py::error_already_set();
  return {managed, [](Managed* self) {
            if (self->deleter != nullptr) self->deleter(self);
          }};
}

py::object export_dlpack(py::handle object, bool on_cuda, std::uintptr_t stream) {
  py::dict arguments;
  // Null is the legacy default stream, whose number is 1 in this protocol.
  if (on_cuda) arguments["stream"] = stream == 0 ? std::uintptr_t{1} : stream;
  py::object const method = object.attr("__dlpack__");
  arguments["max_version"] = py::make_tuple(1, 0);
  try {
    return method(**arguments);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
  }
  // A producer from before version 1 does not know the argument.
  PyDict_DelItemString(arguments.ptr(), "max_version");
  return method(**arguments);
}

}  // namespace

void raise(char const* kind, std::string const& text) {
  py::object const type = py::module_::import("subspan.errors").attr(kind);
  PyErr_SetString(type.ptr(), text.c_str());
  throw py::error_already_set();
}

array_ref read_array(py::handle object, char const* function, char const* name,
                     std::uintptr_t stream) {
  std::string const who = prefix(function, name);
  if (py::isinstance<py::array>(object))
    return read_numpy(py::reinterpret_borrow<py::array>(object), who);
  if (!py::hasattr(object, "__dlpack__") || !py::hasattr(object, "__dlpack_device__"))
    raise("DtypeError", who +
                            " must be an array (numpy, torch, cupy, or any other with __dlpack__)"
                            ", got " +
                            type_name(object) + ". Convert it with numpy.asarray");
  auto const where = py::cast<py::tuple>(object.attr("__dlpack_device__")());
  int const type = py::cast<int>(py::int_(where[0]));
  py::object const capsule =
      export_dlpack(object, type == dlpack::cuda || type == dlpack::cuda_managed, stream);
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned") != 0) {
    auto const managed =
        take<dlpack::managed_versioned>(capsule, "dltensor_versioned", "used_dltensor_versioned");
    if (managed->major != 1)
      raise("UnsupportedError",
            who + " must speak DLPack 1, got version " + std::to_string(managed->major));
    array_ref out =
        read_tensor(managed->tensor, (managed->flags & dlpack::flag_read_only) != 0, who);
    out.owner = managed;
    return out;
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor") != 0) {
    auto const managed = take<dlpack::managed>(capsule, "dltensor", "used_dltensor");
    array_ref out = read_tensor(managed->tensor, false, who);
    out.owner = managed;
    return out;
  }
  raise("DtypeError",
        who + " must return a DLPack capsule from __dlpack__, got " + type_name(capsule));
}

}  // namespace subspan::bindings
