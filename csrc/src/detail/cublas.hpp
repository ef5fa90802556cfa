#pragma once

#include <library_types.h>

#include "detail/vendor_library.hpp"

/// Products of matrices by cuBLAS; see vendor_library.

namespace subspan::cuda {

class cublas_library {
 public:
  /// Null where there is none.
  static cublas_library* get() {
    static cublas_library library;
    return library.complete_ ? &library : nullptr;
  }

  void* handle(int device, cudaStream_t stream, std::unique_lock<std::mutex>& lock) {
    return library_.handle(device, stream, lock, create_, set_stream_, &cublas_check);
  }

  /// A matrix in column order, or its transpose.
  struct operand {
    void const* data;
    int ld;
    bool transposed;
  };

  /// c [m, n] = a [m, depth] b [depth, n], all in column order; elements of a and b are of `type`,
  /// those of c, and sums, float (double for double).
  void multiply(void* handle, int m, int n, int depth, operand const& a, operand const& b,
                cudaDataType_t type, void* c, int ldc) const {
    constexpr int compute_float = 68, compute_double = 70;  // cublasComputeType_t
    constexpr int any_algorithm = -1;
    constexpr double one = 1, zero = 0;
    constexpr float one_float = 1, zero_float = 0;
    bool const wide = type == CUDA_R_64F;
    cublas_check(gemm_(handle, a.transposed, b.transposed, m, n, depth,
                       wide ? static_cast<void const*>(&one) : &one_float, a.data, type, a.ld,
                       b.data, type, b.ld, wide ? static_cast<void const*>(&zero) : &zero_float, c,
                       wide ? CUDA_R_64F : CUDA_R_32F, ldc, wide ? compute_double : compute_float,
                       any_algorithm),
                 "product");
  }

 private:
  cublas_library() : library_({"libcublas.so.13", "libcublas.so.12"}) {
    complete_ = library_.find(create_, "cublasCreate_v2") &&
                library_.find(set_stream_, "cublasSetStream_v2") &&
                library_.find(gemm_, "cublasGemmEx");
  }

  static void cublas_check(int status, char const* what) {
    if (status == 0) return;
    bool const memory = status == 3;  // CUBLAS_STATUS_ALLOC_FAILED
    throw failure(memory ? subspan_cuda_no_memory : subspan_cuda_failed,
                  std::string(what) + ": cuBLAS status " + std::to_string(status));
  }

  vendor_library library_;
  bool complete_ = false;
  int (*create_)(void**) = nullptr;
  int (*set_stream_)(void*, cudaStream_t) = nullptr;
  int (*gemm_)(void*, int op_a, int op_b, int m, int n, int k, void const* alpha, void const* a,
               cudaDataType_t, int lda, void const* b, cudaDataType_t, int ldb, void const* beta,
               void* c, cudaDataType_t, int ldc, int compute, int algorithm) = nullptr;
};

}  // namespace subspan::cuda
