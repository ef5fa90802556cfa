#include "detail/parallel.hpp"

#include <atomic>
#include <chrono>
#include <cstring>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#if defined(__unix__)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "check.hpp"
#include "detail/contract.hpp"

using subspan::context;
using subspan::index_t;
using subspan::detail::parallel_for;

namespace {

context with_threads(int n) {
  context ctx;
  ctx.threads = n;
  return ctx;
}

/// Sums in chunk order: the pattern that every primitive follows.
double ordered_sum(context const& ctx, index_t n, index_t grain) {
  std::vector<double> partial(static_cast<std::size_t>((n + grain - 1) / grain));
  parallel_for(ctx, n, grain, [&](index_t begin, index_t end) {
    double sum = 0;
    for (index_t i = begin; i < end; ++i) sum += 1.0 / static_cast<double>(i + 1);
    partial[static_cast<std::size_t>(begin / grain)] = sum;
  });
  double total = 0;
  for (double p : partial) total += p;
  return total;
}

}  // namespace

TEST(chunk_borders_depend_on_n_and_grain_only) {
  for (index_t n : {0, 1, 2, 7, 8, 9, 1000})
    for (index_t grain : {-5, 0, 1, 3, 8, 5000}) {
      index_t const step = std::max<index_t>(grain, 1);
      std::multiset<std::pair<index_t, index_t>> wanted;
      for (index_t begin = 0; begin < n; begin += step)
        wanted.insert({begin, std::min(begin + step, n)});
      for (int threads : {1, 2, 5}) {
        std::mutex mutex;
        std::multiset<std::pair<index_t, index_t>> seen;
        parallel_for(with_threads(threads), n, grain, [&](index_t begin, index_t end) {
          std::lock_guard const lock(mutex);
          seen.insert({begin, end});
        });
        CHECK(seen == wanted);
      }
    }
  parallel_for(with_threads(2), -3, 1, [&](index_t, index_t) { CHECK(false); });
}

TEST(same_sum_for_one_to_eight_threads) {
  double const wanted = ordered_sum(with_threads(1), 100003, 17);
  for (int threads = 1; threads <= 8; ++threads)
    for (int repeat = 0; repeat < 20; ++repeat)
      CHECK_EQUAL(ordered_sum(with_threads(threads), 100003, 17), wanted);
}

TEST(several_threads_take_part) {
  std::mutex mutex;
  std::set<std::thread::id> seen;
  parallel_for(with_threads(3), 3, 1, [&](index_t, index_t) {
    {
      std::lock_guard const lock(mutex);
      seen.insert(std::this_thread::get_id());
    }
    // Long enough that nobody takes two chunks while another has none.
    auto const limit = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    while (std::chrono::steady_clock::now() < limit) {
      std::lock_guard const lock(mutex);
      if (seen.size() == 3) break;
    }
  });
  CHECK_EQUAL(seen.size(), 3u);
}

TEST(one_exception_comes_out_and_the_pool_goes_on) {
  for (int threads : {1, 2, 4})
    for (int repeat = 0; repeat < 50; ++repeat) {
      std::atomic<int> calls{0};
      try {
        parallel_for(with_threads(threads), 100, 1, [&](index_t begin, index_t) {
          ++calls;
          if (begin % 10 == 3) throw std::runtime_error("chunk");
        });
        CHECK(false);
      } catch (std::runtime_error const& error) {
        CHECK(std::strcmp(error.what(), "chunk") == 0);
      }
      CHECK(calls >= 4 && calls <= 100);
      CHECK_EQUAL(ordered_sum(with_threads(threads), 1000, 7),
                  ordered_sum(with_threads(1), 1000, 7));
    }
}

TEST(the_error_keeps_its_kind) {
  CHECK_THROWS(out_of_memory, "[here] no memory",
               parallel_for(with_threads(4), 8, 1, [](index_t, index_t) {
                 subspan::detail::fail(subspan::error_kind::out_of_memory, "here", "no memory");
               }));
}

TEST(nested_calls_stay_on_their_thread) {
  std::atomic<int> moved{0}, calls{0};
  parallel_for(with_threads(4), 16, 1, [&](index_t, index_t) {
    auto const here = std::this_thread::get_id();
    parallel_for(with_threads(4), 32, 1, [&](index_t, index_t) {
      ++calls;
      moved += std::this_thread::get_id() != here;
    });
  });
  CHECK_EQUAL(calls.load(), 16 * 32);
  CHECK_EQUAL(moved.load(), 0);
}

