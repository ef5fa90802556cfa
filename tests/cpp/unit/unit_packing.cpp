// What panels hold, from any storage and any strides. Compiled once per level.

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "check.hpp"
#include "detail/product_tile.hpp"
#include "detail/tile_engine.hpp"
#include "subspan/device.hpp"

namespace {

using subspan::bfloat16;
using subspan::half;
using subspan::index_t;
using subspan::detail::divide_up;
using subspan::detail::packing;
using subspan::detail::vector_set;

template <class T, class P>
using pack_function = void (*)(vector_set<T> const&, packing<P> const&, index_t, index_t, index_t,
                               P*);

}  // namespace

#define SUBSPAN_FILE "unit_packing.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {
// In this order: the later ones need the earlier.
// clang-format off
#include "detail/narrow.inl.hpp"
#include "detail/widen.inl.hpp"
#include "detail/product_tile.inl.hpp"
#include "detail/tile_engine.inl.hpp"
// clang-format on
}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace {

constexpr std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// Elements at data[i * step + r * stride], in memory that ends where they end.
struct layout {
  index_t step, stride;
  bool with_ids;
};

template <class T, class P>
index_t wrong_packing(pack_function<T, P> pack, index_t width, index_t depth, index_t count,
                      layout how, bool with_shift, int scales) {
  index_t const first = 3, vectors = first + count;
  std::mt19937 random(static_cast<unsigned>(depth + count));
  auto const steps = (vectors - 1) * std::abs(how.step);
  std::vector<T> memory(at(1 + steps + (depth - 1) * std::abs(how.stride)));
  for (auto& v : memory) {
    auto const integer = static_cast<int>(random() % 120);
    if constexpr (std::is_integral_v<T>)
      v = static_cast<T>(std::is_signed_v<T> ? integer - 60 : 2 * integer);
    else
      v = subspan::cpu::baseline::narrow_one<T>(static_cast<float>(integer - 60) / 16);
  }
  std::vector<index_t> ids(at(vectors));
  for (auto& id : ids) id = static_cast<index_t>(random() % at(vectors));
  std::vector<P> shift(at(depth));
  for (auto& s : shift) s = static_cast<P>(static_cast<int>(random() % 99) - 49) / 32;
  std::vector<double> scale(at(vectors));  // exact in double, or not
  for (auto& s : scale)
    s = scales == 1 ? 0.25 * static_cast<double>(random() % 7)
                    : 1.0 / (3 + static_cast<double>(random() % 7));

  T const* const data =
      memory.data() + (how.step < 0 ? steps : 0) + (how.stride < 0 ? (depth - 1) * -how.stride : 0);
  vector_set<T> const from{data,     vectors,    depth,
                           how.step, how.stride, how.with_ids ? ids.data() : nullptr};
  index_t const panels = divide_up(count, width), size = panels * width * depth;
  std::vector<P> out(at(size + 5), P(42));
  pack(from, {with_shift ? shift.data() : nullptr, scales != 0 ? scale.data() : nullptr}, first,
       count, width, out.data());

  index_t wrong = 0;
  for (index_t i = 0; i < panels * width; ++i)
    for (index_t r = 0; r < depth; ++r) {
      P const found = out[at(i / width * width * depth + r * width + i % width)];
      if (i >= count) {
        wrong += found != 0;
        continue;
      }
      index_t const id = how.with_ids ? ids[at(first + i)] : first + i;
      double const v = static_cast<double>(
          subspan::cpu::baseline::widen_one(data[id * how.step + r * how.stride]));
      double const scaled = scales != 0 ? v * scale[at(first + i)] : v;
      double const right = scaled - (with_shift ? static_cast<double>(shift[at(r)]) : 0.0);
      double const unit = std::numeric_limits<P>::epsilon() / 2.0;
      double const allowed = scales == 2 ? unit * std::abs(right) * (1 + 1e-6) +
                                               0x1p-52 * (std::abs(scaled) + std::abs(right))
                                         : 0.0;
      wrong += !(std::abs(static_cast<double>(found) - right) <= allowed);
    }
  return wrong + (out[at(size)] != 42);
}

template <class T, class P>
void check_packing(pack_function<T, P> pack, index_t rows, index_t wide) {
  int turn = 0;
  for (index_t width : {rows, wide})
    for (index_t depth : {1, 6, 257, 516})
      for (index_t count : {index_t{1}, index_t{5}, width, 2 * width + 3})
        for (layout const how :
             {layout{depth + 3, 1, false}, layout{depth, 1, true}, layout{1, count + 5, false},
              layout{1, -count - 3, false}, layout{1, count + 3, true},
              layout{-2, 2 * count + 7, false}, layout{3 * depth, -3, false}, layout{1, 0, false},
              layout{0, 1, false}}) {
          CHECK_EQUAL(
              (wrong_packing<T, P>(pack, width, depth, count, how, turn % 2 == 1, turn / 2 % 3)),
              0);
          ++turn;
        }
}

#define CHECK_STORAGE(level, T, P)                              \
  check_packing<T, P>(&subspan::cpu::level::pack_panels<T, P>,  \
                      subspan::cpu::level::tile_shape<P>::rows, \
                      subspan::cpu::level::tile_shape<P>::width)
#define CHECK_PANELS(level, P)          \
  CHECK_STORAGE(level, half, P);        \
  CHECK_STORAGE(level, bfloat16, P);    \
  CHECK_STORAGE(level, float, P);       \
  CHECK_STORAGE(level, double, P);      \
  CHECK_STORAGE(level, std::int8_t, P); \
  CHECK_STORAGE(level, std::uint8_t, P)
#define CHECK_LEVEL(level)    \
  CHECK_PANELS(level, float); \
  CHECK_PANELS(level, double)

}  // namespace

TEST(packing_at_the_baseline) { CHECK_LEVEL(baseline); }

#if defined(SUBSPAN_HAS_LEVELS)
TEST(packing_at_v3) {
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    CHECK_LEVEL(v3);
  } else {
    std::printf("     this CPU has no v3\n");
  }
}

TEST(packing_at_v4) {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    CHECK_LEVEL(v4);
  } else {
    std::printf("     this CPU has no v4\n");
  }
}
#endif

int main() { return check::run_all(); }

#endif  // SUBSPAN_ONCE
