#include "detail/parallel.hpp"

#include <atomic>
#include <charconv>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

#include "detail/contract.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {
namespace {

std::atomic<int> g_threads{0};

int positive_from_environment(char const* name) {
  char const* text = std::getenv(name);
  if (text == nullptr) return 0;
  int value = 0;
  auto const [end, failure] = std::from_chars(text, text + std::strlen(text), value);
  // OMP_NUM_THREADS may be a list, one number per nesting level; the first counts.
  bool const whole = failure == std::errc{} && (*end == '\0' || *end == ',');
  return whole && value > 0 ? value : 0;
}

int default_threads() {
  for (char const* name : {"SUBSPAN_NUM_THREADS", "OMP_NUM_THREADS"})
    if (int const n = positive_from_environment(name); n > 0) return n;
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

int get_num_threads() {
  int const n = g_threads.load(std::memory_order_relaxed);
  static int const fallback = default_threads();
  return n > 0 ? n : fallback;
}

void set_num_threads(int n) {
  detail::expects(n >= 0 && n <= 1024, "set_num_threads",
                  "n must be in 1..1024, or 0 for the default, got ", n);
  g_threads.store(n, std::memory_order_relaxed);
}

}  // namespace v0

namespace detail {
namespace {

thread_local bool t_inside = false;  // this thread runs a chunk: nested calls stay on it

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct job {
  void (*body)(void*, index_t);
  void* data;
  index_t chunks;
  std::atomic<index_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error{};

  /// Takes and runs one chunk; false when there is none left.
  bool step() noexcept {
    index_t const chunk = next.fetch_add(1, std::memory_order_relaxed);
    if (chunk >= chunks || failed.load(std::memory_order_relaxed)) return false;
    try {
      body(data, chunk);
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
    return true;
  }

  void work() noexcept {
    bool const outer = std::exchange(t_inside, true);
    while (step()) {
    }
    t_inside = outer;
  }
};

/// Workers sleep on a condition variable after a short spin, so that the many short parallel
/// sections of one primitive follow each other without a system call.
class pool {
 public:
  std::mutex caller;  // one job at a time; who does not get it runs serially

  void run(job& work, int threads) {
    while (static_cast<int>(workers_.size()) < threads - 1) {
      int const rank = static_cast<int>(workers_.size());
      try {
        // A worker born now must not take the generation that is already over for news.
        workers_.emplace_back(&pool::loop, this, rank, generation_.load());
      } catch (std::system_error const&) {
        threads = rank + 1;  // the system gives no more threads: go on with those there are
      }
    }
    {
      std::lock_guard lock(mutex_);
      job_ = &work;
      wanted_ = threads - 1;
      active_.store(threads - 1, std::memory_order_relaxed);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    work.work();
    for (int spin = 0; active_.load(std::memory_order_acquire) != 0; ++spin)
      spin < k_spins ? relax() : std::this_thread::yield();
  }

 private:
  static constexpr int k_spins = 20000;

  void loop(int rank, unsigned seen) {
    for (;;) {
      for (int spin = 0; spin < k_spins && generation_.load(std::memory_order_acquire) == seen;
           ++spin)
        relax();
      job* work = nullptr;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load() != seen; });
        seen = generation_.load();
        if (rank < wanted_) work = job_;
      }
      if (work == nullptr) continue;
      work->work();
      active_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  job* job_ = nullptr;
  int wanted_ = 0;
  std::atomic<int> active_{0};
  std::atomic<unsigned> generation_{0};
};

// Never destroyed: workers may sleep in it while static destructors run. After fork the child has
// none of the parent's workers and perhaps a locked mutex, so it starts with a pool of its own.
pool* g_pool = new pool;
#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] int const g_fork_handler = pthread_atfork(nullptr, nullptr, [] {
  g_pool = new pool;
  t_inside = false;
});
#endif

}  // namespace

int thread_count(context const& ctx) { return ctx.threads > 0 ? ctx.threads : get_num_threads(); }

void run_chunks(context const& ctx, index_t chunks, void (*body)(void*, index_t), void* data) {
  if (chunks <= 0) return;
  job work{body, data, chunks};
  if (ctx.executor.run != nullptr) {
    ctx.executor.run(
        ctx.executor.user, chunks, [](void* self, index_t) { static_cast<job*>(self)->step(); },
        &work);
  } else {
    int const threads = static_cast<int>(std::min<index_t>(thread_count(ctx), chunks));
    if (threads <= 1 || t_inside) {
      work.work();
    } else if (std::unique_lock lock(g_pool->caller, std::try_to_lock); lock.owns_lock()) {
      g_pool->run(work, threads);
    } else {
      work.work();
    }
  }
  if (work.error) std::rethrow_exception(work.error);
}

}  // namespace detail
}  // namespace subspan
