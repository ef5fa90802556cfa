#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.hpp"
#include "detail/jacobi_memory.hpp"
#include "detail/jacobi_registers.hpp"
#include "detail/small_product.hpp"
#include "host_lanes.hpp"

// The bodies of the CUDA kernels of svd and eigh, on emulated threads.

using namespace subspan::gpu;

namespace {

template <class T>
struct factors {
  std::vector<T> values, left, right;  // left [m, k], right: vector j in column j of [n, k]
  std::vector<std::int32_t> info;
};

template <class T>
struct problem {
  int rows, cols, batch;
  std::vector<T> a;  // [batch, rows, cols]
  bool check_finite = true;

  jacobi_task<T> task(factors<T>& out, index_t b) const {
    index_t const m = rows, n = cols;
    return {a.data() + b * m * n,
            n,
            1,
            rows,
            cols,
            out.values.data() + b * n,
            out.left.empty() ? nullptr : out.left.data() + b * m * n,
            n,
            1,
            out.right.empty() ? nullptr : out.right.data() + b * n * n,
            n,
            1,
            out.info.data() + b,
            check_finite};
  }
  factors<T> room(bool vectors) const {
    std::size_t const b = batch, m = rows, n = cols;
    T const poison = T(-77);
    return {std::vector<T>(b * n, poison), std::vector<T>(vectors ? b * m * n : 0, poison),
            std::vector<T>(vectors ? b * n * n : 0, poison), std::vector<std::int32_t>(b, -7)};
  }
};

template <spectral Kind, class T, int Size, bool Vectors>
factors<T> in_registers(problem<T> const& p) {
  factors<T> out = p.room(Vectors);
  int const per_warp = k_warp / Size;
  for (int first = 0; first < p.batch; first += per_warp)
    host_block::launch(k_warp, [&](host_lanes const& lanes) {
      jacobi_in_registers<Kind, T, Size, Vectors>(
          lanes, [&](index_t b) { return p.task(out, b); }, first, p.batch);
    });
  return out;
}

template <spectral Kind, class T, int Width, int Kept, bool Vectors>
factors<T> in_memory(problem<T> const& p, int threads) {
  factors<T> out = p.room(Vectors);
  std::vector<T> memory(jacobi_layout::of(p.rows, p.cols, Width, Kept, true).size);
  std::vector<double> scratch(32);
  for (int b = 0; b < p.batch; ++b)
    host_block::launch(threads, [&](host_lanes const& lanes) {
      if (threads == k_warp)
        jacobi_in_memory<Kind, T, Width, Kept, Vectors>(warp_team(lanes), p.task(out, b),
                                                        memory.data());
      else
        jacobi_in_memory<Kind, T, Width, Kept, Vectors>(block_team(lanes, scratch.data()),
                                                        p.task(out, b), memory.data());
    });
  return out;
}

/// Largest of LAPACK's test ratios of one matrix: residual, orthogonality, order.
template <spectral Kind, class T>
double ratio(problem<T> const& p, factors<T> const& f, int b) {
  int const m = p.rows, n = p.cols;
  double const ulp = std::numeric_limits<T>::epsilon();
  T const* a = p.a.data() + std::size_t(b) * m * n;
  T const* s = f.values.data() + std::size_t(b) * n;
  T const* v = f.right.data() + std::size_t(b) * n * n;
  T const* u = Kind == spectral::svd ? f.left.data() + std::size_t(b) * m * n : v;
  auto const entry = [&](int i, int j) -> double {
    return Kind == spectral::eigh && j > i ? a[j * n + i] : a[i * n + j];
  };
  double norm = 0, residual = 0, left = 0, right = 0;
  for (int j = 0; j < n; ++j) {
    double column = 0, off = 0, uu = 0, vv = 0;
    for (int i = 0; i < m; ++i) {
      double product = 0;
      for (int l = 0; l < n; ++l)
        product += double(u[i * n + l]) * double(s[l]) * double(v[j * n + l]);
      column += std::abs(entry(i, j));
      off += std::abs(entry(i, j) - product);
    }
    for (int l = 0; l < n; ++l) {
      double du = 0, dv = 0;
      for (int i = 0; i < m; ++i) du += double(u[i * n + j]) * double(u[i * n + l]);
      for (int i = 0; i < n; ++i) dv += double(v[i * n + j]) * double(v[i * n + l]);
      uu += std::abs(du - (j == l));
      vv += std::abs(dv - (j == l));
    }
    norm = std::max(norm, column);
    residual = std::max(residual, off);
    left = std::max(left, uu);
    right = std::max(right, vv);
  }
  double worst = std::max(left / (m * ulp), right / (n * ulp));
  if (norm > 0) worst = std::max(worst, residual / norm / (std::max(m, n) * ulp));
  if (norm == 0 && residual > 0) worst = 1e9;
  for (int j = 0; j + 1 < n; ++j)
    if (Kind == spectral::svd ? s[j] < s[j + 1] : s[j] > s[j + 1]) worst = 1e9;
  if (Kind == spectral::svd && n > 0 && !(s[n - 1] >= 0)) worst = 1e9;
  return f.info[b] == 0 && worst == worst ? worst : 1e9;
}

/// Matrices that are hard in different ways, one after the other in a batch.
template <class T>
problem<T> hard(int rows, int cols) {
  std::mt19937 random(rows * 100 + cols);
  std::normal_distribution<double> normal;
  std::vector<std::vector<T>> all;
  auto const add = [&](auto&& entry) {
    std::vector<T> a;
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < cols; ++j) a.push_back(static_cast<T>(entry(i, j)));
    all.push_back(a);
  };
  T const tiny = std::numeric_limits<T>::min(), huge = std::numeric_limits<T>::max();
  add([&](int, int) { return normal(random); });
  add([](int, int) { return 0; });
  add([](int i, int j) { return i == j; });
  add([](int, int) { return 1; });                             // rank one
  add([](int i, int j) { return i == j ? -3 : 0; });           // equal values
  add([](int i, int j) { return j == 0 ? 0 : i + j; });        // a zero column
  add([](int i, int j) { return (i * 7 + j / 2 * 5) % 11; });  // columns twice
  add([&](int, int j) { return normal(random) * std::pow(10.0, -30.0 * j / cols); });
  add([&](int i, int) { return normal(random) * std::pow(10.0, -30.0 * i / rows); });
  add([&](int, int) { return normal(random) * double(tiny) * 0.3; });
  add([&](int, int) { return std::fmod(normal(random), 1.0) * double(huge) / 64; });
  add([](int i, int j) { return 1.0 / (i + j + 1); });  // Hilbert
  add([](int i, int j) { return i == j ? 1 + 1e-6 * i : 1e-7; });
  add([](int i, int j) { return j % 3 == 1 ? 0 : (i * i + 3 * j) % 7 - 3.0; });
  problem<T> p{rows, cols, static_cast<int>(all.size()), {}};
  for (auto const& a : all) p.a.insert(p.a.end(), a.begin(), a.end());
  return p;
}

