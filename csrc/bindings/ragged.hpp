#pragma once

#include <optional>
#include <string>
#include <utility>

#include "dispatch.hpp"
#include "subspan/ragged.hpp"

namespace subspan::bindings {

/// Room for entries that Python makes once their number is known: allocate(count) returns values
/// and indices. Outlives the call, and is destroyed with the GIL.
template <class T>
class ragged_arguments {
 public:
  ragged_arguments(pybind11::function allocate, char const* function, std::uintptr_t stream)
      : allocate_(std::move(allocate)), function_(function), stream_(stream) {}

  ragged_allocator<T> allocator() {
    return [this](index_t count) {
      pybind11::gil_scoped_acquire const held;
      pybind11::tuple const made = allocate_(count);
      if (made.size() != 2)
        raise("InvalidArgumentError", std::string("[") + function_ +
                                          "] allocate must return values and indices, got " +
                                          std::to_string(made.size()) + " objects");
      ragged<T> const out{values_.emplace(made[0], function_, "values", stream_).view(),
                          indices_.emplace(made[1], function_, "indices", stream_).view()};
      if (out.values.shape[0] != count || out.indices.shape[0] != count)
        raise("InvalidArgumentError",
              std::string("[") + function_ + "] allocate must return arrays of " +
                  std::to_string(count) + " elements, got " + std::to_string(out.values.shape[0]) +
                  " and " + std::to_string(out.indices.shape[0]));
      return out;
    };
  }

 private:
  pybind11::function allocate_;
  char const* function_;
  std::uintptr_t stream_;
  std::optional<argument<T, 1>> values_;
  std::optional<argument<index_t, 1>> indices_;
};

}  // namespace subspan::bindings
