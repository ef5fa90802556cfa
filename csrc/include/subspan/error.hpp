#pragma once

#include <stdexcept>
#include <string>

#include "subspan/abi.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

enum class error_kind {
  invalid_argument,  ///< a value, shape or range that the function cannot take
  unsupported,       ///< dtype, device or build cannot serve the request
  no_convergence,    ///< an iteration stopped before its tolerance
  out_of_memory,     ///< scratch could not be allocated
  device,            ///< the accelerator or its driver failed
  internal,          ///< a fault of this library
};

/// The one exception of the library. The text reads `[function] argument must be ..., got ...`.
class error : public std::runtime_error {
 public:
  error(error_kind kind, std::string const& what) : std::runtime_error(what), kind_(kind) {}
  error_kind kind() const noexcept { return kind_; }

 private:
  error_kind kind_;
};

}  // namespace v0
}  // namespace subspan
