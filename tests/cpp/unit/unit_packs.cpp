// Packs of small matrices, one in each lane: what each level makes of them, wide and narrow.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <random>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "check.hpp"
#include "detail/batched.hpp"
#include "detail/pack_kernels.hpp"
#include "subspan/device.hpp"

#define SUBSPAN_FILE "unit_packs.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {
#include "detail/pack_levels.inl.hpp"

/// Packs in memory as aligned as they need; a std::vector of them is not at every level.
template <class V>
class pack_array {
 public:
  explicit pack_array(index_t n, V value = V{})
      : size_(n), data_(static_cast<V*>(::operator new(n * sizeof(V), k_aligned))) {
    std::fill_n(data_, n, value);
  }
  pack_array(pack_array const& other) : pack_array(other.size_) {
    std::copy_n(other.data_, size_, data_);
  }
  pack_array& operator=(pack_array const&) = delete;
  ~pack_array() { ::operator delete(data_, k_aligned); }

  V& operator[](index_t i) { return data_[i]; }
  V const& operator[](index_t i) const { return data_[i]; }
  V* data() { return data_; }
  V const* begin() const { return data_; }
  V const* end() const { return data_ + size_; }
  V* begin() { return data_; }
  V* end() { return data_ + size_; }
  index_t size() const { return size_; }

 private:
  static constexpr std::align_val_t k_aligned{64};
  index_t size_;
  V* data_;
};

/// Magnitudes from 2^-100 to 2^100, either sign.
template <class T>
T extreme(std::mt19937& random) {
  int const exponent = static_cast<int>(random() % 201) - 100;
  return std::ldexp(static_cast<T>(random() % 4001) / 1000 - 2, exponent);
}

/// Some matrices of the batch, with any strides, stand in their lanes; zeros in the others.
template <class T, int W>
index_t wrong_loads() {
  using V = pack<T, W>;
  index_t wrong = 0;
  std::vector<T> memory(4000);
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<T>(i + 1);
  for (index_t count = 1; count <= W; ++count)
    for (auto const& [m, n] : {std::pair<index_t, index_t>{1, 1}, {3, 9}, {5, 4}})
      for (auto const& [next, row, column] :
           {std::array<index_t, 3>{m * n + 3, n, 1}, {m * n, 1, m}, {0, n, 1}, {-50, -n, -1}}) {
        T const* const data = memory.data() + 2000;
        index_t const pitch = pack_pitch(n);
        pack_array<V> a(m * pitch, all_lanes<V>(-7));
        load_pack<V>({data, next, row, column, m, n, count}, a.data(), pitch);
        for (index_t i = 0; i < m; ++i)
          for (index_t j = 0; j < n; ++j)
            for (index_t l = 0; l < W; ++l)
              wrong +=
                  a[i * pitch + j][l] != (l < count ? data[l * next + i * row + j * column] : T(0));
      }
  return wrong;
}

/// Columns in each lane's order; NaN for what is not finite; no negative zeros; nothing beside it.
template <class T, int W>
index_t wrong_stores() {
  using V = pack<T, W>;
  index_t const m = 11, n = 3, pitch = pack_pitch(n);
  index_t wrong = 0;
  pack_array<V> a(m * pitch);
  pack_array<lane_mask<V>> order(n);
  for (index_t i = 0; i < a.size(); ++i)
    for (int l = 0; l < W; ++l) a[i][l] = i % 5 == 1 ? T(-0.0) : static_cast<T>(100 * i + l);
  for (index_t j = 0; j < n; ++j)
    for (int l = 0; l < W; ++l) order[j][l] = (j + l) % n;
  for (index_t count = 1; count <= W; ++count)
    for (bool const sorted : {false, true}) {
      lane_mask<V> finite = V{} == V{};
      finite[count / 2] = 0;
      std::vector<T> out(W * m * n + 1, T(42));
      store_pack<V>(a.data(), m, n, pitch, sorted ? order.data() : nullptr, finite,
                    {out.data(), m * n, 1, m}, count);  // each matrix transposed
      for (index_t l = 0; l < W; ++l)
        for (index_t i = 0; i < m; ++i)
          for (index_t j = 0; j < n; ++j) {
            T const found = out[l * m * n + j * m + i];
            T const right = a[i * pitch + (sorted ? (j + l) % n : j)][l] + T(0);
            if (l == count / 2)
              wrong += !std::isnan(found);
            else
              wrong += found != (l < count ? right : T(42)) || std::signbit(found);
          }
      wrong += out.back() != 42;
    }
  return wrong;
}

