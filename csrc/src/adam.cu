// CUDA twin of adam.cpp.

#include <algorithm>

#include "detail/adam_bodies.hpp"
#include "detail/cuda_support.cuh"

namespace subspan::cuda {
namespace {

constexpr int k_threads = 256;
constexpr int k_warps = k_threads / gpu::k_warp;
constexpr index_t k_warp_row = 2048;        // elements of a row beyond which it takes a block
constexpr index_t k_most_blocks = 1 << 20;  // that walk over rows or elements
constexpr index_t k_norm_blocks = 1024;     // of a norm, whatever the device: bits depend on them
constexpr index_t k_norm_row = 8192;        // elements where rows mean nothing

constexpr index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }

template <class T>
__global__ void __launch_bounds__(k_threads)
    step_elements_kernel(detail::adam_task<T> const task, index_t elements) {
  index_t const pace = index_t{gridDim.x} * k_threads;
  for (index_t i = blockIdx.x * index_t{k_threads} + threadIdx.x; i < elements; i += pace)
    gpu::step_element(task, i, T(0), static_cast<T>(task.scale));
}

/// Rows by warps, or by blocks where they are long.
template <class T, bool Long>
__global__ void __launch_bounds__(k_threads)
    step_rows_kernel(detail::adam_task<T> const task, index_t rows) {
  __shared__ double scratch[gpu::k_team_scratch];
  gpu::device_lanes const lanes;
  if constexpr (Long) {
    gpu::block_team const team(lanes, scratch);
    for (index_t r = blockIdx.x; r < rows; r += gridDim.x) gpu::step_row(team, task, r);
  } else {
    gpu::warp_team const team(lanes);
    index_t const pace = index_t{gridDim.x} * k_warps;
    for (index_t r = blockIdx.x * index_t{k_warps} + lanes.warp(); r < rows; r += pace)
      gpu::step_row(team, task, r);
  }
}

template <class T>
__global__ void __launch_bounds__(k_threads)
    squares_kernel(T const* g, T const* w, index_t elements, index_t d, double* sums) {
  __shared__ double scratch[gpu::k_team_scratch];
  gpu::device_lanes const lanes;
  gpu::block_team const team(lanes, scratch);
  double const sum = gpu::squares_of_rows(team, g, w, elements, d, blockIdx.x, gridDim.x);
  if (lanes.rank() == 0) sums[blockIdx.x] = sum;
}
__global__ void __launch_bounds__(k_threads)
    add_kernel(double const* sums, index_t count, double* total) {
  __shared__ double scratch[gpu::k_team_scratch];
  gpu::device_lanes const lanes;
  gpu::block_team const team(lanes, scratch);
  double const sum = gpu::sum_of_row(team, count, [=](index_t i) { return sums[i]; });
  if (lanes.rank() == 0) *total = sum;
}

template <class T>
void step(subspan_cuda_adam_call const& call) {
  double const* const n = call.numbers;
  detail::adam_task<T> const task{
      static_cast<T*>(call.w),
      static_cast<T*>(call.m),
      static_cast<T*>(call.v),
      static_cast<T const*>(call.g),
      call.d,
      {static_cast<T>(n[0]), static_cast<T>(n[1]), static_cast<T>(n[2]), static_cast<T>(n[3]),
       static_cast<T>(n[4]), static_cast<T>(n[5]), static_cast<T>(n[6])},
      call.scale,
      call.row_limit,
      call.remove_parallel != 0,
      call.unit_rows != 0};
  auto const stream = static_cast<cudaStream_t>(call.stream);
  auto const blocks = [](index_t work, index_t each) {
    return static_cast<unsigned>(std::min(ceil_div(work, each), k_most_blocks));
  };
  if (!task.remove_parallel && !task.unit_rows && task.row_limit == 0) {
    index_t const elements = call.rows * call.d;
    step_elements_kernel<T><<<blocks(elements, k_threads), k_threads, 0, stream>>>(task, elements);
    check_launch("step_elements_kernel");
  } else if (call.d > k_warp_row) {
    step_rows_kernel<T, true><<<blocks(call.rows, 1), k_threads, 0, stream>>>(task, call.rows);
    check_launch("step_rows_kernel");
  } else {
    step_rows_kernel<T, false>
        <<<blocks(call.rows, k_warps), k_threads, 0, stream>>>(task, call.rows);
    check_launch("step_rows_kernel");
  }
}

template <class T>
void norm(subspan_cuda_adam_call const& call) {
  auto const stream = static_cast<cudaStream_t>(call.stream);
  auto const* const g = static_cast<T const*>(call.g);
  auto const* const w = static_cast<T const*>(call.w);
  index_t const elements = call.rows * call.d, d = w == nullptr ? k_norm_row : call.d;
  index_t const blocks = std::min(ceil_div(elements, d), k_norm_blocks);
  buffer<double> const sums(blocks + 1, stream);
  squares_kernel<T>
      <<<static_cast<unsigned>(blocks), k_threads, 0, stream>>>(g, w, elements, d, sums.get());
  check_launch("squares_kernel");
  double* const total = sums.get() + blocks;
  add_kernel<<<1, k_threads, 0, stream>>>(sums.get(), blocks, total);
  check_launch("add_kernel");
  check(cudaMemcpyAsync(call.squares, total, sizeof(double), cudaMemcpyDeviceToHost, stream),
        "cudaMemcpyAsync");
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

}  // namespace

int adam(subspan_cuda_adam_call const* call, char* message, int size) {
  return guarded(message, size, [&] {
    if (call->rows == 0 || call->d == 0) return;
    device_scope const scope(call->device_index);
    bool const wide = call->dtype == subspan_cuda_double;
    if (call->squares != nullptr)
      wide ? norm<double>(*call) : norm<float>(*call);
    else
      wide ? step<double>(*call) : step<float>(*call);
  });
}

}  // namespace subspan::cuda
