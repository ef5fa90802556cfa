#include "detail/workspace.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "check.hpp"
#include "subspan/subspan.hpp"

using namespace subspan;

namespace {

/// Counts what is held, and fails at the chosen allocation.
struct counting {
  std::atomic<long> calls{0}, live{0}, bytes{0}, peak{0}, misaligned{0};
  long fail_at = -1;
  bool by_throwing = false;

  static void* allocate(void* user, std::size_t size, std::size_t alignment) {
    auto& self = *static_cast<counting*>(user);
    if (self.calls++ == self.fail_at) {
      if (self.by_throwing) throw std::bad_alloc();
      return nullptr;
    }
    void* const pointer = ::operator new(size, std::align_val_t{alignment});
    self.misaligned += reinterpret_cast<std::uintptr_t>(pointer) % detail::k_alignment != 0;
    // Whoever reads scratch before writing it gets NaN.
    std::memset(pointer, 0xff, size);
    ++self.live;
    long const now = self.bytes += static_cast<long>(size);
    long before = self.peak;
    while (before < now && !self.peak.compare_exchange_weak(before, now)) {
    }
    return pointer;
  }
  static void deallocate(void* user, void* pointer, std::size_t size) {
    auto& self = *static_cast<counting*>(user);
    --self.live;
    self.bytes -= static_cast<long>(size);
    ::operator delete(pointer, std::align_val_t{detail::k_alignment});
  }
  context ctx(int threads) {
    context out;
    out.threads = threads;
    out.allocator = {&allocate, &deallocate, this};
    return out;
  }
};

template <class T>
std::vector<T> numbers(index_t n, std::uint64_t seed) {
  std::vector<T> out(static_cast<std::size_t>(n));
  fill_normal<T>(context{}, make_view<1>(out.data(), {n}), seed, 0);
  return out;
}

/// Everything that a call may change, to compare bits afterwards.
struct state {
  index_t d;
  index_t count = 0;
  double weight = 0, square = 0;
  std::vector<double> mean, m2;
  explicit state(index_t d) : d(d), mean(d), m2(d * d) {}
  moments_view view() {
    return {&count, &weight, &square, make_view<1>(mean.data(), {d}),
            make_view<2>(m2.data(), {d, d})};
  }
  bool operator==(state const& o) const {
    return count == o.count && weight == o.weight && square == o.square && mean == o.mean &&
           m2 == o.m2;
  }
};

constexpr index_t k_batch = 7, k_m = 12, k_n = 9;

void run_svd(context const& ctx, std::vector<double> const& a) {
  std::vector<double> s(k_batch * k_n), u(k_batch * k_m * k_n), vh(k_batch * k_n * k_n);
  std::vector<std::int32_t> info(k_batch);
  svd<double>(ctx, make_view<3>(a.data(), {k_batch, k_m, k_n}),
              make_view<2>(s.data(), {k_batch, k_n}), make_view<3>(u.data(), {k_batch, k_m, k_n}),
              make_view<3>(vh.data(), {k_batch, k_n, k_n}), make_view<1>(info.data(), {k_batch}));
  double sum = 0;
  for (double v : s) sum += v;
  CHECK(sum > 0 && std::isfinite(sum));
}

void run_eigh(context const& ctx, std::vector<double> const& a) {
  std::vector<double> w(k_batch * k_n), v(k_batch * k_n * k_n);
  std::vector<std::int32_t> info(k_batch);
  eigh<double>(ctx, make_view<3>(a.data(), {k_batch, k_n, k_n}),
               make_view<2>(w.data(), {k_batch, k_n}), make_view<3>(v.data(), {k_batch, k_n, k_n}),
               make_view<1>(info.data(), {k_batch}));
  for (double each : w) CHECK(std::isfinite(each));
}

void run_qr(context const& ctx, std::vector<double> const& a) {
  std::vector<double> q(k_batch * k_m * k_n), r(k_batch * k_n * k_n);
  std::vector<std::int32_t> info(k_batch);
  qr<double>(ctx, make_view<3>(a.data(), {k_batch, k_m, k_n}),
             make_view<3>(q.data(), {k_batch, k_m, k_n}),
             make_view<3>(r.data(), {k_batch, k_n, k_n}), make_view<1>(info.data(), {k_batch}));
  for (double each : r) CHECK(std::isfinite(each));
}

void run_axes(context const& ctx, std::vector<double> const& m2, index_t d) {
  std::vector<double> components(3 * d), variances(3);
  principal_axes(ctx, make_view<2>(m2.data(), {d, d}), 10.0,
                 make_view<2>(components.data(), {3, d}), make_view<1>(variances.data(), {3}));
  CHECK(variances[0] >= variances[1] && variances[1] >= variances[2]);
}

/// The call succeeds and frees all; then each of its allocations fails once: out_of_memory comes
/// out, nothing is held, and `untouched` holds.
template <class Call, class Untouched>
void with_failing_memory(Call&& call, Untouched&& untouched) {
  for (int threads : {1, 3}) {
    counting memory;
    call(memory.ctx(threads));
    CHECK_EQUAL(memory.live.load(), 0);
    CHECK_EQUAL(memory.bytes.load(), 0);
    CHECK_EQUAL(memory.misaligned.load(), 0);
    CHECK(memory.calls > 0);
    for (long fail_at = 0; fail_at < memory.calls; ++fail_at) {
      counting failing;
      failing.fail_at = fail_at;
      failing.by_throwing = fail_at % 2 == 1;
      bool thrown = false;
      try {
        call(failing.ctx(threads));
      } catch (error const& e) {
        thrown = e.kind() == error_kind::out_of_memory;
      }
      // With several threads the number of allocations may depend on their timing.
      CHECK(thrown || failing.calls <= fail_at);
      CHECK_EQUAL(failing.live.load(), 0);
      if (thrown) CHECK(untouched());
    }
  }
}

bool always() { return true; }

}  // namespace

