#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <initializer_list>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "detail/cuda_support.cuh"

/// A library of the vendor that is opened at run time and declared by hand: nothing here needs it to
/// build or to be imported.

namespace subspan::cuda {

class vendor_library {
 public:
  /// What the process has loaded comes first: it fits the other CUDA libraries there.
  explicit vendor_library(std::initializer_list<char const*> names) {
    for (int const flags : {RTLD_NOW | RTLD_NOLOAD, RTLD_NOW})
      for (char const* const name : names)
        if (library_ == nullptr) library_ = dlopen(name, flags);
  }

  template <class F>
  bool find(F& function, std::string const& name) {
    if (library_ == nullptr) return false;
    function = reinterpret_cast<F>(dlsym(library_, name.c_str()));
    return function != nullptr;
  }

  /// A handle that works on a stream: created once per device and stream, and kept, because creation
  /// waits for the device, and what works for two streams at once must not share a handle. The lock
  /// is for the handle's user. check(status, what) throws where a status is not 0.
  template <class Create, class SetStream, class Check>
  void* handle(int device, cudaStream_t stream, std::unique_lock<std::mutex>& lock, Create create,
               SetStream set_stream, Check check) {
    lock = std::unique_lock(mutex_);
    void*& handle = handles_[{device, stream}];
    if (handle == nullptr) check(create(&handle), "creation");
    check(set_stream(handle, stream), "choice of a stream");
    return handle;
  }

 private:
  void* library_ = nullptr;
  std::mutex mutex_;
  std::map<std::pair<int, cudaStream_t>, void*> handles_;
};

}  // namespace subspan::cuda
