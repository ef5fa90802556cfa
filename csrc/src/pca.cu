// CUDA twin of pca.cpp: the moments of one batch of rows, in libsubspan_cuda.

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "detail/cuda_storage.cuh"
#include "detail/cuda_support.cuh"
#include "detail/moments_tile.hpp"

namespace subspan::cuda {
namespace {

using gpu::device_lanes;
using gpu::row_view;

constexpr int k_threads = 256;  // of all kernels but the products
constexpr int k_parts = k_threads / gpu::k_warp;
// Rows are cut into chunks by the shapes alone, for a device of this size: results must not depend
// on the device at hand.
constexpr index_t k_multiprocessors = 132;
constexpr index_t k_scratch = index_t{128} << 20;  // bytes of the chunks' products, at most
constexpr index_t k_weigh_blocks = 128;
constexpr index_t k_sum_blocks = 16 * k_multiprocessors;

constexpr unsigned long long k_none = ~0ull;

constexpr index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }

struct row_chunks {
  index_t count, rows;
  row_chunks(index_t n, index_t wanted, index_t multiple)
      : rows(ceil_div(ceil_div(n, wanted), multiple) * multiple) {
    count = ceil_div(n, rows);
  }
};

template <class Shape>
constexpr index_t k_tile_size = index_t{Shape::planes} * Shape::side * Shape::side;

/// As many as fill whole waves of blocks best, within the limits of scratch and of useful length.
template <class Shape>
row_chunks chunks_of_products(index_t n, index_t tiles) {
  constexpr index_t wave = Shape::blocks * k_multiprocessors;
  index_t const bytes = tiles * k_tile_size<Shape> * index_t{sizeof(typename Shape::P)};
  index_t const most = std::min({k_scratch / bytes, n / (4 * Shape::side), 4 * wave / tiles});
  index_t best = 1;
  auto const slots = [&](index_t c) { return ceil_div(c * tiles, wave); };
  for (index_t c = 2; c <= most; ++c)
    if (c * slots(best) > best * slots(c)) best = c;
  return row_chunks(n, best, Shape::depth);
}

template <class P>
__global__ void __launch_bounds__(k_threads)
    weigh_rows_kernel(double const* weights, index_t n, P* scale, double* sums,
                      unsigned long long* bad) {
  __shared__ double memory[gpu::k_warp];
  gpu::weigh_rows(device_lanes{}, memory, weights, n, index_t{blockIdx.x} * k_threads + threadIdx.x,
                  index_t{gridDim.x} * k_threads, scale, sums + 3 * blockIdx.x,
                  [=](index_t row) { atomicMin(bad, static_cast<unsigned long long>(row)); });
}

/// totals[s] = the sum over c of sums[c, s].
__global__ void __launch_bounds__(k_threads)
    add_weights_kernel(double const* sums, index_t count, double* totals) {
  __shared__ double memory[k_threads];
  int const s = threadIdx.x % gpu::k_warp;
  double const sum = gpu::sum_in_parts(device_lanes{}, memory, s < 3 ? count : 0, k_parts,
                                       [=](index_t c) { return sums[3 * c + s]; });
  if (threadIdx.x < 3) totals[s] = sum;
}

template <class T, bool Aligned>
__global__ void __launch_bounds__(k_threads)
    sum_columns_kernel(row_view<T> x, double const* weights, int across, index_t chunk_rows,
                       double* sums, unsigned long long* bad) {
  __shared__ double memory[k_threads * gpu::pack<T>::width];
  index_t const begin = blockIdx.y * chunk_rows;
  gpu::sum_columns<Aligned>(
      device_lanes{}, memory, x, weights, across, static_cast<int>(blockIdx.x), begin,
      min(begin + chunk_rows, x.rows), sums + blockIdx.y * x.columns, [=](index_t row, int column) {
        atomicMin(bad, static_cast<unsigned long long>(row * x.columns + column));
      });
}

/// mean[j] from the chunks' sums; shift[j] is the mean as P holds it.
template <class P>
__global__ void __launch_bounds__(k_threads)
    take_mean_kernel(double const* sums, index_t chunks, index_t d, double const* totals,
                     double* mean, P* shift) {
  __shared__ double memory[k_threads];
  int const lane = threadIdx.x % gpu::k_warp;
  index_t const j = index_t{blockIdx.x} * gpu::k_warp + lane;
  double const sum = gpu::sum_in_parts(device_lanes{}, memory, j < d ? chunks : 0, k_parts,
                                       [=](index_t c) { return sums[c * d + j]; });
  if (j >= d || threadIdx.x >= gpu::k_warp) return;
  double const total = totals[1];
  mean[j] = total > 0 ? sum / total : 0;
  shift[j] = static_cast<P>(mean[j]);
}

template <class Shape, class T, bool Aligned>
__global__ void __launch_bounds__(Shape::threads, Shape::blocks)
    multiply_rows_kernel(row_view<T> x, typename Shape::P const* scale,
                         typename Shape::P const* shift, index_t chunk_rows,
                         typename Shape::P* partial) {
  extern __shared__ __align__(16) unsigned char memory[];
  index_t const begin = blockIdx.y * chunk_rows;
  device_lanes const lanes;
  gpu::tile_products<Shape, Aligned, T, device_lanes> products(
      lanes, *reinterpret_cast<gpu::tile_memory<Shape>*>(memory), x, scale, shift,
      static_cast<int>(blockIdx.x), begin, min(begin + chunk_rows, x.rows));
  products.run();
  products.store(partial + (index_t{blockIdx.y} * gridDim.x + blockIdx.x) * k_tile_size<Shape>);
}

template <class Shape>
__global__ void __launch_bounds__(k_threads)
    finish_products_kernel(typename Shape::P const* partial, index_t chunks, int parts, int d,
                           double const* totals, double const* mean, typename Shape::P const* shift,
                           double* m2) {
  __shared__ double memory[k_threads];
  gpu::finish_products<Shape>(device_lanes{}, memory, partial, chunks, parts, blockIdx.x,
                              blockIdx.y, d, totals[1], mean, shift, m2);
}

/// The products of the shifted rows, then m2.
template <class Shape, class T, bool Aligned>
void multiply(row_view<T> const& x, typename Shape::P const* scale, typename Shape::P const* shift,
              double const* totals, double const* mean, double* m2, cudaStream_t stream) {
  index_t const side = ceil_div(x.columns, Shape::side), tiles = side * (side + 1) / 2;
  row_chunks const chunks = chunks_of_products<Shape>(x.rows, tiles);
  buffer<typename Shape::P> partial(chunks.count * tiles * k_tile_size<Shape>, stream);
  auto const kernel = multiply_rows_kernel<Shape, T, Aligned>;
  constexpr std::size_t memory = sizeof(gpu::tile_memory<Shape>);
  allow_shared(kernel, memory);
  dim3 const grid(static_cast<unsigned>(tiles), static_cast<unsigned>(chunks.count));
  kernel<<<grid, Shape::threads, memory, stream>>>(x, scale, shift, chunks.rows, partial.get());
  check_launch("multiply_rows_kernel");
  int const parts = chunks.count < k_parts ? 1 : k_parts;
  dim3 const elements(static_cast<unsigned>(ceil_div(x.columns, k_parts / parts)),
                      static_cast<unsigned>(ceil_div(x.columns, gpu::k_warp)));
  finish_products_kernel<Shape><<<elements, k_threads, 0, stream>>>(
      partial.get(), chunks.count, parts, static_cast<int>(x.columns), totals, mean, shift, m2);
  check_launch("finish_products_kernel");
}

template <class T, class P, bool Aligned>
void moments(subspan_cuda_moments_call const& call) {
  device_scope const scope(call.device_index);
  auto const stream = static_cast<cudaStream_t>(call.stream);
  index_t const n = call.n, d = call.d;
  row_view<T> const x{static_cast<T const*>(call.x), n, d, call.row_stride};
  auto const fetch = [&](double* host, double const* from, index_t count) {
    check(cudaMemcpyAsync(host, from, static_cast<std::size_t>(count) * sizeof(double),
                          cudaMemcpyDeviceToHost, stream),
          "cudaMemcpy");
  };

  // One row of packs per warp, or several where rows are short.
  constexpr int width = gpu::pack<T>::width;
  int across = 1;
  while (across < gpu::k_warp && across * width < d) across *= 2;
  index_t const strips = ceil_div(d, across * width), pace = k_threads / across;
  index_t const useful = std::max<index_t>(1, n / (8 * pace));
  row_chunks const chunks(n, std::clamp<index_t>(k_sum_blocks / strips, 1, useful), 1);

  buffer<double> totals(3, stream), sums(chunks.count * d, stream), mean(d, stream);
  buffer<double> m2(d * d, stream), weight_sums(call.weights ? 3 * k_weigh_blocks : 0, stream);
  buffer<P> shift(d, stream), scale(call.weights ? n : 0, stream);
  buffer<unsigned long long> bad(2, stream);
  check(cudaMemsetAsync(bad.get(), 0xff, 2 * sizeof(unsigned long long), stream), "cudaMemset");

  auto const rows = static_cast<double>(n);
  double host_totals[3] = {rows, rows, rows};
  if (call.weights != nullptr) {
    weigh_rows_kernel<P><<<k_weigh_blocks, k_threads, 0, stream>>>(call.weights, n, scale.get(),
                                                                   weight_sums.get(), bad.get());
    check_launch("weigh_rows_kernel");
    add_weights_kernel<<<1, k_threads, 0, stream>>>(weight_sums.get(), k_weigh_blocks,
                                                    totals.get());
    check_launch("add_weights_kernel");
  } else {
    check(cudaMemcpyAsync(totals.get(), host_totals, sizeof host_totals, cudaMemcpyHostToDevice,
                          stream),
          "cudaMemcpy");
  }
  dim3 const grid(static_cast<unsigned>(strips), static_cast<unsigned>(chunks.count));
  sum_columns_kernel<T, Aligned><<<grid, k_threads, 0, stream>>>(
      x, call.weights, across, chunks.rows, sums.get(), bad.get() + 1);
  check_launch("sum_columns_kernel");
  auto const strips_of_means = static_cast<unsigned>(ceil_div(d, gpu::k_warp));
  take_mean_kernel<P><<<strips_of_means, k_threads, 0, stream>>>(
      sums.get(), chunks.count, d, totals.get(), mean.get(), shift.get());
  check_launch("take_mean_kernel");
  auto const multiply_in = [&]<class Shape>() {
    multiply<Shape, T, Aligned>(x, scale.get(), shift.get(), totals.get(), mean.get(), m2.get(),
                                stream);
  };
  // An odd number of small tiles on a side pads less, which counts where there are few.
  index_t const small = ceil_div(d, gpu::small_tile::side);
  if constexpr (std::is_same_v<P, double>)
    multiply_in.template operator()<gpu::double_tile>();
  else if (small % 2 == 1 && small < 10)
    multiply_in.template operator()<gpu::small_tile>();
  else
    multiply_in.template operator()<gpu::large_tile>();

  // Bad elements harm no kernel, so one wait at the end is enough.
  unsigned long long host_bad[2];
  check(cudaMemcpyAsync(host_bad, bad.get(), sizeof host_bad, cudaMemcpyDeviceToHost, stream),
        "cudaMemcpy");
  landing const landed(static_cast<std::size_t>(3 + d + d * d) * sizeof(double));
  auto* const first = static_cast<double*>(landed.data());
  fetch(first ? first : call.totals, totals.get(), 3);
  fetch(first ? first + 3 : call.mean, mean.get(), d);
  fetch(first ? first + 3 + d : call.m2, m2.get(), d * d);
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  if (first != nullptr) {
    std::copy_n(first, 3, call.totals);
    std::copy_n(first + 3, d, call.mean);
    std::copy_n(first + 3 + d, d * d, call.m2);
  }
  if (host_bad[0] != k_none) {
    call.bad[0] = static_cast<std::int64_t>(host_bad[0]);
  } else if (host_bad[1] != k_none) {
    call.bad[0] = static_cast<std::int64_t>(host_bad[1]) / d;
    call.bad[1] = static_cast<std::int64_t>(host_bad[1]) % d;
  }
}

template <class T, class P>
void moments_at(subspan_cuda_moments_call const& call) {
  constexpr index_t width = gpu::pack<T>::width;
  bool const aligned = reinterpret_cast<std::uintptr_t>(call.x) % sizeof(gpu::pack<T>) == 0 &&
                       call.row_stride % width == 0 && call.d % width == 0;
  if (aligned)
    moments<T, P, true>(call);
  else
    moments<T, P, false>(call);
}

template <class T>
void moments_in(subspan_cuda_moments_call const& call) {
  if (call.precision == 1 || std::is_same_v<T, double>)
    moments_at<T, double>(call);
  else if constexpr (!std::is_same_v<T, double>)
    moments_at<T, float>(call);
}

}  // namespace

int moments(subspan_cuda_moments_call const* call, char* message, int size) {
  return guarded(message, size,
                 [&] { visit_storage(call->dtype, [&]<class T>(T) { moments_in<T>(*call); }); });
}

}  // namespace subspan::cuda
