// The table of libsubspan_cuda.

#include "detail/cuda_support.cuh"

namespace subspan::cuda {
namespace {

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

int fetch(void* host, void const* device, std::size_t bytes, std::int32_t device_index,
          void* stream, char* message, int size) {
  return guarded(message, size, [&] {
    device_scope const scope(device_index);
    auto const on = static_cast<cudaStream_t>(stream);
    check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, on), "cudaMemcpyAsync");
    check(cudaStreamSynchronize(on), "cudaStreamSynchronize");
  });
}

constexpr subspan_cuda_table table{subspan_cuda_abi,
                                   &device_count,
                                   &fetch,
                                   &moments,
                                   &svd,
                                   &eigh,
                                   &qr,
                                   &topk,
                                   &kernel_sums,
                                   &decode,
                                   &decode_gradients,
                                   &encode,
                                   &encode_gradients,
                                   &adam};

}  // namespace
}  // namespace subspan::cuda

extern "C" __attribute__((visibility("default"))) subspan_cuda_table const*
subspan_cuda_functions() {
  return &subspan::cuda::table;
}
