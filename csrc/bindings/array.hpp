#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <vector>

#include "subspan/device.hpp"
#include "subspan/types.hpp"

namespace subspan::bindings {

enum class dtype { float16, bfloat16, float32, float64, int64, int32, int16, int8, uint8, other };

constexpr char const* label_of(dtype type) {
  constexpr char const* labels[] = {"float16", "bfloat16", "float32", "float64", "int64",
                                    "int32",   "int16",    "int8",    "uint8",   "other"};
  return labels[static_cast<int>(type)];
}

/// A foreign array as memory: what every library's arrays have in common. Keeps its owner alive.
struct array_ref {
  void* data = nullptr;
  bindings::dtype dtype = bindings::dtype::other;
  std::string dtype_name;
  subspan::device device{};
  std::vector<index_t> shape;
  std::vector<index_t> strides;  // elements
  bool read_only = false;
  std::shared_ptr<void> owner;

  int ndim() const { return static_cast<int>(shape.size()); }
};

/// THE reader of foreign arrays: numpy by its buffer, anything else by DLPack. Never copies.
/// `argument` is `function: name` for messages; `stream` is the consumer's CUDA stream.
array_ref read_array(pybind11::handle object, char const* function, char const* name,
                     std::uintptr_t stream = 0);

/// Raises subspan.errors.<kind> with this text.
[[noreturn]] void raise(char const* kind, std::string const& text);

}  // namespace subspan::bindings
