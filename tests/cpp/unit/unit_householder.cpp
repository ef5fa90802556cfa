#include "detail/qr_bodies.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "check.hpp"
#include "host_lanes.hpp"

// The bodies of the kernels of qr.cu, each thread a coroutine on the host.

using namespace subspan::gpu;

namespace {

/// Row-major.
template <class T>
struct matrix {
  int m = 0, n = 0;
  std::vector<T> entries;
  matrix(int rows, int columns)
      : m(rows), n(columns), entries(static_cast<std::size_t>(rows) * columns) {}
  T& operator()(int i, int j) { return entries[static_cast<std::size_t>(i) * n + j]; }
  T operator()(int i, int j) const { return entries[static_cast<std::size_t>(i) * n + j]; }
};

template <class T>
matrix<T> normal(int m, int n, std::uint64_t seed) {
  matrix<T> a(m, n);
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> draw;
  for (T& v : a.entries) v = static_cast<T>(draw(engine));
  return a;
}

/// Largest column sum of |f(i, j)|.
template <class F>
double one_norm(int m, int n, F&& f) {
  double largest = 0;
  for (int j = 0; j < n; ++j) {
    double sum = 0;
    for (int i = 0; i < m; ++i) sum += std::abs(static_cast<double>(f(i, j)));
    largest = sum > largest || sum != sum ? sum : largest;
  }
  return largest;
}

template <class T>
struct decomposition {
  matrix<T> q, r;
  std::vector<std::int32_t> info;
};

enum class kernel { block, panels, registers };

/// The batch through a kernel's body, q and r of all matrices below one another.
template <class T>
decomposition<T> decompose(std::vector<matrix<T>> const& batch, int threads, bool check_finite,
                           kernel which, bool column_major = false) {
  int const m = batch[0].m, n = batch[0].n, k = std::min(m, n);
  int const count = static_cast<int>(batch.size());
  decomposition<T> d{matrix<T>(m * count, k), matrix<T>(k * count, n),
                     std::vector<std::int32_t>(count, 7)};
  std::fill(d.q.entries.begin(), d.q.entries.end(), T(99));
  std::fill(d.r.entries.begin(), d.r.entries.end(), T(99));
  std::vector<T> all;
  for (matrix<T> const& a : batch)
    for (int e = 0; e < m * n; ++e) all.push_back(column_major ? a(e % m, e / m) : a.entries[e]);
  qr_problem<T> const p{
      all.data(), count,        index_t{m} * n,     column_major ? 1 : n, column_major ? m : 1, m,
      n,          check_finite, d.q.entries.data(), d.r.entries.data(),   d.info.data()};
  int const lda = m | 1;
  std::vector<T> work(static_cast<std::size_t>(lda) * n), tau(k),
      panel(static_cast<std::size_t>(lda) * k_panel), t(k_panel * k_panel),
      sums(k_panel * k_panel_columns<T> * threads / k_warp);
  double scratch[32];
  qr_memory<T> const memory{
      work.data(), lda, tau.data(), scratch, {panel.data(), lda, t.data(), sums.data()}};
  if (which == kernel::registers) {
    host_block::launch(threads, [&](host_lanes const& lanes) {
      for (int warp = lanes.warp(); warp < count; warp += lanes.warps()) {
        auto const run = [&]<int R, int P, int G>() {
          if (warp * (k_warp / (P * G)) < count)
            qr_in_registers<R, P, G, host_lanes, T>(lanes, p, warp).run();
        };
        if (n <= 8 && m <= 8)
          run.template operator()<8, 1, 8>();
        else if (n <= 8 && m <= 32)
          run.template operator()<16, 2, 8>();
        else if (n <= 8)
          run.template operator()<32, 4, 8>();
        else if (n <= 16)
          run.template operator()<32, 2, 16>();
        else
          run.template operator()<32, 1, 32>();
      }
    });
  } else {
    host_block::launch(threads, [&](host_lanes const& lanes) {
      for (int b = 0; b < count; ++b)
        if (which == kernel::panels)
          qr_by_block<true>(lanes, p, b, memory);
        else
          qr_by_block<false>(lanes, p, b, memory);
    });
  }
  return d;
}

bool fits_registers(int m, int n) {
  return (n <= 8 && m <= 128) || (n <= 16 && m <= 64) || (n <= 32 && m <= 32);
}

/// The gates of the residual and of orthonormality, and the exact zeros of r, for matrix `b`.
template <class T>
void check_decomposition(matrix<T> const& a, decomposition<T> const& d, int b,
                         std::string const& what) {
  int const m = a.m, n = a.n, k = std::min(m, n);
  double const eps = std::numeric_limits<T>::epsilon();
  double const size = one_norm(m, n, [&](int i, int j) { return a(i, j); });
  double const residual = one_norm(m, n, [&](int i, int j) {
    double sum = a(i, j);
    for (int l = 0; l < k; ++l) sum -= static_cast<double>(d.q(b * m + i, l)) * d.r(b * k + l, j);
    return sum;
  });
  double const defect = one_norm(k, k, [&](int i, int j) {
    double sum = i == j;
    for (int l = 0; l < m; ++l) sum -= static_cast<double>(d.q(b * m + l, i)) * d.q(b * m + l, j);
    return sum;
  });
  bool triangular = true;
  for (int i = 0; i < k; ++i)
    for (int j = 0; j < i && j < n; ++j) triangular &= d.r(b * k + i, j) == 0;
  std::string const text = what + " " + std::to_string(m) + " x " + std::to_string(n) +
                           ": residual " + std::to_string(residual / (size * eps)) + " eps |a|, " +
                           "defect " + std::to_string(defect / eps) + " eps";
  // An entry of r of a denormal matrix is rounded by up to half of the least number.
  double const rounded = 0.5 * k * std::numeric_limits<T>::denorm_min() * k * std::max(m, n);
  check::report(residual <= 30 * size * std::max(m, n) * eps + rounded && defect <= 30 * m * eps &&
                    triangular && d.info[b] == 0,
                __FILE__, __LINE__, text);
}

/// Signs and values against plain Householder in long double.
template <class T>
void check_r_against_reference(matrix<T> const& a, decomposition<T> const& d, int b) {
  int const m = a.m, n = a.n, k = std::min(m, n);
  std::vector<std::vector<long double>> c(n, std::vector<long double>(m));
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) c[j][i] = a(i, j);
  for (int j = 0; j < k; ++j) {
    long double square = 0;
    for (int i = j + 1; i < m; ++i) square += c[j][i] * c[j][i];
    if (square == 0) continue;
    long double const alpha = c[j][j], norm = std::sqrt(alpha * alpha + square);
    long double const beta = alpha < 0 ? norm : -norm;
    std::vector<long double> v(c[j]);
    v[j] = alpha - beta;
    long double const scale = 2 / (square + v[j] * v[j]);
    for (int l = j; l < n; ++l) {
      long double dot = 0;
      for (int i = j; i < m; ++i) dot += v[i] * c[l][i];
      for (int i = j; i < m; ++i) c[l][i] -= scale * dot * v[i];
    }
  }
  double const eps = std::numeric_limits<T>::epsilon();
  double worst = 0, size = one_norm(m, n, [&](int i, int j) { return a(i, j); });
  for (int i = 0; i < k; ++i)
    for (int j = i; j < n; ++j)
      worst = std::max(worst, std::abs(static_cast<double>(c[j][i] - d.r(b * k + i, j))));
  // Well-conditioned inputs only: R moves with the condition number.
  check::report(worst <= 1000 * eps * size * std::max(m, n), __FILE__, __LINE__,
                "r is off by " + std::to_string(worst / (eps * size)) + " eps |a|");
}

