#pragma once

#include <sstream>

#include "subspan/error.hpp"

namespace subspan::detail {

template <class... Part>
[[noreturn]] void fail(error_kind kind, char const* function, Part const&... parts) {
  std::ostringstream text;
  text << '[' << function << "] ";
  (text << ... << parts);
  throw error(kind, text.str());
}

/// expects(k <= n, "svd", "k must be in 1..", n, ", got ", k): the contract check at every entry.
template <class... Part>
void expects(bool condition, char const* function, Part const&... parts) {
  if (!condition) fail(error_kind::invalid_argument, function, parts...);
}

}  // namespace subspan::detail
