// CUDA twin of pca.cpp: the moments of one batch of rows, in libsubspan_cuda.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "detail/cuda_table.hpp"

namespace subspan::cuda {
namespace {

using index_t = std::int64_t;

constexpr int k_tile = 64;        // columns of a product tile
constexpr int k_depth = 16;       // rows staged in shared memory
constexpr int k_threads = 16;     // threads along each side of a tile: 4 x 4 products each
constexpr int k_flush = 256;      // rows whose products are summed in P before they go to double
constexpr int k_sum_rows = 8;     // threads along the rows in the column sums
constexpr index_t k_chunks = 32;  // row chunks, at most; combined in order, so bits are fixed

void check(cudaError_t status, char const* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

/// Makes the array's device current and puts the caller's back.
class device_scope {
 public:
  explicit device_scope(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~device_scope() { cudaSetDevice(previous_); }

 private:
  int previous_ = 0;
};

/// Stream-ordered scratch on the device.
template <class T>
class buffer {
 public:
  buffer(index_t count, cudaStream_t stream) : stream_(stream) {
    check(cudaMallocAsync(&pointer_, static_cast<std::size_t>(count) * sizeof(T), stream),
          "cudaMallocAsync");
  }
  ~buffer() { cudaFreeAsync(pointer_, stream_); }
  buffer(buffer const&) = delete;
  buffer& operator=(buffer const&) = delete;
  T* get() const { return pointer_; }

 private:
  T* pointer_ = nullptr;
  cudaStream_t stream_;
};

__device__ inline double wide(double x) { return x; }
__device__ inline double wide(float x) { return x; }
__device__ inline double wide(__half x) { return __half2float(x); }
__device__ inline double wide(__nv_bfloat16 x) { return __bfloat162float(x); }

/// bad[0]: smallest row with a bad weight; totals of the weights by one block, in row order per
/// thread and in thread order between them.
__global__ void weigh_rows_kernel(double const* weights, index_t n, double* totals,
                                  unsigned long long* bad) {
  __shared__ double part[3][256];
  double count = 0, sum = 0, square = 0;
  for (index_t i = threadIdx.x; i < n; i += blockDim.x) {
    double const w = weights[i];
    if (!(w >= 0) || isinf(w)) atomicMin(bad, static_cast<unsigned long long>(i));
    count += w > 0;
    sum += w;
    square += w * w;
  }
  part[0][threadIdx.x] = count;
  part[1][threadIdx.x] = sum;
  part[2][threadIdx.x] = square;
  __syncthreads();
  if (threadIdx.x < 3) {
    double total = 0;
    for (int t = 0; t < static_cast<int>(blockDim.x); ++t) total += part[threadIdx.x][t];
    totals[threadIdx.x] = total;
  }
}

/// sums[chunk, j] = sum w x[., j] over the chunk's rows; bad[1]: smallest row * d + column of a
/// non-finite element in a row of positive weight.
template <class T>
__global__ void sum_columns_kernel(T const* x, double const* weights, index_t n, index_t d,
                                   index_t stride, index_t chunk_rows, double* sums,
                                   unsigned long long* bad) {
  __shared__ double part[k_sum_rows][32];
  index_t const j = static_cast<index_t>(blockIdx.x) * 32 + threadIdx.x;
  index_t const begin = blockIdx.y * chunk_rows, end = min(begin + chunk_rows, n);
  double sum = 0;
  if (j < d)
    for (index_t i = begin + threadIdx.y; i < end; i += k_sum_rows) {
      double const w = weights ? weights[i] : 1.0;
      if (w == 0) continue;
      double const v = wide(x[i * stride + j]);
      if (!isfinite(v)) atomicMin(bad + 1, static_cast<unsigned long long>(i * d + j));
      sum += w * v;
    }
  part[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && j < d) {
    for (int t = 1; t < k_sum_rows; ++t) sum += part[t][threadIdx.x];
    sums[blockIdx.y * d + j] = sum;
  }
}

/// mean[j] from the chunks in order; shift[j] is the mean as P holds it.
template <class P>
__global__ void take_mean_kernel(double const* sums, index_t chunks, index_t d, double total,
                                 double* mean, P* shift) {
  index_t const j = static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (j >= d) return;
  double sum = 0;
  for (index_t c = 0; c < chunks; ++c) sum += sums[c * d + j];
  mean[j] = total > 0 ? sum / total : 0;
  shift[j] = static_cast<P>(mean[j]);
}

/// partial[chunk, i, j] = sum w (x_i - shift_i)(x_j - shift_j) for the tiles with j >= i.
template <class T, class P>
__global__ void __launch_bounds__(k_threads* k_threads)
    multiply_rows_kernel(T const* x, double const* weights, P const* shift, index_t n, index_t d,
                         index_t stride, index_t chunk_rows, double* partial) {
  if (blockIdx.x < blockIdx.y) return;
  __shared__ P left[k_depth][k_tile], right[k_depth][k_tile];
  index_t const i0 = static_cast<index_t>(blockIdx.y) * k_tile;
  index_t const j0 = static_cast<index_t>(blockIdx.x) * k_tile;
  index_t const begin = blockIdx.z * chunk_rows, end = min(begin + chunk_rows, n);
  int const tx = threadIdx.x, ty = threadIdx.y, thread = ty * k_threads + tx;
  P sum[4][4] = {};
  double total[4][4] = {};
  auto const flush = [&] {
    for (int a = 0; a < 4; ++a)
      for (int b = 0; b < 4; ++b) {
        total[a][b] += static_cast<double>(sum[a][b]);
        sum[a][b] = 0;
      }
  };
  for (index_t r0 = begin; r0 < end; r0 += k_depth) {
    for (int e = thread; e < k_depth * k_tile; e += k_threads * k_threads) {
      int const r = e / k_tile, c = e % k_tile;
      double const w = r0 + r < end ? (weights ? weights[r0 + r] : 1.0) : 0.0;
      P const scale = static_cast<P>(sqrt(w));
      auto const load = [&](index_t column) -> P {
        if (w == 0 || column >= d) return P(0);
        return (static_cast<P>(wide(x[(r0 + r) * stride + column])) - shift[column]) * scale;
      };
      left[r][c] = load(i0 + c);
      right[r][c] = load(j0 + c);
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < k_depth; ++r)
#pragma unroll
      for (int a = 0; a < 4; ++a)
#pragma unroll
        for (int b = 0; b < 4; ++b)
          sum[a][b] += left[r][ty + a * k_threads] * right[r][tx + b * k_threads];
    __syncthreads();
    if ((r0 - begin) % k_flush == k_flush - k_depth) flush();
  }
  flush();
  for (int a = 0; a < 4; ++a)
    for (int b = 0; b < 4; ++b) {
      index_t const i = i0 + ty + a * k_threads, j = j0 + tx + b * k_threads;
      if (i < d && j < d) partial[(blockIdx.z * d + i) * d + j] = total[a][b];
    }
}

/// m2 = the chunks in order - W (mean - shift)(mean - shift)^T, both triangles.
template <class P>
__global__ void finish_kernel(double const* partial, index_t chunks, index_t d, double total,
                              double const* mean, P const* shift, double* m2) {
  index_t const at = static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= d * d) return;
  index_t i = at / d, j = at % d;
  if (i > j) {
    index_t const swap = i;
    i = j;
    j = swap;
  }
  double sum = 0;
  for (index_t c = 0; c < chunks; ++c) sum += partial[(c * d + i) * d + j];
  double const di = mean[i] - static_cast<double>(shift[i]);
  double const dj = mean[j] - static_cast<double>(shift[j]);
  m2[at] = sum - total * di * dj;
}

template <class T, class P>
void moments(subspan_cuda_moments_call const& call) {
  device_scope const scope(call.device_index);
  auto const stream = static_cast<cudaStream_t>(call.stream);
  auto const* x = static_cast<T const*>(call.x);
  index_t const n = call.n, d = call.d;
  // Chunks give the machine work when d is small; their partial matrices stay under 512 MiB.
  index_t const fit = std::max<index_t>(1, (index_t{512} << 20) / (8 * d * d));
  index_t const chunks = std::clamp<index_t>(std::min(n / 2048, fit), 1, k_chunks);
  index_t const chunk_rows = ((n + chunks - 1) / chunks + k_flush - 1) / k_flush * k_flush;

  buffer<double> totals(3, stream), sums(chunks * d, stream), mean(d, stream);
  buffer<double> partial(chunks * d * d, stream), m2(d * d, stream);
  buffer<P> shift(d, stream);
  buffer<unsigned long long> bad(2, stream);
  check(cudaMemsetAsync(bad.get(), 0xff, 2 * sizeof(unsigned long long), stream), "cudaMemset");

  double host_totals[3] = {static_cast<double>(n), static_cast<double>(n), static_cast<double>(n)};
  if (call.weights != nullptr) {
    weigh_rows_kernel<<<1, 256, 0, stream>>>(call.weights, n, totals.get(), bad.get());
    check(cudaGetLastError(), "weigh_rows_kernel");
    check(cudaMemcpyAsync(host_totals, totals.get(), sizeof host_totals, cudaMemcpyDeviceToHost,
                          stream),
          "cudaMemcpy");
  }
  dim3 const sum_grid(static_cast<unsigned>((d + 31) / 32), static_cast<unsigned>(chunks));
  sum_columns_kernel<T><<<sum_grid, dim3(32, k_sum_rows), 0, stream>>>(
      x, call.weights, n, d, call.row_stride, chunk_rows, sums.get(), bad.get());
  check(cudaGetLastError(), "sum_columns_kernel");
  unsigned long long host_bad[2];
  check(cudaMemcpyAsync(host_bad, bad.get(), sizeof host_bad, cudaMemcpyDeviceToHost, stream),
        "cudaMemcpy");
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  constexpr unsigned long long none = ~0ull;
  if (host_bad[0] != none) {
    call.bad[0] = static_cast<std::int64_t>(host_bad[0]);
    return;
  }
  if (host_bad[1] != none) {
    call.bad[0] = static_cast<std::int64_t>(host_bad[1]) / d;
    call.bad[1] = static_cast<std::int64_t>(host_bad[1]) % d;
    return;
  }
  double const total = host_totals[1];
  take_mean_kernel<P><<<static_cast<unsigned>((d + 255) / 256), 256, 0, stream>>>(
      sums.get(), chunks, d, total, mean.get(), shift.get());
  check(cudaGetLastError(), "take_mean_kernel");
  auto const tiles = static_cast<unsigned>((d + k_tile - 1) / k_tile);
  multiply_rows_kernel<T, P>
      <<<dim3(tiles, tiles, static_cast<unsigned>(chunks)), dim3(k_threads, k_threads), 0,
         stream>>>(x, call.weights, shift.get(), n, d, call.row_stride, chunk_rows, partial.get());
  check(cudaGetLastError(), "multiply_rows_kernel");
  finish_kernel<P><<<static_cast<unsigned>((d * d + 255) / 256), 256, 0, stream>>>(
      partial.get(), chunks, d, total, mean.get(), shift.get(), m2.get());
  check(cudaGetLastError(), "finish_kernel");
  check(cudaMemcpyAsync(call.mean, mean.get(), static_cast<std::size_t>(d) * sizeof(double),
                        cudaMemcpyDeviceToHost, stream),
        "cudaMemcpy");
  check(cudaMemcpyAsync(call.m2, m2.get(), static_cast<std::size_t>(d * d) * sizeof(double),
                        cudaMemcpyDeviceToHost, stream),
        "cudaMemcpy");
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  std::copy_n(host_totals, 3, call.totals);
}

template <class T>
void moments_in(subspan_cuda_moments_call const& call) {
  if (call.precision == 1 || std::is_same_v<T, double>)
    moments<T, double>(call);
  else if constexpr (!std::is_same_v<T, double>)
    moments<T, float>(call);
}

int moments_entry(subspan_cuda_moments_call const* call, char* message, int size) {
  try {
    switch (call->dtype) {
      case subspan_cuda_half:
        moments_in<__half>(*call);
        break;
      case subspan_cuda_bfloat16:
        moments_in<__nv_bfloat16>(*call);
        break;
      case subspan_cuda_float:
        moments_in<float>(*call);
        break;
      default:
        moments_in<double>(*call);
    }
    return 0;
  } catch (std::exception const& error) {
    std::snprintf(message, static_cast<std::size_t>(size), "%s", error.what());
    return 1;
  }
}

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

constexpr subspan_cuda_table table{subspan_cuda_abi, &device_count, &moments_entry};

}  // namespace
}  // namespace subspan::cuda

extern "C" __attribute__((visibility("default"))) subspan_cuda_table const*
subspan_cuda_functions() {
  return &subspan::cuda::table;
}
