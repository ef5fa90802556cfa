#pragma once

#include <utility>

#include "detail/contract.hpp"
#include "detail/cuda_table.hpp"
#include "subspan/device.hpp"

namespace subspan::detail {

/// THE device switch: runs the CPU or the CUDA twin of a primitive.
template <class Cpu, class Cuda>
void route(char const* function, device where, Cpu&& cpu, Cuda&& cuda) {
  if (where.kind == device_kind::cpu)
    std::forward<Cpu>(cpu)();
  else
    std::forward<Cuda>(cuda)(cuda_functions(function));
}

/// For primitives without a CUDA twin.
inline void require_cpu(char const* function, device where) {
  if (where.kind != device_kind::cpu)
    fail(error_kind::unsupported, function,
         "has no CUDA kernel yet, got an array on a CUDA device. Copy it to the host first");
}

}  // namespace subspan::detail