template <spectral Kind, class T>
void check_all(problem<T> const& p, factors<T> const& f, factors<T> const& values,
               char const* what) {
  for (int b = 0; b < p.batch; ++b) {
    double const worst = ratio<Kind>(p, f, b);
    if (!(worst <= 30))
      std::printf("%s %d x %d, matrix %d: ratio %g, info %d\n", what, p.rows, p.cols, b, worst,
                  f.info[b]);
    CHECK(worst <= 30);
    double norm = 0;
    for (int j = 0; j < p.cols; ++j)
      norm = std::max<double>(norm, std::abs(f.values[b * p.cols + j]));
    for (int j = 0; j < p.cols; ++j)
      CHECK(std::abs(double(f.values[b * p.cols + j]) - double(values.values[b * p.cols + j])) <=
            60 * p.rows * std::numeric_limits<T>::epsilon() * norm);
  }
}

template <class T, int Size>
void check_registers(int rows, int cols) {
  problem<T> const p = hard<T>(rows, cols);
  check_all<spectral::svd>(p, in_registers<spectral::svd, T, Size, true>(p),
                           in_registers<spectral::svd, T, Size, false>(p), "svd");
  if (rows == cols)
    check_all<spectral::eigh>(p, in_registers<spectral::eigh, T, Size, true>(p),
                              in_registers<spectral::eigh, T, Size, false>(p), "eigh");
}

template <class T, int Width, int Kept>
void check_memory(int rows, int cols, int threads) {
  problem<T> const p = hard<T>(rows, cols);
  check_all<spectral::svd>(p, in_memory<spectral::svd, T, Width, Kept, true>(p, threads),
                           in_memory<spectral::svd, T, Width, Kept, false>(p, threads), "svd");
  if (rows == cols)
    check_all<spectral::eigh>(p, in_memory<spectral::eigh, T, Width, Kept, true>(p, threads),
                              in_memory<spectral::eigh, T, Width, Kept, false>(p, threads), "eigh");
}

}  // namespace