/// Every kernel that takes the shape, alone, and as one of a batch: the bits are the same.
template <class T>
void check_all(matrix<T> const& a, std::string const& what) {
  check_decomposition(a, decompose<T>({a}, 64, true, kernel::block, a.m % 2 == 0), 0,
                      what + " by a block");
  check_decomposition(a, decompose<T>({a}, 64, true, kernel::panels), 0, what + " by panels");
  if (!fits_registers(a.m, a.n)) return;
  decomposition<T> const one = decompose<T>({a}, 32, true, kernel::registers);
  check_decomposition(a, one, 0, what + " in registers");
  if (what != "normal") return;
  std::vector<matrix<T>> batch;
  for (int b = 0; b < 5; ++b) batch.push_back(b == 3 ? a : normal<T>(a.m, a.n, 50 + b));
  decomposition<T> const all = decompose<T>(batch, 64, true, kernel::registers);
  CHECK(std::equal(one.q.entries.begin(), one.q.entries.end(),
                   all.q.entries.begin() + 3 * a.m * one.q.n));
  CHECK(std::equal(one.r.entries.begin(), one.r.entries.end(),
                   all.r.entries.begin() + 3 * one.r.m * a.n));
}

std::vector<std::pair<int, int>> const shapes{
    {1, 1},  {1, 5},   {5, 1},   {2, 2},   {3, 2},   {2, 3},   {5, 8},   {8, 8},   {16, 8},
    {17, 8}, {16, 16}, {17, 17}, {31, 5},  {32, 32}, {31, 32}, {33, 31}, {64, 16}, {65, 3},
    {3, 65}, {100, 8}, {8, 100}, {100, 5}, {600, 3}, {64, 17}, {70, 65}};

