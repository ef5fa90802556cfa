#pragma once

#include "detail/vendor_library.hpp"

/// cuSOLVER for the few large matrices that a block each does not serve well; see vendor_library.

namespace subspan::cuda {

/// Arguments of cuSOLVER's enumerations.
inline constexpr int k_no_vectors = 0, k_vectors = 1;  // cusolverEigMode_t
inline constexpr int k_lower = 0;                      // cublasFillMode_t

template <class T>
struct cusolver_qr {
  int (*geqrf_size)(void*, int m, int n, T* a, int lda, int* size);
  int (*geqrf)(void*, int m, int n, T* a, int lda, T* tau, T* work, int size, int* info);
  int (*orgqr_size)(void*, int m, int n, int k, T const* a, int lda, T const* tau, int* size);
  int (*orgqr)(void*, int m, int n, int k, T* a, int lda, T const* tau, T* work, int size,
               int* info);
};

template <class T>
struct cusolver_spectral {
  int (*gesvd_size)(void*, int m, int n, int* size);  // m >= n
  int (*gesvd)(void*, signed char job_u, signed char job_vt, int m, int n, T* a, int lda, T* s,
               T* u, int ldu, T* vt, int ldvt, T* work, int size, T* superdiagonal, int* info);
  int (*syevd_size)(void*, int job, int uplo, int n, T const* a, int lda, T const* w, int* size);
  int (*syevd)(void*, int job, int uplo, int n, T* a, int lda, T* w, T* work, int size, int* info);
};

class cusolver_library {
 public:
  /// Null where there is none.
  static cusolver_library* get() {
    static cusolver_library library;
    return library.complete_ ? &library : nullptr;
  }

  template <class T>
  cusolver_qr<T> const& qr() const {
    if constexpr (sizeof(T) == 4)
      return qr_float_;
    else
      return qr_double_;
  }

  template <class T>
  cusolver_spectral<T> const& spectral() const {
    if constexpr (sizeof(T) == 4)
      return spectral_float_;
    else
      return spectral_double_;
  }

  void* handle(int device, cudaStream_t stream, std::unique_lock<std::mutex>& lock) {
    return library_.handle(device, stream, lock, create_, set_stream_, &cusolver_check);
  }

  static void cusolver_check(int status, char const* what) {
    if (status == 0) return;
    bool const memory = status == 2;  // CUSOLVER_STATUS_ALLOC_FAILED
    throw failure(memory ? subspan_cuda_no_memory : subspan_cuda_failed,
                  std::string(what) + ": cuSOLVER status " + std::to_string(status));
  }

 private:
  cusolver_library() : library_({"libcusolver.so.12", "libcusolver.so.11"}) {
    complete_ = find(create_, "cusolverDnCreate") && find(set_stream_, "cusolverDnSetStream") &&
                find_qr(qr_float_, "S") && find_qr(qr_double_, "D") &&
                find_spectral(spectral_float_, "S") && find_spectral(spectral_double_, "D");
  }

  template <class F>
  bool find(F& function, std::string const& name) {
    return library_.find(function, name);
  }

  template <class T>
  bool find_qr(cusolver_qr<T>& functions, std::string const& letter) {
    std::string const prefix = "cusolverDn" + letter;
    return find(functions.geqrf_size, prefix + "geqrf_bufferSize") &&
           find(functions.geqrf, prefix + "geqrf") &&
           find(functions.orgqr_size, prefix + "orgqr_bufferSize") &&
           find(functions.orgqr, prefix + "orgqr");
  }

  template <class T>
  bool find_spectral(cusolver_spectral<T>& functions, std::string const& letter) {
    std::string const prefix = "cusolverDn" + letter;
    return find(functions.gesvd_size, prefix + "gesvd_bufferSize") &&
           find(functions.gesvd, prefix + "gesvd") &&
           find(functions.syevd_size, prefix + "syevd_bufferSize") &&
           find(functions.syevd, prefix + "syevd");
  }

  vendor_library library_;
  bool complete_ = false;
  int (*create_)(void**) = nullptr;
  int (*set_stream_)(void*, cudaStream_t) = nullptr;
  cusolver_qr<float> qr_float_{};
  cusolver_qr<double> qr_double_{};
  cusolver_spectral<float> spectral_float_{};
  cusolver_spectral<double> spectral_double_{};
};

}  // namespace subspan::cuda