/// The greatest entry comes into [1, 2), by a power of two that undo() takes back exactly.
template <class T, int W>
index_t wrong_scales() {
  using V = pack<T, W>;
  using limits = std::numeric_limits<T>;
  index_t wrong = 0;
  T const tops[] = {limits::denorm_min(),
                    limits::min(),
                    T(0.75),
                    T(-3),
                    limits::max(),
                    T(0),
                    limits::infinity(),
                    -limits::infinity(),
                    limits::quiet_NaN()};
  for (std::size_t first = 0; first < std::size(tops); ++first) {
    V a[3];
    for (int l = 0; l < W; ++l) {
      T const top = tops[(first + l) % std::size(tops)];
      a[0][l] = std::isfinite(top) ? -top / 2 : T(1);
      a[1][l] = top;
      a[2][l] = 0;
    }
    V const before[3] = {a[0], a[1], a[2]};
    pack_scale<V> const scale = scale_pack(a, 1, 3, 3);
    for (int l = 0; l < W; ++l) {
      T const top = before[1][l];
      bool const fine = std::isfinite(top);
      wrong += (scale.finite[l] != 0) != fine;
      T const size = std::abs(a[1][l]);
      wrong += fine && top != 0 ? !(size >= 1 && size < 2) : size != 0;
      for (int i = 0; fine && i < 3; ++i) wrong += scale.undo(a[i])[l] != before[i][l];
      wrong += !fine && a[0][l] != 0;
    }
  }
  return wrong;
}

/// H (x, tail) = (beta, 0) with |beta| the norm, whatever the size; a tail of zeros is left alone.
template <class T, int W>
index_t wrong_reflections() {
  using V = pack<T, W>;
  constexpr long double eps = std::numeric_limits<T>::epsilon();
  std::mt19937 random(1);
  index_t wrong = 0;
  for (index_t count : {0, 1, 2, 7, 30})
    for (int turn = 0; turn < 20; ++turn) {
      pack_array<V> x(count + 1);
      for (auto& v : x)
        for (int l = 0; l < W; ++l) v[l] = random() % 9 == 0 ? T(0) : extreme<T>(random);
      for (index_t i = 1; i <= count; ++i) x[i][W - 1] = 0;
      auto const before = x;
      V const tau = make_reflection(x[0], x.data() + 1, 1, count);
      for (int l = 0; l < W; ++l) {
        long double square = 0, dot = 0, tails = 0;
        for (auto const& v : before) square += static_cast<long double>(v[l]) * v[l];
        for (index_t i = 1; i <= count; ++i) {
          dot += static_cast<long double>(x[i][l]) * before[i][l];
          tails += std::abs(static_cast<long double>(before[i][l]));
        }
        long double const norm = std::sqrt(square), some = 40 * eps * norm;
        wrong += !(std::abs(std::abs(x[0][l]) - norm) <= some);
        wrong += tails == 0 && !(tau[l] == 0 && x[0][l] == before[0][l]);
        dot = tau[l] * (before[0][l] + dot);
        wrong += !(std::abs(before[0][l] - dot - x[0][l]) <= some);
        for (index_t i = 1; i <= count; ++i)
          wrong += !(std::abs(before[i][l] - dot * x[i][l]) <= some);
      }
    }
  return wrong;
}

