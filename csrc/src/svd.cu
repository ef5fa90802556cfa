// CUDA twin of svd.cpp.

#include "detail/jacobi_launch.cuh"
#include "detail/small_product.hpp"

namespace subspan::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(gpu::small_product<T>::threads)
    small_product_kernel(gpu::small_product<T> const product, index_t jobs) {
  __shared__ T memory[gpu::small_product<T>::shared];
  for (index_t job = blockIdx.x; job < jobs; job += gridDim.x)
    product.run(gpu::device_lanes{}, job, memory);
}

template <class T>
void launch_jacobi(jacobi_batch<T> const& batch, bool vectors, cudaStream_t stream) {
  if (vectors)
    launch_jacobi<spectral::svd, T, true>(batch, stream);
  else
    launch_jacobi<spectral::svd, T, false>(batch, stream);
}

/// Whether a QR comes first: there are fewer rows to rotate then, and the columns of R^T take 7 to 10
/// sweeps where those of an ill-conditioned A can take 40. What fits a warp's registers takes fewer
/// than 30 in any case.
inline bool takes_qr(int rows, int cols) { return rows > 32 || (rows > 8 && 2 * rows > 3 * cols); }

/// A = Q R, R^T = V diag(s) W^T, U = Q W, in slices of the batch that bound the working memory.
template <class T>
void svd_by_qr(jacobi_batch<T> const& all, bool vectors, int device, cudaStream_t stream) {
  jacobi_task<T> const& whole = all.first;
  index_t const m = whole.rows, n = whole.cols;
  index_t const each = ((vectors ? m * n : 0) + 2 * n * n) * static_cast<index_t>(sizeof(T));
  index_t const slice = std::clamp<index_t>(k_slice_bytes / each, 1, all.batch);
  buffer<T> const q(vectors ? slice * m * n : 0, stream), w(vectors ? slice * n * n : 0, stream);
  buffer<T> const r(slice * n * n, stream);
  for (index_t done = 0; done < all.batch; done += slice) {
    jacobi_batch<T> part = all;
    part.batch = std::min(slice, all.batch - done);
    part.first = all.at(done);
    subspan_cuda_decomposition_call const call{
        part.first.a,
        part.batch,
        m,
        n,
        {all.a_step, whole.row_stride, whole.col_stride},
        sizeof(T) == 4 ? subspan_cuda_float : subspan_cuda_double,
        device,
        stream,
        whole.check_finite,
        nullptr,
        q.get(),
        r.get(),
        part.first.info};
    char message[256];
    if (int const status = qr(&call, message, sizeof message); status != subspan_cuda_ok)
      throw failure(static_cast<subspan_cuda_status>(status), message);
    T* const u = part.first.left;
    part.first.a = r.get();  // NaN in a is NaN in R
    part.first.row_stride = 1;
    part.first.col_stride = n;
    part.first.rows = whole.cols;
    part.first.left = part.first.right;
    part.first.left_row = whole.right_row;
    part.first.left_col = whole.right_col;
    part.first.right = w.get();
    part.first.right_row = n;
    part.first.right_col = 1;
    part.a_step = part.right_step = n * n;
    part.left_step = all.right_step;
    launch_jacobi(part, vectors, stream);
    if (!vectors) continue;
    gpu::small_product<T> const product{q.get(),        w.get(),        u,          all.left_step,
                                        whole.left_row, whole.left_col, part.batch, whole.rows,
                                        whole.cols,     whole.cols};
    index_t const jobs = part.batch * product.tiles(whole.rows, whole.cols);
    auto const blocks = static_cast<unsigned>(std::min<index_t>(jobs, 1 << 30));
    small_product_kernel<T><<<blocks, product.threads, 0, stream>>>(product, jobs);
    check_launch("small_product_kernel");
  }
}

template <class T>
void svd_of(subspan_cuda_decomposition_call const& call) {
  index_t const m = call.m, n = call.n, k = std::min(m, n);
  if (call.batch == 0) return;
  device_scope const scope(call.device_index);
  auto const stream = static_cast<cudaStream_t>(call.stream);
  if (k == 0) return clear_info(call);
  // The columns that are rotated are the fewer: those of a, or of its transpose.
  bool const tall = m >= n;
  auto* const u = static_cast<T*>(call.left);
  auto* const vh = static_cast<T*>(call.right);
  jacobi_task<T> task{};
  task.a = static_cast<T const*>(call.a);
  task.row_stride = call.strides[tall ? 1 : 2];
  task.col_stride = call.strides[tall ? 2 : 1];
  task.rows = static_cast<int>(tall ? m : n);
  task.cols = static_cast<int>(k);
  task.values = static_cast<T*>(call.values);
  task.left = tall ? u : vh;
  task.left_row = tall ? k : 1;
  task.left_col = tall ? 1 : n;
  task.right = tall ? vh : u;
  task.right_row = tall ? 1 : k;
  task.right_col = tall ? n : 1;
  task.info = call.info;
  task.check_finite = call.check_finite != 0;
  jacobi_batch<T> const batch{
      task, call.strides[0], k, tall ? m * k : k * n, tall ? k * n : m * k, call.batch};
  bool const vectors = u != nullptr;
  if (try_cusolver<spectral::svd>(batch, vectors, call.device_index, stream)) return;
  if (takes_qr(task.rows, task.cols))
    svd_by_qr(batch, vectors, call.device_index, stream);
  else
    launch_jacobi(batch, vectors, stream);
}

}  // namespace

int svd(subspan_cuda_decomposition_call const* call, char* message, int size) {
  return guarded_real(call, message, size, [&](auto tag) { svd_of<decltype(tag)>(*call); });
}

}  // namespace subspan::cuda