template <class T>
void random_matrices() {
  for (auto const& [m, n] : shapes) {
    matrix<T> const a = normal<T>(m, n, 1);
    check_all(a, "normal");
    check_r_against_reference(a, decompose<T>({a}, 64, true, kernel::block), 0);
    check_r_against_reference(a, decompose<T>({a}, 64, true, kernel::panels), 0);
    if (fits_registers(m, n))
      check_r_against_reference(a, decompose<T>({a}, 32, true, kernel::registers), 0);
  }
}

template <class T>
void special_matrices() {
  T const tiny = std::numeric_limits<T>::denorm_min();
  T const huge = std::numeric_limits<T>::max() / 64;
  for (auto const& [m, n] : {std::pair{8, 8}, {20, 7}, {7, 20}, {33, 18}}) {
    matrix<T> const zero(m, n);
    matrix<T> a = zero;
    check_all(a, "zero");
    for (int i = 0; i < std::min(m, n); ++i) a(i, i) = -1;
    check_all(a, "-identity");
    a = normal<T>(m, n, 2);
    for (int i = 0; i < m; ++i)
      for (int j = 1; j < n; ++j) a(i, j) = a(i, j % 3);
    check_all(a, "duplicates");
    a = zero;
    a(m - 1, n - 1) = 3;
    check_all(a, "one entry");
    a = normal<T>(m, n, 3);
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) a(i, j) *= std::pow(T(10), T(-30) * j / n);
    check_all(a, "graded columns");
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) a(i, j) = static_cast<T>(a(i, j) * std::pow(10.0, -30.0 * i / m));
    check_all(a, "graded rows and columns");
    matrix<T> const plain = normal<T>(m, n, 4);
    auto const reference = decompose<T>({plain}, 64, true, kernel::block);
    for (T const scale : {huge / 8, std::numeric_limits<T>::min() * 64}) {
      T const power = std::scalbn(T(1), std::ilogb(scale));
      for (int e = 0; e < m * n; ++e) a.entries[e] = plain.entries[e] * power;
      check_all(a, "scaled");
      if (power > 1)
        CHECK(decompose<T>({a}, 64, true, kernel::block).q.entries == reference.q.entries);
    }
    for (int e = 0; e < m * n; ++e) a.entries[e] = plain.entries[e] < 0 ? -3 * tiny : tiny;
    auto const d = decompose<T>({a}, 64, true, kernel::block);
    check_decomposition(a, d, 0, "denormal");
  }
}

/// Columns of any size are decomposed as well as alone.
template <class T>
void graded_columns_keep_their_accuracy() {
  int const m = 24, n = 12;
  matrix<T> a = normal<T>(m, n, 5);
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) a(i, j) = std::ldexp(a(i, j), -9 * j);
  for (kernel const which : {kernel::block, kernel::panels, kernel::registers}) {
    auto const d = decompose<T>({a}, 32, true, which);
    for (int j = 0; j < n; ++j) {
      double error = 0, size = 0;
      for (int i = 0; i < m; ++i) {
        double sum = a(i, j);
        for (int l = 0; l < n; ++l) sum -= static_cast<double>(d.q(i, l)) * d.r(l, j);
        error += std::abs(sum);
        size += std::abs(static_cast<double>(a(i, j)));
      }
      CHECK(error <= 30 * m * std::numeric_limits<T>::epsilon() * size);
    }
  }
}