/// (c, s) is a rotation that takes (x, y) to (r, 0), and the list applies rotations in their order.
template <class T, int W>
index_t wrong_rotations() {
  using V = pack<T, W>;
  using list_type = rotation_list<V, 2>;
  T const eps = std::numeric_limits<T>::epsilon();
  index_t const n = 6, rows = 5;
  std::mt19937 random(2);
  std::uniform_real_distribution<T> uniform(-1, 1);
  index_t wrong = 0;
  pack_array<V> memory(list_type::size(n)), q(rows * n);
  for (auto& v : q)
    for (int l = 0; l < W; ++l) v[l] = uniform(random);
  auto expected = q;
  list_type list(memory.data(), n);
  for (index_t t = 0; t < list_type::k_sweeps; ++t) {
    wrong += list.full();
    index_t const begin = t % 3, end = n - 1 - t % 2;
    list.start(begin, end);
    for (index_t k = begin; k < end; ++k) {
      V x, y;
      for (int l = 0; l < W; ++l) {
        x[l] = l == 1 ? T(0) : uniform(random);
        y[l] = l < 2 ? T(0) : uniform(random);
      }
      pack_rotation<V> const g(x, y);
      for (int l = 0; l < W; ++l) {
        wrong += !(std::abs(g.c[l] * g.c[l] + g.s[l] * g.s[l] - 1) <= 4 * eps);
        wrong += !(std::abs(g.c[l] * x[l] + g.s[l] * y[l] - g.r[l]) <= 4 * eps);
        wrong += !(std::abs(g.c[l] * y[l] - g.s[l] * x[l]) <= 4 * eps);
      }
      wrong += g.s[1] != 0 || g.c[1] != 1 || g.r[1] != 0;
      list.set(0, k, all_lanes<V>(1), V{});
      list.set(1, k, g.c, g.s);
      for (index_t i = 0; i < rows; ++i) {
        V const a = expected[i * n + k], b = expected[i * n + k + 1];
        expected[i * n + k] = g.c * a + g.s * b;
        expected[i * n + k + 1] = g.c * b - g.s * a;
      }
    }
  }
  wrong += !list.full();
  list.apply(1, q.data(), rows, n);
  for (index_t i = 0; i < q.size(); ++i)
    for (int l = 0; l < W; ++l) wrong += !(std::abs(q[i][l] - expected[i][l]) <= 40 * eps);
  auto const before = q;
  list.apply(0, q.data(), rows, n);  // identities
  for (index_t i = 0; i < q.size(); ++i)
    for (int l = 0; l < W; ++l) wrong += q[i][l] != before[i][l];
  list.clear();
  return wrong + list.full();
}

/// Every lane in its own order, equal values as they were.
template <class T, int W>
index_t wrong_orders() {
  using V = pack<T, W>;
  std::mt19937 random(3);
  index_t wrong = 0;
  for (index_t n : {1, 2, 9}) {
    pack_array<V> values(n);
    for (auto& v : values)
      for (int l = 0; l < W; ++l) v[l] = static_cast<T>(random() % 4);
    for (bool const descending : {false, true}) {
      auto sorted = values;
      pack_array<lane_mask<V>> order(n);
      if (descending)
        sort_lanes<true>(sorted.data(), order.data(), n);
      else
        sort_lanes<false>(sorted.data(), order.data(), n);
      for (int l = 0; l < W; ++l) {
        std::vector<index_t> right(n);
        for (index_t j = 0; j < n; ++j) right[j] = j;
        std::stable_sort(right.begin(), right.end(), [&](index_t i, index_t j) {
          T const a = values[i][l], b = values[j][l];
          return descending ? a > b : a < b;
        });
        for (index_t j = 0; j < n; ++j)
          wrong += order[j][l] != right[j] || sorted[j][l] != values[right[j]][l];
      }
    }
  }
  return wrong;
}

template <class T, int W>
void check_packs() {
  CHECK_EQUAL((wrong_loads<T, W>()), 0);
  CHECK_EQUAL((wrong_stores<T, W>()), 0);
  CHECK_EQUAL((wrong_scales<T, W>()), 0);
  CHECK_EQUAL((wrong_reflections<T, W>()), 0);
  CHECK_EQUAL((wrong_rotations<T, W>()), 0);
  CHECK_EQUAL((wrong_orders<T, W>()), 0);
}

void check_level() {
  check_packs<float, k_wide_pack<float>>();
  check_packs<float, k_narrow_pack<float>>();
  check_packs<double, k_wide_pack<double>>();
  check_packs<double, k_narrow_pack<double>>();
}

}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

TEST(packs_at_the_baseline) { subspan::cpu::baseline::check_level(); }

#if defined(SUBSPAN_HAS_LEVELS)
TEST(packs_at_v3) {
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    subspan::cpu::v3::check_level();
  else
    std::printf("     this CPU has no v3\n");
}

TEST(packs_at_v4) {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
    subspan::cpu::v4::check_level();
  else
    std::printf("     this CPU has no v4\n");
}
#endif

int main() { return check::run_all(); }

#endif  // SUBSPAN_ONCE
