#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "detail/cuda_table.hpp"

/// What the sources of libsubspan_cuda share: errors, the current device, scratch.

namespace subspan::cuda {

using index_t = std::int64_t;

class failure : public std::runtime_error {
 public:
  failure(subspan_cuda_status status, std::string const& what)
      : std::runtime_error(what), status_(status) {}
  subspan_cuda_status status() const noexcept { return status_; }

 private:
  subspan_cuda_status status_;
};

inline void check(cudaError_t status, char const* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // what is not sticky must not show up in the caller's next check
  throw failure(subspan_cuda_failed, std::string(what) + ": " + cudaGetErrorString(status));
}

/// Right after a launch.
inline void check_launch(char const* kernel) { check(cudaGetLastError(), kernel); }

/// Makes the array's device current and puts the caller's back.
class device_scope {
 public:
  explicit device_scope(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~device_scope() { cudaSetDevice(previous_); }
  device_scope(device_scope const&) = delete;
  device_scope& operator=(device_scope const&) = delete;

 private:
  int previous_ = 0;
};

inline int device_attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

/// The current device's pool of scratch. It keeps up to 256 MiB between calls: the default pool
/// gives everything back to the driver at each synchronisation, which takes milliseconds.
inline cudaMemPool_t scratch_pool() {
  static std::mutex mutex;
  static std::map<int, cudaMemPool_t> pools;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  std::lock_guard const lock(mutex);
  cudaMemPool_t& pool = pools[device];
  if (pool == nullptr) {
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    check(cudaMemPoolCreate(&pool, &properties), "cudaMemPoolCreate");
    std::uint64_t kept = std::uint64_t{256} << 20;
    check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept),
          "cudaMemPoolSetAttribute");
  }
  return pool;
}

/// Stream-ordered scratch on the device.
template <class T>
class buffer {
 public:
  buffer(index_t count, cudaStream_t stream) : stream_(stream) {
    auto const bytes = static_cast<std::size_t>(count) * sizeof(T);
    if (bytes == 0) return;
    cudaError_t const status =
        cudaMallocFromPoolAsync(reinterpret_cast<void**>(&pointer_), bytes, scratch_pool(), stream);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw failure(subspan_cuda_no_memory,
                    "no " + std::to_string(bytes) + " bytes of scratch left on the device");
    }
    check(status, "cudaMallocFromPoolAsync");
  }
  ~buffer() {
    if (pointer_ != nullptr) cudaFreeAsync(pointer_, stream_);
  }
  buffer(buffer const&) = delete;
  buffer& operator=(buffer const&) = delete;
  T* get() const { return pointer_; }

 private:
  T* pointer_ = nullptr;
  cudaStream_t stream_;
};

/// Page-locked host memory, which copies from the device reach several times faster than other
/// memory; it is kept for the next call. data() is null where another thread has it, where more than
/// 64 MiB are asked for, or where there is none.
class landing {
 public:
  explicit landing(std::size_t bytes) : lock_(shared().mutex, std::try_to_lock) {
    if (!lock_ || bytes > std::size_t{64} << 20) return;
    auto& [mutex, data, size] = shared();
    if (size < bytes) {
      if (data != nullptr) cudaFreeHost(data);
      size = cudaMallocHost(&data, bytes) == cudaSuccess ? bytes : 0;
      if (size == 0) data = nullptr;
      cudaGetLastError();
    }
    data_ = data;
  }
  void* data() const { return data_; }

 private:
  struct memory {
    std::mutex mutex;
    void* data = nullptr;
    std::size_t size = 0;
  };
  static memory& shared() {
    static memory one;
    return one;
  }

  std::unique_lock<std::mutex> lock_;
  void* data_ = nullptr;
};

/// Working memory that a batch is cut into slices for.
inline constexpr index_t k_slice_bytes = index_t{1} << 30;

/// The status of matrices without elements.
inline void clear_info(subspan_cuda_decomposition_call const& call) {
  check(cudaMemsetAsync(call.info, 0, static_cast<std::size_t>(call.batch) * sizeof(std::int32_t),
                        static_cast<cudaStream_t>(call.stream)),
        "cudaMemsetAsync");
}

/// Lets a kernel use that much shared memory per block.
template <class Kernel>
void allow_shared(Kernel kernel, std::size_t bytes) {
  if (bytes > (48u << 10))
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)),
          "cudaFuncSetAttribute");
}

/// An entry of the table: runs `body`, turns what it throws into a status and a text.
template <class Body>
int guarded(char* message, int size, Body&& body) {
  try {
    body();
    return subspan_cuda_ok;
  } catch (failure const& error) {
    std::snprintf(message, static_cast<std::size_t>(size), "%s", error.what());
    return error.status();
  } catch (std::exception const& error) {
    std::snprintf(message, static_cast<std::size_t>(size), "%s", error.what());
    return subspan_cuda_failed;
  }
}

/// The same for decompositions: body(T{}) for float or double.
template <class Body>
int guarded_real(subspan_cuda_decomposition_call const* call, char* message, int size,
                 Body&& body) {
  return guarded(message, size, [&] {
    if (call->dtype == subspan_cuda_float)
      body(float{});
    else
      body(double{});
  });
}

/// One per stem, in its .cu.
int moments(subspan_cuda_moments_call const* call, char* message, int size);
int svd(subspan_cuda_decomposition_call const* call, char* message, int size);
int eigh(subspan_cuda_decomposition_call const* call, char* message, int size);
int qr(subspan_cuda_decomposition_call const* call, char* message, int size);
int topk(subspan_cuda_topk_call const* call, char* message, int size);
int kernel_sums(subspan_cuda_kernel_call const* call, char* message, int size);
int decode(subspan_cuda_decode_call const* call, char* message, int size);
int decode_gradients(subspan_cuda_decode_gradients_call const* call, char* message, int size);
int encode(subspan_cuda_encode_call const* call, char* message, int size);
int encode_gradients(subspan_cuda_encode_gradients_call const* call, char* message, int size);
int adam(subspan_cuda_adam_call const* call, char* message, int size);

}  // namespace subspan::cuda
