#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "detail/cuda_table.hpp"
#include "detail/device_storage.hpp"

/// CUDA's own storage types.

namespace subspan::gpu {

template <>
struct storage<__half> {
  SUBSPAN_DEVICE static float widen(__half v) { return __half2float(v); }
  SUBSPAN_DEVICE static __half narrow(float v) { return __float2half_rn(v); }
};
template <>
struct storage<__nv_bfloat16> {
  SUBSPAN_DEVICE static float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
  SUBSPAN_DEVICE static __nv_bfloat16 narrow(float v) { return __float2bfloat16_rn(v); }
};

}  // namespace subspan::gpu

namespace subspan::cuda {

/// body(T{}) for the storage type of a call.
template <class Body>
void visit_storage(std::int32_t dtype, Body&& body) {
  switch (dtype) {
    case subspan_cuda_half:
      return body(__half{});
    case subspan_cuda_bfloat16:
      return body(__nv_bfloat16{});
    case subspan_cuda_float:
      return body(float{});
    default:
      return body(double{});
  }
}

}  // namespace subspan::cuda
