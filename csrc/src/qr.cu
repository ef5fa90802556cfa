// CUDA twin of qr.cpp: batched thin QR by Householder reflections, in libsubspan_cuda.

#include <algorithm>

#include "detail/columns.cuh"
#include "detail/cuda_support.cuh"
#include "detail/cusolver.hpp"
#include "detail/qr_bodies.hpp"

namespace subspan::cuda {
namespace {

using gpu::device_lanes;
using gpu::k_panel;
using gpu::k_warp;
using gpu::qr_memory;
using gpu::qr_problem;

constexpr int k_register_threads = 128;  // of a block of the kernel in registers
constexpr int k_block_threads = 512;     // of the kernel in shared memory, at most
constexpr int k_panel_threads = 384;     // of the kernel by panels, which takes more registers
constexpr index_t k_entries_per_warp = 1024;
constexpr index_t k_most_blocks = 0x7fffffff;                              // of a grid
constexpr index_t k_scratch_bytes = gpu::k_team_scratch * sizeof(double);  // in front of tau
template <class T>                                                         // T and sums of a panel
constexpr index_t k_panel_entries =
    k_panel * (k_panel + k_panel_threads / k_warp * gpu::k_panel_columns<T>);
// cuSOLVER has the whole device for one matrix: better for fewer than this, from this m n k on.
constexpr index_t k_few = 8;
constexpr double k_large = 512.0 * 512.0 * 512.0;

template <int R, int P, int G, class T>
__global__ void __launch_bounds__(k_register_threads) qr_in_registers_kernel(qr_problem<T> p) {
  constexpr int warps = k_register_threads / k_warp, per_warp = k_warp / (P * G);
  index_t const all = (p.batch + per_warp - 1) / per_warp;
  device_lanes const lanes;
  for (index_t warp = index_t{blockIdx.x} * warps + lanes.warp(); warp < all;
       warp += index_t{gridDim.x} * warps)
    gpu::qr_in_registers<R, P, G, device_lanes, T>(lanes, p, warp).run();
}

/// The matrix is in shared memory.
template <class T>
__global__ void __launch_bounds__(k_block_threads, 1)
    qr_by_block_kernel(qr_problem<T> p, index_t lda) {
  extern __shared__ __align__(16) unsigned char shared[];
  auto* const scratch = reinterpret_cast<double*>(shared);
  auto* const tau = reinterpret_cast<T*>(shared + k_scratch_bytes);
  qr_memory<T> const memory{tau + p.steps(), lda, tau, scratch, {}};
  device_lanes const lanes;
  for (index_t b = blockIdx.x; b < p.batch; b += gridDim.x)
    gpu::qr_by_block<false>(lanes, p, b, memory);
}

/// The matrix is in this block's part of `slots`, in front of it the panel if that has no room in
/// shared memory.
template <class T>
__global__ void __launch_bounds__(k_panel_threads, 1)
    qr_by_panels_kernel(qr_problem<T> p, index_t lda, T* slots, index_t slot_size,
                        bool panel_is_shared) {
  extern __shared__ __align__(16) unsigned char shared[];
  auto* const scratch = reinterpret_cast<double*>(shared);
  auto* const t = reinterpret_cast<T*>(shared + k_scratch_bytes);
  T* const sums = t + k_panel * k_panel;
  T* const tau = t + k_panel_entries<T>;
  T* const slot = slots + blockIdx.x * slot_size;
  T* const panel = panel_is_shared ? tau + p.steps() : slot;
  T* const work = panel_is_shared ? slot : slot + lda * k_panel;
  qr_memory<T> const memory{work, lda, tau, scratch, {panel, lda, t, sums}};
  device_lanes const lanes;
  for (index_t b = blockIdx.x; b < p.batch; b += gridDim.x)
    gpu::qr_by_block<true>(lanes, p, b, memory);
}

template <int R, int P, int G, class T>
void run_in_registers(qr_problem<T> const& p, cudaStream_t stream) {
  constexpr int per_block = k_register_threads / (P * G);
  index_t const blocks = std::min((p.batch + per_block - 1) / per_block, k_most_blocks);
  qr_in_registers_kernel<R, P, G>
      <<<static_cast<unsigned>(blocks), k_register_threads, 0, stream>>>(p);
  check_launch("qr_in_registers_kernel");
}

/// Runs the smallest kernel that takes the whole matrix in registers, if there is one.
template <class T>
bool try_in_registers(qr_problem<T> const& p, cudaStream_t stream) {
  if (p.n <= 8) {
    if (p.m <= 8) return run_in_registers<8, 1, 8>(p, stream), true;
    if (p.m <= 16) return run_in_registers<16, 1, 8>(p, stream), true;
    if (p.m <= 32) return run_in_registers<16, 2, 8>(p, stream), true;
    if (p.m <= 64) return run_in_registers<16, 4, 8>(p, stream), true;
    if (p.m <= 128) return run_in_registers<32, 4, 8>(p, stream), true;
  } else if (p.n <= 16) {
    if (p.m <= 16) return run_in_registers<16, 1, 16>(p, stream), true;
    if (p.m <= 32) return run_in_registers<16, 2, 16>(p, stream), true;
    if (p.m <= 64) return run_in_registers<32, 2, 16>(p, stream), true;
  } else if (p.n <= 32 && p.m <= 32) {
    return run_in_registers<32, 1, 32>(p, stream), true;
  }
  return false;
}

template <class T>
void run_by_block(qr_problem<T> const& p, cudaStream_t stream) {
  index_t const m = p.m, n = p.n, k = std::min(m, n), size = sizeof(T);
  index_t const limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  int threads = k_warp;
  while (threads < k_block_threads && threads / k_warp * k_entries_per_warp < m * n) threads *= 2;
  index_t lda = m | 1;  // odd, so that a row lies in different banks
  index_t bytes = k_scratch_bytes + (k + lda * n) * size;
  if (bytes <= limit) {
    allow_shared(qr_by_block_kernel<T>, static_cast<std::size_t>(bytes));
    qr_by_block_kernel<T><<<static_cast<unsigned>(std::min(p.batch, k_most_blocks)), threads,
                            static_cast<std::size_t>(bytes), stream>>>(p, lda);
    return check_launch("qr_by_block_kernel");
  }
  threads = std::min(threads, k_panel_threads);
  lda = (m + k_warp - 1) / k_warp * k_warp;
  bytes = k_scratch_bytes + (k_panel_entries<T> + k) * size;
  bool const panel_is_shared = bytes + lda * k_panel * size <= limit;
  if (panel_is_shared) bytes += lda * k_panel * size;
  if (bytes > limit)
    throw failure(subspan_cuda_unsupported,
                  "min(m, n) is beyond the kernel's shared memory (" + std::to_string(limit) + ")");
  allow_shared(qr_by_panels_kernel<T>, static_cast<std::size_t>(bytes));
  int resident = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, qr_by_panels_kernel<T>, threads,
                                                      static_cast<std::size_t>(bytes)),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  index_t const slot_size = lda * (n + (panel_is_shared ? 0 : k_panel));
  index_t const blocks =
      std::min({p.batch, std::max<index_t>(k_slice_bytes / (slot_size * size), 1),
                std::max<index_t>(resident, 1) * device_attribute(cudaDevAttrMultiProcessorCount)});
  buffer<T> const slots(blocks * slot_size, stream);
  qr_by_panels_kernel<T>
      <<<static_cast<unsigned>(blocks), threads, static_cast<std::size_t>(bytes), stream>>>(
          p, lda, slots.get(), slot_size, panel_is_shared);
  check_launch("qr_by_panels_kernel");
}

// ---- one large matrix by cuSOLVER ----

template <class T>
void run_by_cusolver(qr_problem<T> const& p, cusolver_library& library, int device,
                     cudaStream_t stream) {
  int const m = p.m, n = p.n, k = std::min(m, n);
  cusolver_qr<T> const& functions = library.qr<T>();
  std::unique_lock<std::mutex> lock;
  void* const handle = library.handle(device, stream, lock);
  buffer<T> const work(index_t{m} * n, stream), tau(k, stream);
  buffer<unsigned long long> const largest(1, stream);
  buffer<int> const status(1, stream);
  int for_r = 0, for_q = 0;
  auto const done = &cusolver_library::cusolver_check;
  done(functions.geqrf_size(handle, m, n, work.get(), m, &for_r), "geqrf_bufferSize");
  done(functions.orgqr_size(handle, m, k, k, work.get(), m, tau.get(), &for_q), "orgqr_bufferSize");
  int const size = std::max(for_r, for_q);
  buffer<T> const scratch(size, stream);
  for (index_t b = 0; b < p.batch; ++b) {
    bool const checked = p.check_finite;
    strided_matrix<T const> const a{p.a + b * p.batch_stride, p.row_stride, p.column_stride, m, n};
    load_columns<false>(a, largest.get(), checked, work.get(), stream);
    done(functions.geqrf(handle, m, n, work.get(), m, tau.get(), scratch.get(), size, status.get()),
         "geqrf");
    store_columns<stored::upper_scaled_back>(work.get(), m, largest.get(), checked,
                                             strided_matrix<T>{p.r + b * k * n, n, 1, k, n},
                                             stream);
    store_info<T>(largest.get(), checked, status.get(), p.info + b, stream);
    if (p.q == nullptr) continue;
    done(functions.orgqr(handle, m, k, k, work.get(), m, tau.get(), scratch.get(), size,
                         status.get()),
         "orgqr");
    store_columns<stored::as_is>(work.get(), m, largest.get(), checked,
                                 strided_matrix<T>{p.q + b * m * k, k, 1, m, k}, stream);
  }
}

template <class T>
void qr_of(subspan_cuda_decomposition_call const& call) {
  if (call.batch == 0) return;
  device_scope const scope(call.device_index);
  auto const stream = static_cast<cudaStream_t>(call.stream);
  if (call.m == 0 || call.n == 0) return clear_info(call);
  qr_problem<T> const p{static_cast<T const*>(call.a),
                        call.batch,
                        call.strides[0],
                        call.strides[1],
                        call.strides[2],
                        static_cast<int>(call.m),
                        static_cast<int>(call.n),
                        call.check_finite != 0,
                        static_cast<T*>(call.left),
                        static_cast<T*>(call.right),
                        call.info};
  if (try_in_registers(p, stream)) return;
  double const size = static_cast<double>(p.m) * p.n * std::min(p.m, p.n);
  if (p.batch < k_few && size > k_large)
    if (cusolver_library* const library = cusolver_library::get())
      return run_by_cusolver(p, *library, call.device_index, stream);
  run_by_block(p, stream);
}

}  // namespace

int qr(subspan_cuda_decomposition_call const* call, char* message, int size) {
  return guarded_real(call, message, size, [&](auto tag) { qr_of<decltype(tag)>(*call); });
}

}  // namespace subspan::cuda
