// CUDA twin of eigh.cpp.

#include "detail/jacobi_launch.cuh"

namespace subspan::cuda {
namespace {

template <class T>
void eigh_of(subspan_cuda_decomposition_call const& call) {
  index_t const n = call.n;
  if (call.batch == 0) return;
  device_scope const scope(call.device_index);
  auto const stream = static_cast<cudaStream_t>(call.stream);
  if (n == 0) return clear_info(call);
  jacobi_task<T> task{};
  task.a = static_cast<T const*>(call.a);
  task.row_stride = call.strides[1];
  task.col_stride = call.strides[2];
  task.rows = task.cols = static_cast<int>(n);
  task.values = static_cast<T*>(call.values);
  task.right = static_cast<T*>(call.left);
  task.right_row = n;
  task.right_col = 1;
  task.info = call.info;
  task.check_finite = call.check_finite != 0;
  jacobi_batch<T> const batch{task, call.strides[0], n, 0, n * n, call.batch};
  if (try_cusolver<spectral::eigh>(batch, task.right != nullptr, call.device_index, stream)) return;
  if (task.right != nullptr)
    launch_jacobi<spectral::eigh, T, true>(batch, stream);
  else
    launch_jacobi<spectral::eigh, T, false>(batch, stream);
}

}  // namespace

int eigh(subspan_cuda_decomposition_call const* call, char* message, int size) {
  return guarded_real(call, message, size, [&](auto tag) { eigh_of<decltype(tag)>(*call); });
}

}  // namespace subspan::cuda
