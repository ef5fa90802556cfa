#include "detail/blas.hpp"

#include <algorithm>
#include <mutex>
#include <shared_mutex>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

// Present in OpenBLAS only; a weak reference is null with any other BLAS, which then keeps its own
// threading and must be told by its own means (MKL_NUM_THREADS ...).
#define SUBSPAN_OPENBLAS(name) SUBSPAN_JOIN(SUBSPAN_BLAS_PREFIX, openblas_##name)
extern "C" {
__attribute__((weak)) void SUBSPAN_OPENBLAS(set_num_threads)(int);
__attribute__((weak)) char* SUBSPAN_OPENBLAS(get_config)();
}

namespace subspan::detail {
namespace {

// Shared by one-thread calls, exclusive for a call that raises the threads. Replaced in a forked
// child, where its holder may not exist any more; the old one is abandoned on purpose.
std::shared_mutex* g_blas = new std::shared_mutex;
#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] int const g_fork_handler =
    pthread_atfork(nullptr, nullptr, [] { g_blas = new std::shared_mutex; });
#endif

void set_threads(int n) {
  if (SUBSPAN_OPENBLAS(set_num_threads) != nullptr) SUBSPAN_OPENBLAS(set_num_threads)(n);
}

}  // namespace

char const* blas_name() noexcept {
  return SUBSPAN_OPENBLAS(get_config) != nullptr ? SUBSPAN_OPENBLAS(get_config)() : "system LAPACK";
}

blas_scope::blas_scope(int threads) : raised_(threads > 1) {
  static std::once_flag pinned;
  std::call_once(pinned, [] { set_threads(1); });
  if (!raised_) {
    g_blas->lock_shared();
    return;
  }
  g_blas->lock();
  // More threads than CPUs make OpenBLAS slower by orders of magnitude: its workers spin.
  set_threads(
      std::min(threads, std::max(1, static_cast<int>(std::thread::hardware_concurrency()))));
}

blas_scope::~blas_scope() {
  if (!raised_) {
    g_blas->unlock_shared();
    return;
  }
  set_threads(1);
  g_blas->unlock();
}

}  // namespace subspan::detail
