// The tile engine against dense products, with epilogues that store. Compiled once per level.

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "check.hpp"
#include "detail/product_tile.hpp"
#include "storing_job.hpp"
#include "subspan/device.hpp"

namespace {

using storing::at;
using storing::engine_kernels;
using storing::storing_job;
using storing::tile_store;
using subspan::index_t;
using subspan::detail::tile_block;
using subspan::detail::vector_set;

}  // namespace

#define SUBSPAN_FILE "unit_tile_engine.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {
// In this order: the later ones need the earlier.
// clang-format off
#include "detail/widen.inl.hpp"
#include "detail/product_tile.inl.hpp"
#include "detail/tile_engine.inl.hpp"
// clang-format on

template <class P>
struct store_tiles {
  index_t first_row;
  tile_store<P>& to;

  template <bool Differences>
  [[gnu::always_inline]] void take(typename tile_shape<P>::sums& sum, index_t row0,
                                   index_t column0) {
    P tile[tile_shape<P>::rows * tile_shape<P>::width];
    store_sums<P>(sum, tile);
    to.take(first_row + row0, column0, tile, Differences);
  }
};

template <class P>
struct store_mixed : store_tiles<P> {
  bool by_differences(index_t row0, index_t column0) {
    return this->to.ask(this->first_row + row0, column0);
  }
};

/// A form of its own: 2 x y.
template <class P>
struct by_twice {
  template <int Step>
  [[gnu::always_inline]] static void accumulate_into(typename tile_shape<P>::sums& sum,
                                                     index_t depth, P const* a, P const* b) {
    accumulate<Step>(depth, a, b, sum);
    accumulate<Step>(depth, a, b, sum);
  }
};

template <class P>
void store_block(tile_block<P> const& block, index_t first_row, tile_store<P>& to) {
  if (to.mixed) {
    store_mixed<P> epilogue{{first_row, to}};
    multiply_tiles<P, by_twice<P>>(block, epilogue);
  } else {
    store_tiles<P> epilogue{first_row, to};
    multiply_tiles<P>(block, epilogue);
  }
}

