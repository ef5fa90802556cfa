#pragma once

#include <cstddef>

#include "subspan/abi.hpp"
#include "subspan/types.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

/// Source of scratch memory. Both functions null: aligned `operator new`.
/// `allocate` returns null (or throws std::bad_alloc) when it cannot serve.
struct allocator {
  void* (*allocate)(void* user, std::size_t bytes, std::size_t alignment) = nullptr;
  void (*deallocate)(void* user, void* pointer, std::size_t bytes) = nullptr;
  void* user = nullptr;
};

/// Runs `body(data, chunk)` for every chunk in 0..chunks-1, in any order and on any threads, and
/// returns when all are done. Null: the library's own thread pool. `body` does not throw.
struct executor {
  void (*run)(void* user, index_t chunks, void (*body)(void* data, index_t chunk),
              void* data) = nullptr;
  void* user = nullptr;
};

/// First argument of every primitive. Copy it freely; it owns nothing.
struct context {
  int threads = 0;         ///< threads to use; 0: get_num_threads()
  void* stream = nullptr;  ///< CUDA stream to order work on; null: the legacy default stream
  subspan::allocator allocator{};
  subspan::executor executor{};
};

/// Process-wide number of threads: the last set_num_threads, else SUBSPAN_NUM_THREADS, else
/// OMP_NUM_THREADS, else the CPUs that the process may run on.
int get_num_threads();

/// n >= 1, or 0 to return to the default. Throws error{invalid_argument} otherwise.
void set_num_threads(int n);

}  // namespace v0
}  // namespace subspan