TEST(columns_in_registers) {
  check_registers<float, 4>(3, 3);
  check_registers<float, 4>(4, 2);
  check_registers<float, 4>(1, 1);
  check_registers<double, 4>(4, 4);
  check_registers<float, 8>(8, 5);
  check_registers<double, 8>(7, 7);
  check_registers<float, 16>(16, 16);
  check_registers<double, 16>(13, 9);
  check_registers<float, 32>(17, 17);
}

TEST(columns_in_memory) {
  check_memory<float, 8, 4>(3, 3, 32);
  check_memory<float, 8, 4>(32, 1, 32);
  check_memory<float, 8, 8>(60, 3, 32);
  check_memory<double, 8, 8>(33, 33, 64);
  check_memory<float, 8, 12>(70, 20, 96);
  check_memory<double, 32, 0>(130, 7, 64);
  check_memory<float, 32, 0>(25, 25, 64);
}

TEST(a_bad_matrix_is_nan_and_the_others_are_as_if_alone) {
  for (float const bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    problem<float> p = hard<float>(6, 5);
    factors<float> const clean = in_registers<spectral::svd, float, 8, true>(p);
    p.a[2 * 30 + 17] = bad;
    for (bool const memory : {false, true}) {
      factors<float> const f = memory ? in_memory<spectral::svd, float, 8, 4, true>(p, 32)
                                      : in_registers<spectral::svd, float, 8, true>(p);
      CHECK(f.info[2] == -1 && f.info[1] == 0 && f.info[3] == 0);
      for (int i = 0; i < 5; ++i) CHECK(std::isnan(f.values[2 * 5 + i]));
      for (int i = 0; i < 30; ++i) CHECK(std::isnan(f.left[2 * 30 + i]));
      for (int i = 0; i < 25; ++i) CHECK(std::isnan(f.right[2 * 25 + i]));
      if (memory) continue;
      for (int i = 0; i < 30 * p.batch; ++i) CHECK(i / 30 == 2 || f.left[i] == clean.left[i]);
    }
  }
}

TEST(transposed_and_strided_input) {
  problem<double> const p = hard<double>(9, 4);
  factors<double> const wanted = in_memory<spectral::svd, double, 16, 4, true>(p, 32);
  factors<double> out = p.room(true);
  std::vector<double> turned(p.a.size()), memory(jacobi_layout::of(9, 4, 16, 4, true).size);
  for (int b = 0; b < p.batch; ++b)
    for (int i = 0; i < 9; ++i)
      for (int j = 0; j < 4; ++j) turned[b * 36 + j * 9 + i] = p.a[b * 36 + i * 4 + j];
  for (int b = 0; b < p.batch; ++b) {
    jacobi_task<double> task = p.task(out, b);
    task.a = turned.data() + b * 36 + 8;  // rows from the last to the first
    task.row_stride = -1;
    task.col_stride = 9;
    host_block::launch(k_warp, [&](host_lanes const& lanes) {
      jacobi_in_memory<spectral::svd, double, 16, 4, true>(warp_team(lanes), task, memory.data());
    });
    for (int j = 0; j < 4; ++j)
      CHECK(std::abs(out.values[b * 4 + j] - wanted.values[b * 4 + j]) <=
            1e-14 * std::abs(wanted.values[b * 4]));
  }
}

TEST(tall_times_small) {
  using product = small_product<float>;
  for (auto const [rows, inner, cols] : {std::array{1, 1, 1}, std::array{65, 17, 70},
                                         std::array{130, 64, 3}, std::array{64, 100, 64}}) {
    int const batch = 2;
    std::mt19937 random(rows);
    std::vector<float> a(batch * rows * inner), w(batch * inner * cols);
    for (float& x : a) x = static_cast<float>(random() % 7) - 3;  // exact in any order
    for (float& x : w) x = static_cast<float>(random() % 5) - 2;
    std::vector<float> out(batch * rows * cols, -77), memory(product::shared);
    // Column-major output.
    product const p{a.data(), w.data(), out.data(), rows * cols, 1, rows, batch, rows, inner, cols};
    for (std::int64_t job = 0; job < batch * product::tiles(rows, cols); ++job)
      host_block::launch(product::threads,
                         [&](host_lanes const& lanes) { p.run(lanes, job, memory.data()); });
    for (int b = 0; b < batch; ++b)
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < cols; ++j) {
          float sum = 0;
          for (int l = 0; l < inner; ++l)
            sum += a[(b * rows + i) * inner + l] * w[(b * inner + l) * cols + j];
          CHECK(out[(b * cols + j) * rows + i] == sum);
        }
  }
}

int main() { return check::run_all(); }
