#pragma once

#include <cstdint>

/// The C interface between the core and libsubspan_cuda, a shared library of its own: the core
/// imports where no CUDA exists, and opens it at the first device array. Plain types only.

extern "C" {

enum subspan_cuda_dtype : std::int32_t {
  subspan_cuda_half,
  subspan_cuda_bfloat16,
  subspan_cuda_float,
  subspan_cuda_double,
};

/// Moments of one batch of rows on the device, written to host memory.
struct subspan_cuda_moments_call {
  void const* x;  // device, C order [n, d] with row stride row_stride (elements)
  std::int32_t dtype;
  std::int32_t device_index;
  std::int64_t n, d, row_stride;
  double const* weights;   // device [n] or null
  std::int32_t precision;  // 0: float products for storage types and float, 1: float64 products
  void* stream;
  double* mean;       // host [d]
  double* m2;         // host [d, d], both triangles
  double* totals;     // host [3]: rows of weight > 0, sum w, sum w^2
  std::int64_t* bad;  // host [2]: row and column of the first non-finite element or bad weight
                      // (column -1); -1, -1 if there is none
};

struct subspan_cuda_table {
  std::int32_t abi;  // subspan_cuda_abi; a library of another ABI is not used
  int (*device_count)();
  /// 0, or non-zero with a text in `message` (at least `size` bytes).
  int (*moments)(subspan_cuda_moments_call const* call, char* message, int size);
};

using subspan_cuda_entry = subspan_cuda_table const* (*)();
}

inline constexpr std::int32_t subspan_cuda_abi = 1;
inline constexpr char const* subspan_cuda_symbol = "subspan_cuda_functions";

namespace subspan::detail {

/// The table of the loaded library. Throws error{unsupported} that names `function` when there is
/// no such library beside this one, or no device.
subspan_cuda_table const& cuda_functions(char const* function);

}  // namespace subspan::detail
