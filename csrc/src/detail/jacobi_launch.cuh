#pragma once

#include <algorithm>

#include "detail/columns.cuh"
#include "detail/cuda_support.cuh"
#include "detail/cusolver.hpp"
#include "detail/jacobi_memory.hpp"
#include "detail/jacobi_registers.hpp"

/// The kernels of svd and eigh and the choice between them.

namespace subspan::cuda {

using gpu::jacobi_layout;
using gpu::jacobi_task;
using gpu::spectral;

/// A batch of matrices of one shape; task(b) is one of them. Strides are in elements.
template <class T>
struct jacobi_batch {
  jacobi_task<T> first;
  index_t a_step, values_step, left_step, right_step;
  index_t batch;

  __host__ __device__ jacobi_task<T> at(index_t b) const {
    jacobi_task<T> task = first;
    task.a += b * a_step;
    task.values += b * values_step;
    if (task.left != nullptr) task.left += b * left_step;
    if (task.right != nullptr) task.right += b * right_step;
    task.info += b;
    return task;
  }
  __device__ jacobi_task<T> operator()(index_t b) const { return at(b); }
};

inline constexpr int k_register_warps = 4;

template <spectral Kind, class T, int Size, bool Vectors>
__global__ void __launch_bounds__(k_register_warps * 32)
    jacobi_registers_kernel(jacobi_batch<T> const batch) {
  gpu::device_lanes const lanes;
  constexpr index_t per_warp = 32 / Size;
  index_t const warp = static_cast<index_t>(blockIdx.x) * k_register_warps + lanes.warp();
  if (warp * per_warp >= batch.batch) return;
  gpu::jacobi_in_registers<Kind, T, Size, Vectors>(lanes, batch, warp * per_warp, batch.batch);
}

/// Threads of a block, at most, and blocks that a multiprocessor must have registers for: one group
/// for each pair up to 64 columns; beyond, what two columns of doubles in registers leave room for.
template <class T, int Kept>
inline constexpr int k_memory_threads = 0 < Kept && Kept <= 8   ? 256
                                        : sizeof(T) * Kept > 80 ? 256
                                                                : 512;
template <class T, int Kept>
inline constexpr int k_memory_blocks = sizeof(T) == 4 && 0 < Kept && Kept <= 8 ? 3 : 1;

/// `slots`: global working memory, one piece per block, or null for shared memory.
template <spectral Kind, class T, int Width, int Kept, bool Vectors>
__global__ void __launch_bounds__(k_memory_threads<T, Kept>, k_memory_blocks<T, Kept>)
    jacobi_memory_kernel(jacobi_batch<T> const batch, T* slots, index_t slot_size) {
  extern __shared__ double shared[];
  gpu::device_lanes const lanes;
  T* const memory = slots != nullptr ? slots + blockIdx.x * slot_size
                                     : reinterpret_cast<T*>(shared + gpu::k_team_scratch);
  for (index_t b = blockIdx.x; b < batch.batch; b += gridDim.x) {
    gpu::jacobi_in_memory<Kind, T, Width, Kept, Vectors>(gpu::block_team(lanes, shared),
                                                         batch.at(b), memory);
    lanes.sync();
  }
}

template <spectral Kind, class T, int Size, bool Vectors>
void launch_registers(jacobi_batch<T> const& batch, cudaStream_t stream) {
  index_t const warps = (batch.batch * Size + 31) / 32;
  auto const blocks = static_cast<unsigned>((warps + k_register_warps - 1) / k_register_warps);
  jacobi_registers_kernel<Kind, T, Size, Vectors>
      <<<blocks, k_register_warps * 32, 0, stream>>>(batch);
  check_launch("jacobi_registers_kernel");
}

template <spectral Kind, class T, int Width, int Kept, bool Vectors>
void launch_memory(jacobi_batch<T> const& batch, cudaStream_t stream) {
  int const rows = batch.first.rows, cols = batch.first.cols;
  constexpr bool has_v = Vectors || Kind == spectral::eigh;
  index_t const size = (jacobi_layout::of(rows, cols, Width, Kept, has_v).size + 1) / 2 * 2;
  index_t const bytes = size * static_cast<index_t>(sizeof(T));
  index_t const most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  // As many groups as there are pairs, rounded up to whole warps.
  int const wanted = (cols + 1) / 2 * Width;
  int const threads = std::clamp((wanted + 31) / 32 * 32, 32, k_memory_threads<T, Kept>);
  constexpr auto kernel = jacobi_memory_kernel<Kind, T, Width, Kept, Vectors>;
  index_t const scratch = gpu::k_team_scratch * sizeof(double);
  if (bytes + scratch <= most) {
    allow_shared(kernel, bytes + scratch);
    auto const blocks = static_cast<unsigned>(std::min<index_t>(batch.batch, 1 << 30));
    kernel<<<blocks, threads, bytes + scratch, stream>>>(batch, nullptr, size);
    return check_launch("jacobi_memory_kernel");
  }
  index_t const blocks = std::min({batch.batch, std::max<index_t>(k_slice_bytes / bytes, 1),
                                   index_t{2} * device_attribute(cudaDevAttrMultiProcessorCount)});
  buffer<T> const slots(blocks * size, stream);
  kernel<<<static_cast<unsigned>(blocks), threads, scratch, stream>>>(batch, slots.get(), size);
  check_launch("jacobi_memory_kernel");
}

/// One matrix after the other by cuSOLVER: gesvd, whose factors are orthonormal to rounding where
/// those of gesvdj are a hundred times worse, or syevd.
template <spectral Kind, class T>
void run_by_cusolver(jacobi_batch<T> const& batch, bool vectors, cusolver_library& library,
                     int device, cudaStream_t stream) {
  auto const& functions = library.spectral<T>();
  std::unique_lock<std::mutex> lock;
  void* const handle = library.handle(device, stream, lock);
  int const m = batch.first.rows, n = batch.first.cols;
  constexpr bool is_svd = Kind == spectral::svd;
  buffer<T> const work(index_t{m} * n, stream), values(n, stream);
  buffer<T> const u(is_svd ? index_t{m} * n : 0, stream), vt(is_svd ? index_t{n} * n : 0, stream);
  buffer<unsigned long long> const largest(1, stream);
  buffer<int> const status(1, stream);
  auto const done = &cusolver_library::cusolver_check;
  int const job = vectors ? k_vectors : k_no_vectors;
  signed char const letter = vectors ? 'S' : 'N';
  int size = 0;
  if constexpr (is_svd)
    done(functions.gesvd_size(handle, m, n, &size), "gesvd_bufferSize");
  else
    done(functions.syevd_size(handle, job, k_lower, n, work.get(), n, values.get(), &size),
         "syevd_bufferSize");
  buffer<T> const scratch(size, stream);
  for (index_t b = 0; b < batch.batch; ++b) {
    jacobi_task<T> const task = batch.at(b);
    bool const checked = task.check_finite;
    load_columns<!is_svd>(strided_matrix<T const>{task.a, task.row_stride, task.col_stride, m, n},
                          largest.get(), checked, work.get(), stream);
    if constexpr (is_svd)
      done(functions.gesvd(handle, letter, letter, m, n, work.get(), m, values.get(), u.get(), m,
                           vt.get(), n, scratch.get(), size, nullptr, status.get()),
           "gesvd");
    else
      done(functions.syevd(handle, job, k_lower, n, work.get(), n, values.get(), scratch.get(),
                           size, status.get()),
           "syevd");
    store_columns<stored::scaled_back>(values.get(), n, largest.get(), checked,
                                       strided_matrix<T>{task.values, 1, 1, n, 1}, stream);
    if (vectors && is_svd) {
      store_columns<stored::as_is>(u.get(), m, largest.get(), checked,
                                   strided_matrix<T>{task.left, task.left_row, task.left_col, m, n},
                                   stream);
      store_columns<stored::as_is>(
          vt.get(), n, largest.get(), checked,
          strided_matrix<T>{task.right, task.right_col, task.right_row, n, n}, stream);
    } else if (vectors) {
      store_columns<stored::as_is>(
          work.get(), n, largest.get(), checked,
          strided_matrix<T>{task.right, task.right_row, task.right_col, n, n}, stream);
    }
    store_info<T>(largest.get(), checked, status.get(), task.info, stream);
  }
}

/// Up to here no matrix goes to cuSOLVER, and its bits do not depend on the size of its batch.
inline constexpr index_t k_own = 160;

/// A block per matrix leaves most of the device idle when there are few. Measured on an H100, all of
/// it on one matrix at a time is then faster for batches below 0.25 (n / 100)^2 with gesvd and
/// 1.5 (n / 100)^2 with syevd.
template <spectral Kind, class T>
bool try_cusolver(jacobi_batch<T> const& batch, bool vectors, int device, cudaStream_t stream) {
  auto const n = static_cast<double>(batch.first.cols);
  double const few = (Kind == spectral::svd ? 0.25 : 1.5) * n * n / 1e4;
  if (batch.first.cols <= k_own || static_cast<double>(batch.batch) >= few) return false;
  cusolver_library* const library = cusolver_library::get();
  if (library == nullptr) return false;
  run_by_cusolver<Kind>(batch, vectors, *library, device, stream);
  return true;
}

template <spectral Kind, class T, bool Vectors>
void launch_jacobi(jacobi_batch<T> const& batch, cudaStream_t stream) {
  int const rows = batch.first.rows;
  if (rows <= 4) return launch_registers<Kind, T, 4, Vectors>(batch, stream);
  if (rows <= 8) return launch_registers<Kind, T, 8, Vectors>(batch, stream);
  if (rows <= 16) return launch_registers<Kind, T, 16, Vectors>(batch, stream);
  if (rows <= 32) return launch_registers<Kind, T, 32, Vectors>(batch, stream);
  if (rows <= 48) return launch_memory<Kind, T, 8, 6, Vectors>(batch, stream);
  if (rows <= 64) return launch_memory<Kind, T, 8, 8, Vectors>(batch, stream);
  if (rows <= 96) return launch_memory<Kind, T, 8, 12, Vectors>(batch, stream);
  if (rows <= 128) return launch_memory<Kind, T, 8, 16, Vectors>(batch, stream);
  if (rows <= 160) return launch_memory<Kind, T, 16, 10, Vectors>(batch, stream);
  if (rows <= 256) return launch_memory<Kind, T, 16, 16, Vectors>(batch, stream);
  launch_memory<Kind, T, 32, 0, Vectors>(batch, stream);
}

}  // namespace subspan::cuda
