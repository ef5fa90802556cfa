#pragma once

#include <optional>
#include <vector>

#include "detail/contract.hpp"
#include "detail/cuda_table.hpp"
#include "subspan/kernel_matvec.hpp"

/// The way from kernel_matvec.cpp to its CUDA twin.

namespace subspan::detail {

template <class T>
subspan_cuda_array cuda_array(strided_view<T const, 3> const& a) {
  return {a.data, a.shape[1], a.shape[2], {a.strides[0], a.strides[1], a.strides[2]}};
}

/// of_x: what goes with x, g or terms; of_y: v or terms. No ranges there; a cutoff leaves nothing out.
template <class T, class OfX, class OfY>
void sum_on_device(subspan_cuda_table const& cuda, char const* function, context const& ctx,
                   subspan_cuda_kernel_task task, kernel_params const& how,
                   kernel_ranges const* ranges, strided_view<T const, 3> x,
                   strided_view<T const, 3> y, strided_view<OfX const, 3> of_x,
                   strided_view<OfY const, 3> of_y, strided_view<double const, 1> bandwidth, T* out,
                   double* more = nullptr, bool exchanged = false) {
  if (ranges != nullptr)
    fail(
        error_kind::unsupported, function,
        "ranges have no CUDA kernel yet, got arrays on a CUDA device. Copy them to the host first");
  std::vector<double> widths;  // side by side
  for (index_t c = 0; c < bandwidth.shape[0]; ++c) widths.push_back(bandwidth(c));
  subspan_cuda_kernel_call const call{task,
                                      static_cast<std::int32_t>(how.function),
                                      how.alpha,
                                      how.offset,
                                      how.degree,
                                      cuda_dtype<T>(),
                                      x.device.index,
                                      exchanged,
                                      ctx.stream,
                                      x.shape[0],
                                      cuda_array<T>(x),
                                      cuda_array<T>(y),
                                      cuda_array<OfX>(of_x),
                                      cuda_array<OfY>(of_y),
                                      widths.data(),
                                      out,
                                      more};
  char message[256] = {};
  check_cuda(function, cuda.kernel_sums(&call, message, sizeof message), message);
}

}  // namespace subspan::detail
