#pragma once

#include <cstdint>

#include "subspan/abi.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

/// Sizes, strides and indices: signed, so that differences and negative strides need no casts.
using index_t = std::int64_t;

/// IEEE 754 binary16, for storage only: kernels widen it to float before they compute.
struct half {
  std::uint16_t bits;
};

/// The upper 16 bits of an IEEE 754 binary32, for storage only.
struct bfloat16 {
  std::uint16_t bits;
};

}  // namespace v0
}  // namespace subspan