TEST(workspace_is_aligned_and_freed) {
  for (index_t n : {0, 1, 63, 64, 65, 1 << 20}) {
    detail::workspace<double> const own(context{}, n);
    CHECK(reinterpret_cast<std::uintptr_t>(own.data()) % detail::k_alignment == 0);
    CHECK((own.data() == nullptr) == (n == 0));
    if (n > 0) own[n - 1] = 1;
  }
  counting memory;
  {
    detail::workspace<float> const a(memory.ctx(1), 100), none(memory.ctx(1), 0);
    CHECK_EQUAL(memory.live.load(), 1);
    CHECK_EQUAL(memory.bytes.load(), 400);
  }
  CHECK_EQUAL(memory.live.load(), 0);
}

TEST(no_memory_is_an_error_of_its_kind) {
  for (bool by_throwing : {false, true}) {
    counting memory;
    memory.fail_at = 0;
    memory.by_throwing = by_throwing;
    CHECK_THROWS(out_of_memory, "[workspace] no memory for 800 bytes",
                 detail::workspace<double>(memory.ctx(1), 100));
  }
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  CHECK_THROWS(out_of_memory, "no memory", detail::workspace<char>(context{}, index_t{1} << 62));
#endif
}

TEST(decompositions_free_their_scratch) {
  auto const a = numbers<double>(k_batch * k_m * k_n, 1);
  with_failing_memory([&](context const& ctx) { run_svd(ctx, a); }, always);
  with_failing_memory([&](context const& ctx) { run_eigh(ctx, a); }, always);
  with_failing_memory([&](context const& ctx) { run_qr(ctx, a); }, always);
}

TEST(principal_axes_frees_its_scratch) {
  index_t const d = 8;
  std::vector<double> m2(d * d);
  for (index_t i = 0; i < d; ++i) m2[i * d + i] = static_cast<double>(i);
  with_failing_memory([&](context const& ctx) { run_axes(ctx, m2, d); }, always);
}

