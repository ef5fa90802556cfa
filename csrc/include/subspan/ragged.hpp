#pragma once

#include <functional>

#include "subspan/abi.hpp"
#include "subspan/view.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

/// Entries of a varying number per row (CSR): row t has those from offsets[t] to offsets[t + 1], where
/// offsets [rows + 1] come beside them.
template <class T>
struct ragged {
  strided_view<T, 1> values;
  strided_view<index_t, 1> indices;
};

/// Makes room for `count` entries once their number is known: contiguous, on the device of the inputs.
/// Called once, by the thread that called the primitive.
template <class T>
using ragged_allocator = std::function<ragged<T>(index_t count)>;

}  // namespace v0
}  // namespace subspan