TEST(a_nested_exception_comes_out_of_both) {
  CHECK_THROWS(internal, "inner", parallel_for(with_threads(3), 6, 1, [](index_t, index_t) {
                 parallel_for(with_threads(3), 6, 1, [](index_t, index_t) {
                   subspan::detail::fail(subspan::error_kind::internal, "inner", "failed");
                 });
               }));
}

TEST(callers_on_several_threads) {
  double const wanted = ordered_sum(with_threads(1), 20011, 13);
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 6; ++c)
    callers.emplace_back([&, c] {
      for (int repeat = 0; repeat < 50; ++repeat)
        wrong += ordered_sum(with_threads(1 + c % 4), 20011, 13) != wanted;
    });
  for (auto& caller : callers) caller.join();
  CHECK_EQUAL(wrong.load(), 0);
}

TEST(an_executor_replaces_the_pool) {
  struct record {
    index_t runs = 0, chunks = 0;
  } seen;
  context ctx = with_threads(8);
  ctx.executor.user = &seen;
  // Backwards and on threads of its own: any order and any thread are allowed.
  ctx.executor.run = [](void* user, index_t chunks, void (*body)(void*, index_t), void* data) {
    auto& self = *static_cast<record*>(user);
    ++self.runs;
    self.chunks += chunks;
    std::thread other([&] {
      for (index_t c = chunks - 1; c >= chunks / 2; --c) body(data, c);
    });
    for (index_t c = 0; c < chunks / 2; ++c) body(data, c);
    other.join();
  };
  CHECK_EQUAL(ordered_sum(ctx, 1000, 10), ordered_sum(with_threads(1), 1000, 10));
  CHECK_EQUAL(seen.runs, 1);
  CHECK_EQUAL(seen.chunks, 100);
  CHECK_THROWS(internal, "thrown", parallel_for(ctx, 10, 1, [](index_t, index_t) {
                 subspan::detail::fail(subspan::error_kind::internal, "executor", "thrown");
               }));
  CHECK_EQUAL(ordered_sum(ctx, 1000, 10), ordered_sum(with_threads(1), 1000, 10));
}

TEST(set_num_threads_is_checked_and_undone_by_zero) {
  int const before = subspan::get_num_threads();
  subspan::set_num_threads(3);
  CHECK_EQUAL(subspan::get_num_threads(), 3);
  CHECK_EQUAL(subspan::detail::thread_count(context{}), 3);
  CHECK_EQUAL(subspan::detail::thread_count(with_threads(2)), 2);
  CHECK_THROWS(invalid_argument, "[set_num_threads] n must be in 1..1024",
               subspan::set_num_threads(-1));
  CHECK_THROWS(invalid_argument, "got 1025", subspan::set_num_threads(1025));
  CHECK_EQUAL(subspan::get_num_threads(), 3);
  subspan::set_num_threads(0);
  CHECK_EQUAL(subspan::get_num_threads(), before);
}

#if defined(__unix__)
TEST(a_forked_child_has_a_pool_of_its_own) {
#if defined(__SANITIZE_THREAD__)
  std::printf("     left out: the thread sanitizer does not follow a fork\n");
#else
  double const wanted = ordered_sum(with_threads(4), 10007, 11);
  for (int repeat = 0; repeat < 5; ++repeat) {
    pid_t const child = fork();
    if (child == 0) {
      alarm(60);  // a child that hangs must not outlive the test
      bool fine = true;
      for (int i = 0; i < 20; ++i) fine &= ordered_sum(with_threads(4), 10007, 11) == wanted;
      _exit(fine ? 0 : 1);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK_EQUAL(ordered_sum(with_threads(4), 10007, 11), wanted);
  }
#endif
}
#endif

/// Without arguments all tests; `--threads n` checks what the environment asked for.
int main(int argc, char** argv) {
  if (argc < 3) return check::run_all();
  int const threads = subspan::get_num_threads();
  if (std::strcmp(argv[2], "default") == 0) return threads >= 1 && threads <= 4096 ? 0 : 1;
  return threads == std::atoi(argv[2]) ? 0 : 1;
}