template <class P>
constexpr engine_kernels<P> kernels{
    {tile_shape<P>::rows, tile_shape<P>::width}, &pack_panels<P, P>, &store_block<P>};

}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace {

struct level {
  char const* name;
  engine_kernels<float> const& of_float;
  engine_kernels<double> const& of_double;
};

std::vector<level> levels() {
  using namespace subspan::cpu;
  std::vector<level> all{{"baseline", baseline::kernels<float>, baseline::kernels<double>}};
#if defined(SUBSPAN_HAS_LEVELS)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    all.push_back({"v3", v3::kernels<float>, v3::kernels<double>});
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
    all.push_back({"v4", v4::kernels<float>, v4::kernels<double>});
#endif
  return all;
}

/// check(kernels) for every level that this CPU has.
template <class P, class Check>
void each_kernels(Check&& check) {
  for (level const& l : levels()) {
    int const before = check::failures;
    if constexpr (std::is_same_v<P, float>)
      check(l.of_float);
    else
      check(l.of_double);
    if (check::failures != before) std::fprintf(stderr, "     at the level %s\n", l.name);
  }
}

constexpr index_t k_one_strip = 1 << 20;

/// All products; empty where the engine did not keep its word.
template <class P>
std::vector<P> run(engine_kernels<P> const& kernels, vector_set<P> const& x, vector_set<P> const& y,
                   int threads, index_t strip, bool mixed = false) {
  subspan::context ctx;
  ctx.threads = threads;
  tile_store<P> to(kernels.size, x.count, y.count, mixed);
  storing_job<P> job(kernels, x, y, strip, to);
  subspan::detail::run_tiles<P>(ctx, job);
  bool const fine =
      job.fine && job.begun == job.ended && (x.count == 0 || job.begun > 0) && to.complete();
  return fine ? to.out : std::vector<P>{};
}

/// Rows of one matrix: integers, whose sums make no rounding errors in float, or not.
template <class P>
std::vector<P> make_rows(index_t count, index_t depth, bool integers, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<P> all(at(count * depth));
  for (auto& v : all)
    v = integers ? static_cast<P>(static_cast<int>(random() % 17) - 8)
                 : static_cast<P>(static_cast<float>(random()) * 0x1p-31f - 1);
  return all;
}

template <class P>
vector_set<P> first_rows(std::vector<P> const& rows, index_t count, index_t depth) {
  return {rows.data(), count, depth, depth, 1};
}

template <class P>
double product(P const* x, P const* y, index_t depth) {
  double sum = 0;
  for (index_t r = 0; r < depth; ++r) sum += static_cast<double>(x[r]) * static_cast<double>(y[r]);
  return sum;
}

constexpr index_t k_counts[] = {1, 2, 7, 8, 9, 31, 33, 129, 300};
constexpr index_t k_depths[] = {0, 1, 5, 64, 1023, 1024, 1025, 2500};
constexpr index_t k_most = 300;

/// Of integers every sum is exact, so products and differences must be equal to the last bit.
template <class P>
struct exact_sums {
  exact_sums(index_t depth)
      : depth(depth),
        x(make_rows<P>(k_most, depth, true, 1)),
        y(make_rows<P>(k_most, depth, true, 2)) {
    for (index_t i = 0; i < k_most; ++i) {
      xx.push_back(product(x.data() + i * depth, x.data() + i * depth, depth));
      yy.push_back(product(y.data() + i * depth, y.data() + i * depth, depth));
      for (index_t j = 0; j < k_most; ++j)
        xy.push_back(product(x.data() + i * depth, y.data() + j * depth, depth));
    }
  }

  index_t wrong(engine_kernels<P> const& kernels, index_t rows, index_t columns, int threads,
                index_t strip, bool mixed) const {
    auto const found = run<P>(kernels, first_rows(x, rows, depth), first_rows(y, columns, depth),
                              threads, strip, mixed);
    tile_store<P> const forms(kernels.size, rows, columns, mixed);
    index_t count = found.empty();
    for (index_t i = 0; i < rows && !found.empty(); ++i)
      for (index_t j = 0; j < columns; ++j) {
        double const product = xy[at(i * k_most + j)];
        double const right = forms.differs(i, j) ? xx[at(i)] + yy[at(j)] - 2 * product
                             : mixed             ? 2 * product
                                                 : product;
        count += static_cast<double>(found[at(i * columns + j)]) != right;
      }
    return count;
  }

  index_t depth;
  std::vector<P> x, y;
  std::vector<double> xx, yy, xy;
};

template <class P>
void check_exact() {
  constexpr index_t strips[] = {k_one_strip, 1, 40, 128, 129, 200, 136};
  for (index_t depth : k_depths) {
    exact_sums<P> const sums(depth);
    each_kernels<P>([&](engine_kernels<P> const& kernels) {
      index_t turn = depth;
      for (index_t rows : k_counts)
        for (index_t columns : k_counts) {
          CHECK_EQUAL(sums.wrong(kernels, rows, columns, static_cast<int>(1 + turn % 3),
                                 strips[turn % std::ssize(strips)], turn % 2 == 1),
                      0);
          ++turn;
        }
    });
  }
}

/// Rounding: (depth + 1) u sum |x y| at most.
template <class P>
void check_rounding(engine_kernels<P> const& kernels) {
  constexpr index_t rows = 45, columns = 131;
  for (index_t depth : k_depths) {
    auto const x = make_rows<P>(rows, depth, false, 3), y = make_rows<P>(columns, depth, false, 4);
    auto const found =
        run<P>(kernels, first_rows(x, rows, depth), first_rows(y, columns, depth), 2, k_one_strip);
    index_t wrong = found.empty();
    for (index_t i = 0; i < rows && !found.empty(); ++i)
      for (index_t j = 0; j < columns; ++j) {
        long double sum = 0, size = 0;  // elements are those of float: products are exact
        for (index_t r = 0; r < depth; ++r) {
          double const xy =
              static_cast<double>(x[at(i * depth + r)]) * static_cast<double>(y[at(j * depth + r)]);
          sum += xy, size += std::abs(xy);
        }
        long double const error =
            std::abs(static_cast<long double>(found[at(i * columns + j)]) - sum);
        // The reference's own error counts where long double is double.
        wrong +=
            error > size * static_cast<long double>(depth + 1) * std::numeric_limits<P>::epsilon();
      }
    CHECK_EQUAL(wrong, 0);
  }
}

/// The bits of a product do not depend on threads, strips, blocks, nor on what is around it.
template <class P>
void check_bits(engine_kernels<P> const& kernels) {
  constexpr index_t m = 140, n = 200;
  std::vector<index_t> order(at(m));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(5));
  for (index_t depth : {33, 2100}) {
    auto const x = make_rows<P>(m, depth, false, 6), y = make_rows<P>(n, depth, false, 7);
    auto const all_x = first_rows(x, m, depth), all_y = first_rows(y, n, depth);
    auto const wanted = run<P>(kernels, all_x, all_y, 1, k_one_strip);
    CHECK_EQUAL(std::ssize(wanted), m * n);
    if (wanted.empty()) return;
    for (int threads : {1, 2, 3})
      for (index_t strip : {index_t{-5}, index_t{64}, index_t{128}, index_t{133}, k_one_strip})
        CHECK(run<P>(kernels, all_x, all_y, threads, strip) == wanted);

    auto mixed_up_x = all_x, mixed_up_y = all_y;
    mixed_up_x.ids = order.data() + 11;
    mixed_up_y.ids = order.data() + 5;
    for (index_t rows : {1, 6, 129})
      for (index_t columns : {1, 29, 130}) {
        mixed_up_x.count = rows, mixed_up_y.count = columns;
        auto const found = run<P>(kernels, mixed_up_x, mixed_up_y, 2, k_one_strip);
        index_t wrong = found.empty();
        for (index_t i = 0; i < rows && !found.empty(); ++i)
          for (index_t j = 0; j < columns; ++j)
            wrong +=
                found[at(i * columns + j)] != wanted[at(mixed_up_x.ids[i] * n + mixed_up_y.ids[j])];
        CHECK_EQUAL(wrong, 0);
      }
  }
}

}  // namespace