template <class T>
void non_finite_matrices() {
  T const nan = std::numeric_limits<T>::quiet_NaN(), inf = std::numeric_limits<T>::infinity();
  auto const is_nan = [](T v) { return v != v; };
  for (auto const& [m, n, bad] :
       {std::tuple{6, 4, nan}, {6, 4, -inf}, {20, 30, inf}, {20, 30, nan}, {34, 18, -inf}})
    for (kernel const which : {kernel::block, kernel::panels, kernel::registers}) {
      if (which == kernel::registers && !fits_registers(m, n)) continue;
      std::vector<matrix<T>> batch;
      for (int b = 0; b < 3; ++b) batch.push_back(normal<T>(m, n, b));
      auto const clean = decompose<T>(batch, 64, true, which);
      batch[1](m - 1, n / 2) = bad;
      int const k = std::min(m, n);
      auto const d = decompose<T>(batch, 64, true, which);
      CHECK(d.info == std::vector<std::int32_t>({0, -1, 0}));
      for (auto const& [part, whole, rows, columns] :
           {std::tuple{&d.q, &clean.q, m, k}, {&d.r, &clean.r, k, n}}) {
        auto const begin = part->entries.begin();
        auto const size = static_cast<std::ptrdiff_t>(rows) * columns;
        CHECK(std::all_of(begin + size, begin + 2 * size, is_nan));
        CHECK(std::equal(begin, begin + size, whole->entries.begin()));
        CHECK(std::equal(begin + 2 * size, begin + 3 * size, whole->entries.begin() + 2 * size));
      }
      CHECK(decompose<T>(batch, 64, false, which).info == std::vector<std::int32_t>({0, 0, 0}));
    }
}

/// The parts that svd.cu takes, by a warp and by a block: Q R = A and Q (Q^T) = I.
template <class T, class MakeTeam>
void parts(int threads, MakeTeam&& make_team) {
  using shape = std::array<int, 3>;
  for (shape const& each : {shape{37, 9, 4}, {64, 32, 32}, {9, 30, 6}, {40, 40, 1}, {300, 5, 7}}) {
    int const m = each[0], n = each[1], columns = each[2];
    int const k = std::min(m, n), lda = m + 3, ldc = m + 1;
    matrix<T> const a = normal<T>(m, n, 8);
    std::vector<T> f(static_cast<std::size_t>(lda) * n, T(77)), tau(k);
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) f[j * lda + i] = a(i, j) / 4;
    matrix<T> const c = normal<T>(m, columns, 9);
    std::vector<T> product(static_cast<std::size_t>(ldc) * columns, T(77));
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < columns; ++j) product[j * ldc + i] = i < k ? c(i, j) : T(0);
    matrix<T> r(k, n);
    host_block::launch(threads, [&](host_lanes const& lanes) {
      auto const team = make_team(lanes);
      if (lanes.rank() >= team.size()) return;
      householder_factor(team, f.data(), m, n, lda, tau.data());
      for (int j = team.rank(); j < n; j += team.size())
        for (int i = 0; i <= j && i < k; ++i) r(i, j) = f[j * lda + i];
      householder_apply_q(team, f.data(), m, k, lda, tau.data(), product.data(), ldc, columns);
      team.sync();
      householder_form_q(team, f.data(), m, k, lda, tau.data());
    });
    decomposition<T> d{matrix<T>(m, k), r, {0}};
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < k; ++j) d.q(i, j) = f[j * lda + i];
    for (T& v : d.r.entries) v *= 4;
    check_decomposition(a, d, 0, "parts");
    double worst = 0;
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < columns; ++j) {
        double sum = product[j * ldc + i];
        for (int l = 0; l < k; ++l) sum -= static_cast<double>(d.q(i, l)) * c(l, j);
        worst = std::max(worst, std::abs(sum));
      }
    CHECK(worst < 50 * m * static_cast<double>(std::numeric_limits<T>::epsilon()));
    for (int j = 0; j < n; ++j)  // what lies between the columns is nobody's
      CHECK(std::all_of(&f[j * lda + m], f.data() + (j + 1) * lda, [](T v) { return v == 77; }));
    for (int j = 0; j < columns; ++j) CHECK(product[j * ldc + m] == 77);
  }
}

template <class T>
void parts_by_teams() {
  parts<T>(32, [](host_lanes const& lanes) { return warp_team(lanes); });
  double scratch[32];
  auto const block = [&](host_lanes const& lanes) { return block_team(lanes, scratch); };
  parts<T>(32, block);
  parts<T>(96, block);
}

}  // namespace

TEST(random_matrices_float) { random_matrices<float>(); }
TEST(random_matrices_double) { random_matrices<double>(); }
TEST(special_matrices_float) { special_matrices<float>(); }
TEST(special_matrices_double) { special_matrices<double>(); }
TEST(graded_columns_float) { graded_columns_keep_their_accuracy<float>(); }
TEST(graded_columns_double) { graded_columns_keep_their_accuracy<double>(); }
TEST(non_finite_float) { non_finite_matrices<float>(); }
TEST(non_finite_double) { non_finite_matrices<double>(); }
TEST(parts_float) { parts_by_teams<float>(); }
TEST(parts_double) { parts_by_teams<double>(); }

int main() { return check::run_all(); }