template <class T>
void moments_case(moments_precision precision, bool weighted) {
  index_t const n = 700, d = 21;
  auto x = numbers<T>(n * d, 2);
  auto const w = std::vector<double>(n, 0.5);
  state start(d);
  auto const rows = make_view<2, T const>(x.data(), {n, d});
  auto const weights = weighted ? std::optional(make_view<1>(w.data(), {n})) : std::nullopt;
  moments_update<T>(context{}, rows, weights, start.view(), precision);
  state work = start, done = start;
  moments_update<T>(context{}, rows, weights, done.view(), precision);
  with_failing_memory(
      [&](context const& ctx) {
        work = start;
        moments_update<T>(ctx, rows, weights, work.view(), precision);
        CHECK(work == done);  // scratch full of NaN does not show
      },
      [&] { return work == start; });
  // And with an error of another kind from the middle of the rows.
  x[(n / 2) * d + 3] = std::numeric_limits<T>::quiet_NaN();
  counting memory;
  work = start;
  CHECK_THROWS(invalid_argument, "got NaN in row 350, column 3",
               moments_update<T>(memory.ctx(2), rows, weights, work.view(), precision));
  CHECK_EQUAL(memory.live.load(), 0);
  CHECK(work == start);
}

TEST(moments_float) { moments_case<float>(moments_precision::automatic, false); }
TEST(moments_float_weighted) { moments_case<float>(moments_precision::automatic, true); }
TEST(moments_float_in_float64) { moments_case<float>(moments_precision::float64, true); }
TEST(moments_double) { moments_case<double>(moments_precision::automatic, false); }

TEST(cross_moments_and_group_sums_free_their_scratch) {
  index_t const n = 300, d = 5, e = 4;
  auto const x = numbers<float>(n * d, 3), y = numbers<float>(n * e, 4);
  std::vector<index_t> ids(n);
  for (index_t i = 0; i < n; ++i) ids[i] = i % 3;
  with_failing_memory(
      [&](context const& ctx) {
        double weight = 0;
        std::vector<double> mean_x(d), mean_y(e), cross(d * e), sums(3 * d);
        cross_moments_update<float>(
            ctx, make_view<2>(x.data(), {n, d}), make_view<2>(y.data(), {n, e}), std::nullopt,
            {&weight, make_view<1>(mean_x.data(), {d}), make_view<1>(mean_y.data(), {e}),
             make_view<2>(cross.data(), {d, e})});
        group_sums<float>(ctx, make_view<2>(x.data(), {n, d}), std::nullopt,
                          make_view<1, index_t const>(ids.data(), {n}),
                          make_view<2>(sums.data(), {3, d}));
        CHECK_EQUAL(weight, 300.0);
        for (index_t j = 0; j < d; ++j)
          CHECK(std::abs(sums[j] + sums[d + j] + sums[2 * d + j] - 300 * mean_x[j]) < 1e-4);
      },
      always);
}

/// pca.hpp: sums of every row lane, two blocks of packed rows, O(d) more.
TEST(moments_scratch_is_what_the_header_says) {
  for (index_t d : {8, 100, 400, 700}) {
    index_t const n = 20000;
    auto const x = numbers<float>(n * d, 5);
    state out(d);
    counting memory;
    moments_update<float>(memory.ctx(2), make_view<2>(x.data(), {n, d}), std::nullopt, out.view());
    double const lanes = d > 384 ? 1 : 24, padded = static_cast<double>(d + 64);
    double const stated = 8 * padded * padded * lanes + (14 << 20);
    // The O(d): records and corrections, a few hundred rows of doubles.
    double const allowed = stated + 8.0 * 2000 * padded, used = static_cast<double>(memory.peak);
    CHECK_EQUAL(std::max(used, allowed), allowed);
  }
}

int main() { return check::run_all(); }