TEST(sums_of_integers_are_exact) {
  check_exact<float>();
  check_exact<double>();
}
TEST(rounding_is_bounded) {
  each_kernels<float>(&check_rounding<float>);
  each_kernels<double>(&check_rounding<double>);
}
TEST(bits_depend_on_row_and_column_alone) {
  each_kernels<float>(&check_bits<float>);
  each_kernels<double>(&check_bits<double>);
}

#if defined(SUBSPAN_HAS_LEVELS)
template <class P>
bool same_bits_at_v3_and_v4() {
  auto const x = make_rows<P>(31, 1500, false, 10), y = make_rows<P>(77, 1500, false, 11);
  auto const products = [&](engine_kernels<P> const& kernels) {
    return run<P>(kernels, first_rows(x, 31, 1500), first_rows(y, 77, 1500), 2, k_one_strip);
  };
  auto const found = products(subspan::cpu::v3::kernels<P>);
  return !found.empty() && found == products(subspan::cpu::v4::kernels<P>);
}

TEST(levels_with_fused_sums_have_the_same_bits) {
  if (levels().size() < 3) return;
  CHECK(same_bits_at_v3_and_v4<float>());
  CHECK(same_bits_at_v3_and_v4<double>());
}
#endif

/// More packed columns than are held at once, by all threads and by each.
TEST(columns_come_in_blocks) {
  constexpr index_t rows = 136, columns = 1100, depth = 2000;
  static_assert(columns * depth * 8 > subspan::detail::k_shared_bytes);
  auto const x = make_rows<double>(rows, depth, true, 8),
             y = make_rows<double>(columns, depth, true, 9);
  std::vector<double> wanted(at(rows * columns));
  for (index_t i = 0; i < rows; ++i)
    for (index_t j = 0; j < columns; ++j)
      wanted[at(i * columns + j)] = product(x.data() + i * depth, y.data() + j * depth, depth);
  each_kernels<double>([&](engine_kernels<double> const& kernels) {
    auto const all_x = first_rows(x, rows, depth), all_y = first_rows(y, columns, depth);
    CHECK(run<double>(kernels, all_x, all_y, 3, k_one_strip) == wanted);
    CHECK(run<double>(kernels, all_x, all_y, 1, 128) == wanted);
  });
}

TEST(nothing_to_multiply) {
  each_kernels<float>([](engine_kernels<float> const& kernels) {
    auto const rows = make_rows<float>(300, 4, true, 1);
    for (index_t strip : {index_t{8}, k_one_strip}) {
      tile_store<float> to(kernels.size, 0, 300, false);
      storing_job<float> no_rows(kernels, first_rows(rows, 0, 4), first_rows(rows, 300, 4), strip,
                                 to);
      subspan::detail::run_tiles<float>({}, no_rows);
      CHECK_EQUAL(no_rows.begun + no_rows.ended + no_rows.multiplied, 0);
      // Rows have states without any column, and somebody will ask for them.
      storing_job<float> no_columns(kernels, first_rows(rows, 300, 4), first_rows(rows, 0, 4),
                                    strip, to);
      subspan::detail::run_tiles<float>({}, no_columns);
      CHECK_EQUAL(no_columns.begun, strip == 8 ? 38 : 1);
      CHECK_EQUAL(no_columns.ended, no_columns.begun);
      CHECK_EQUAL(no_columns.multiplied, 0);
      CHECK(no_columns.fine);
    }
  });
}

TEST(a_lack_of_memory_is_told_whoever_meets_it) {
  struct meter {
    std::atomic<int> left, balance = 0;
  };
  auto const rows = make_rows<float>(300, 64, true, 1);
  auto const& kernels = subspan::cpu::baseline::kernels<float>;
  for (index_t strip : {index_t{128}, k_one_strip})
    for (int served = 0; served < 2; ++served) {
      meter m{served};
      subspan::context ctx;
      ctx.threads = 2;
      ctx.allocator = {[](void* user, std::size_t bytes, std::size_t) -> void* {
                         auto& self = *static_cast<meter*>(user);
                         if (self.left-- <= 0) return nullptr;
                         ++self.balance;
                         return ::operator new(bytes, std::align_val_t{64});
                       },
                       [](void* user, void* pointer, std::size_t) {
                         --static_cast<meter*>(user)->balance;
                         ::operator delete(pointer, std::align_val_t{64});
                       },
                       &m};
      tile_store<float> to(kernels.size, 300, 300, false);
      storing_job<float> job(kernels, first_rows(rows, 300, 64), first_rows(rows, 300, 64), strip,
                             to);
      CHECK_THROWS(out_of_memory, "[workspace]", subspan::detail::run_tiles<float>(ctx, job));
      CHECK_EQUAL(m.balance, 0);
    }
}

int main() { return check::run_all(); }

#endif  // SUBSPAN_ONCE
