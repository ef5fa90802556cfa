// The bodies of the kernels of kernel_matvec.cu, in the order in which it runs them, against sums in
// float64 by the definition.

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "check.hpp"
#include "detail/kernel_functions.hpp"
#include "detail/kernel_packing.hpp"
#include "host_lanes.hpp"

using namespace subspan;
using gpu::host_block;
using gpu::host_lanes;
using gpu::kernel_form;
using gpu::kernel_task;

namespace {

std::mt19937 generator(11);

std::vector<double> normal(index_t count, double scale = 1) {
  std::normal_distribution<double> draw;
  std::vector<double> out(static_cast<std::size_t>(count));
  for (double& v : out) v = scale * draw(generator);
  return out;
}

/// [batch][rows][columns] in C order.
template <class T>
struct matrices {
  index_t batch, rows;
  int columns;
  std::vector<T> data;

  matrices(index_t b, index_t n, int d, double scale = 1) : batch(b), rows(n), columns(d) {
    for (double const v : normal(b * n * d, scale)) data.push_back(static_cast<T>(v));
  }
  gpu::kernel_array<T> view() const {
    return {data.data(), {rows * columns, columns, 1}, rows, columns};
  }
  T& at(index_t b, index_t i, int c) {
    return data[static_cast<std::size_t>((b * rows + i) * columns + c)];
  }
};

/// Of kernel_matvec.cu, with the launches as loops.
template <class T>
struct host_call {
  using shape = gpu::kernel_shape<T>;

  kernel_params how;
  gpu::kernel_array<T> x, y;
  index_t batch;
  std::vector<double> bandwidth;
  bool exchanged = false;
  bool in_parts = false;  // every segment by a block of its own
  bool bare = false;      // no few coordinates in registers
  bool halves = true;     // products of float by tensor cores

  std::vector<double> centre = {}, nowhere = {}, scale_x = {}, scale_y = {};
  std::vector<T> x_panels = {}, y_panels = {}, x_norms = {}, y_norms = {};
  std::vector<T> x_more = {}, y_more = {}, greatest = {};
  std::vector<gpu::split_lot> x_split = {}, y_split = {};
  std::vector<float> x_factors = {}, y_factors = {};
  std::vector<double> sums = {};

  bool radial() const { return detail::is_radial(how.function); }
  index_t x_tiles() const { return (x.rows + shape::rows - 1) / shape::rows; }
  index_t y_tiles() const { return (y.rows + shape::rows - 1) / shape::rows; }

  void take_mean(gpu::kernel_array<T> const& a) {
    index_t const parts = 3, size = 64;
    int const across = 8;
    std::vector<double> partial(static_cast<std::size_t>(parts * 2 * a.columns));
    for (index_t b = 0; b < batch; ++b) {
      for (index_t p = 0; p < parts; ++p)
        for (int column = 0; column < a.columns; column += across) {
          std::vector<double> memory(2 * size);
          host_block::launch(size, [&](host_lanes const& lanes) {
            gpu::sum_finite(lanes, memory.data(), a, b, column, across, p * a.rows / parts,
                            (p + 1) * a.rows / parts, partial.data() + p * 2 * a.columns);
          });
        }
      for (int c = 0; c < a.columns; ++c)
        centre[b * a.columns + c] = gpu::mean_of_parts(partial.data(), parts, a.columns, c);
    }
  }

  template <class Source>
  static std::vector<T> packed(Source const& source, index_t tiles, index_t batch, int size) {
    std::vector<T> out(static_cast<std::size_t>(batch * tiles * size * shape::rows), T(99));
    for (index_t i = 0; i < batch * tiles * shape::rows; ++i)
      gpu::pack_more(source, tiles, i, size, out.data());
    return out;
  }

  gpu::kernel_job<T> prepare(int depth, int sums_of_row, int more_depth, int x_size, int y_size) {
    double const scale = detail::scale_of(how);
    int const d = x.columns;
    for (int c = 0; c < d; ++c) {
      double const scaled = scale / bandwidth[static_cast<std::size_t>(c)];
      scale_x.push_back(radial() || !exchanged ? scaled : 1.0);
      scale_y.push_back(radial() || exchanged ? scaled : 1.0);
    }
    centre.assign(static_cast<std::size_t>(batch * d), 0.0);
    nowhere = centre;
    if (radial() || how.function == kernel_function::softmax) take_mean(exchanged ? x : y);
    auto const pack = [&](gpu::kernel_array<T> const& a, index_t tiles, double const* from,
                          double const* scales, std::vector<T>& panels, std::vector<T>& norms) {
      index_t const points = batch * tiles * shape::rows;
      panels.assign(static_cast<std::size_t>(points * depth), T(99));
      norms.assign(static_cast<std::size_t>(points), T(99));
      for (index_t i = 0; i < points; ++i)
        gpu::pack_point(a, tiles, i, from, scales, depth, panels.data(), norms.data());
    };
    pack(x, x_tiles(), radial() ? centre.data() : nowhere.data(), scale_x.data(), x_panels,
         x_norms);
    pack(y, y_tiles(), centre.data(), scale_y.data(), y_panels, y_norms);
    kernel_form const form = !radial() ? kernel_form::products
                             : d <= 8  ? kernel_form::differences
                                       : kernel_form::expanded;
    index_t const runs = gpu::kernel_job<T>::runs_of_segment(y_tiles());
    gpu::kernel_job<T> job{{how, form, depth, more_depth, sums_of_row, radial(), !exchanged},
                           x_size,
                           y_size,
                           y.rows,
                           x_tiles(),
                           y_tiles(),
                           runs,
                           (y_tiles() + runs - 1) / runs,
                           x_panels.data(),
                           y_panels.data(),
                           x_norms.data(),
                           y_norms.data(),
                           x_more.data(),
                           y_more.data(),
                           nullptr,
                           nullptr,
                           nullptr,
                           nullptr,
                           0,
                           2,
                           nullptr,
                           nullptr};
    if constexpr (std::is_same_v<T, float>)
      if (form != kernel_form::differences && halves) {
        split<false>(x_panels, depth, x_tiles(), x_split, x_factors);
        split<true>(y_panels, depth, y_tiles(), y_split, y_factors);
        job.x_split = x_split.data();
        job.y_split = y_split.data();
        job.x_factors = x_factors.data();
        job.y_factors = y_factors.data();
      }
    if (in_parts) job.slots = std::max<index_t>(job.segments + 1, 3);
    auto const tiles = batch * x_tiles();
    sums.assign(static_cast<std::size_t>(tiles * job.slots * sums_of_row * shape::rows), 7e77);
    greatest.assign(static_cast<std::size_t>(tiles * job.slots * shape::rows), T(7e7));
    job.sums = sums.data();
    job.greatest = greatest.data();
    return job;
  }

  template <bool Left>
  void split(std::vector<float> const& panels, int depth, index_t tiles,
             std::vector<gpu::split_lot>& lots, std::vector<float>& factors) {
    index_t const points = batch * tiles * shape::rows;
    factors.resize(static_cast<std::size_t>(points));
    for (index_t i = 0; i < points; ++i) factors[i] = gpu::split_factor_of(panels.data(), i, depth);
    index_t const count = batch * tiles * gpu::split_steps(depth) * gpu::k_split_lots;
    lots.resize(static_cast<std::size_t>(count));
    for (index_t i = 0; i < count; ++i)
      gpu::split_points<Left>(panels.data(), factors.data(), i, depth, lots.data());
  }

  template <kernel_task Task>
  void finish(gpu::kernel_job<T> const& job, gpu::kernel_results<T> const& to) {
    for (index_t tile = 0; tile < batch * x_tiles(); ++tile)
      for (int row = 0; row < shape::rows; ++row) {
        if (job.slots > 2) {
          gpu::clear_row<Task>(job, tile, row);
          for (index_t slot = 1; slot <= job.segments; ++slot)
            gpu::merge_row<Task>(job, tile, row, slot);
        }
        gpu::finish_row<Task>(job, to, tile, row);
      }
  }

  template <kernel_task Task>
  void sum(gpu::kernel_job<T> const& job, gpu::kernel_results<T> const& to) {
    auto const memory = std::make_unique<gpu::kernel_memory<T>>();
    index_t const parts = job.slots > 2 ? job.segments : 1;
    for (index_t tile = 0; tile < batch * x_tiles(); ++tile)
      for (index_t p = 0; p < parts; ++p)
        host_block::launch(shape::threads, [&](host_lanes const& lanes) {
          gpu::sum_segments<Task>(lanes, *memory, job, tile, p * job.segments / parts,
                                  (p + 1) * job.segments / parts);
        });
    finish<Task>(job, to);
  }

  template <int Coordinates, int Sums>
  void sum_few(gpu::kernel_job<T> const& job, gpu::kernel_results<T> const& to) {
    using few = gpu::few_shape<T, Coordinates, Sums>;
    std::vector<gpu::lot_of<T>> memory(few::memory / gpu::lot_of<T>::size);
    index_t const parts = job.slots > 2 ? job.segments : 1;
    for (index_t block = 0; block < batch * few::blocks(x_tiles()); ++block)
      for (index_t p = 0; p < parts; ++p)
        host_block::launch(few::threads, [&](host_lanes const& lanes) {
          gpu::sum_few<T, Coordinates, Sums>(lanes, memory[0].at, job, block,
                                             p * job.segments / parts,
                                             (p + 1) * job.segments / parts);
        });
    finish<kernel_task::product>(job, to);
  }

  static int rounded_up(int n) {
    return (n + gpu::k_depth_step - 1) / gpu::k_depth_step * gpu::k_depth_step;
  }

  gpu::kernel_results<T> results(std::vector<T>& out, int columns, double* more = nullptr) {
    out.assign(static_cast<std::size_t>(batch * x.rows * columns), T(55));
    return {x,
            out.data(),
            columns,
            0,
            more,
            detail::factor_of_gradient(how),
            centre.data(),
            scale_x.data()};
  }

  std::vector<T> product(gpu::kernel_array<T> const& v, double* lse = nullptr) {
    bool const softmax = how.function == kernel_function::softmax;
    int const d = x.columns, e = v.columns;
    bool const few = !bare && radial() && d <= 8 && e <= 4;
    int const depth = !few ? rounded_up(d) : d <= 3 ? 3 : d <= 5 ? 5 : 8;
    int const all = few ? (e == 1 ? 1 : 4) : e + softmax;
    y_more = packed(gpu::kernel_columns<T>{v, softmax}, y_tiles(), batch, all);
    auto const job = prepare(depth, all, all, 0, all);
    std::vector<T> out;
    auto const to = results(out, e, lse);
    if (softmax)
      sum<kernel_task::softmax>(job, to);
    else if (!few)
      sum<kernel_task::product>(job, to);
    else if (depth == 3)
      all == 1 ? sum_few<3, 1>(job, to) : sum_few<3, 4>(job, to);
    else if (depth == 5)
      all == 1 ? sum_few<5, 1>(job, to) : sum_few<5, 4>(job, to);
    else
      all == 1 ? sum_few<8, 1>(job, to) : sum_few<8, 4>(job, to);
    return out;
  }

  std::vector<T> gradient(gpu::kernel_array<T> const& v, gpu::kernel_array<T> const& g) {
    int const size = rounded_up(v.columns);
    x_more = packed(gpu::kernel_columns<T>{g, false}, x_tiles(), batch, size);
    y_more = packed(gpu::kernel_columns<T>{v, false}, y_tiles(), batch, size);
    auto const job = prepare(rounded_up(x.columns), x.columns, size, size, size);
    std::vector<T> out;
    sum<kernel_task::gradient>(job, results(out, x.columns));
    return out;
  }

  std::vector<T> logs(gpu::kernel_array<T> const& v, double* parts = nullptr) {
    std::vector<T> out;
    auto to = results(out, v.columns, parts);
    for (; to.column < v.columns; ++to.column) {
      y_more = packed(gpu::kernel_logs<T>{v, to.column}, y_tiles(), batch, 1);
      scale_x.clear();
      scale_y.clear();
      sum<kernel_task::logs>(prepare(rounded_up(x.columns), 1, 1, 0, 1), to);
    }
    return out;
  }

  std::vector<T> of_terms(gpu::kernel_array<double> const& of_x,
                          gpu::kernel_array<double> const& of_y, bool slopes) {
    x_more = packed(gpu::kernel_terms<T>{of_x}, x_tiles(), batch, 2);
    y_more = packed(gpu::kernel_terms<T>{of_y}, y_tiles(), batch, 2);
    auto const job = prepare(rounded_up(x.columns), slopes ? x.columns : 1, 2, 2, 2);
    std::vector<T> out;
    if (slopes)
      sum<kernel_task::term_gradient>(job, results(out, x.columns));
    else
      sum<kernel_task::terms>(job, results(out, 1));
    return out;
  }
};

constexpr kernel_function k_all[] = {
    kernel_function::gaussian,   kernel_function::laplacian, kernel_function::matern32,
    kernel_function::matern52,   kernel_function::cauchy,    kernel_function::rational_quadratic,
    kernel_function::exp_dot,    kernel_function::softmax,   kernel_function::linear,
    kernel_function::polynomial, kernel_function::distance,  kernel_function::sqdistance};

kernel_params params(kernel_function f) { return {f, 0.7, 3, 0.5, 0}; }

/// K as a function of D and P, by the definition.
double kernel_of(kernel_params const& how, double square, double product) {
  double const d = std::sqrt(square), t3 = std::sqrt(3.0) * d, t5 = std::sqrt(5.0) * d;
  switch (how.function) {
    case kernel_function::gaussian:
      return std::exp(-square / 2);
    case kernel_function::laplacian:
      return std::exp(-d);
    case kernel_function::matern32:
      return (1 + t3) * std::exp(-t3);
    case kernel_function::matern52:
      return (1 + t5 + t5 * t5 / 3) * std::exp(-t5);
    case kernel_function::cauchy:
      return 1 / (1 + square);
    case kernel_function::rational_quadratic:
      return std::pow(1 + square / (2 * how.alpha), -how.alpha);
    case kernel_function::exp_dot:
    case kernel_function::softmax:
      return std::exp(product);
    case kernel_function::linear:
      return product;
    case kernel_function::polynomial:
      return std::pow(product + how.offset, how.degree);
    case kernel_function::distance:
      return d;
    default:
      return square;
  }
}

template <class T>
double kernel_at(host_call<T> const& call, index_t b, std::vector<double> const& x, index_t j) {
  double square = 0, product = 0;
  for (int c = 0; c < call.y.columns; ++c) {
    double const of_y = static_cast<double>(call.y(b, j, c)), w = call.bandwidth[c];
    square += (x[c] - of_y) * (x[c] - of_y) / (w * w);
    product += x[c] * of_y / w;
  }
  return kernel_of(call.how, square, product);
}
template <class T>
std::vector<double> row_of(gpu::kernel_array<T> const& a, index_t b, index_t i) {
  std::vector<double> row;
  for (int c = 0; c < a.columns; ++c) row.push_back(static_cast<double>(a(b, i, c)));
  return row;
}

/// The greatest error of K v, over the sum of |K v|.
template <class T>
double error_of(host_call<T> const& call, gpu::kernel_array<T> const& v,
                std::vector<T> const& out) {
  double worst = 0;
  int const e = v.columns;
  for (index_t b = 0; b < call.batch; ++b)
    for (index_t i = 0; i < call.x.rows; ++i) {
      std::vector<double> sum(e), size(e, 1e-300);
      double mass = 0;
      auto const row = row_of(call.x, b, i);
      for (index_t j = 0; j < call.y.rows; ++j) {
        double const k = kernel_at(call, b, row, j);
        mass += k;
        for (int c = 0; c < e; ++c) {
          double const w = k * static_cast<double>(v(b, j, c));
          sum[c] += w;
          size[c] += std::abs(w);
        }
      }
      double const over = call.how.function == kernel_function::softmax ? mass : 1;
      for (int c = 0; c < e; ++c)
        worst = std::max(worst, std::abs(static_cast<double>(out[(b * call.x.rows + i) * e + c]) -
                                         sum[c] / over) /
                                    (size[c] / over));
    }
  return worst;
}

template <class T>
double tolerance(double units) {
  return units * static_cast<double>(std::numeric_limits<T>::epsilon());
}

std::vector<double> widths(int d) {
  std::vector<double> out;
  for (int c = 0; c < d; ++c) out.push_back(std::sqrt(d) * (1 + 0.1 * (c % 5)));
  return out;
}

template <class T>
void check_product(kernel_function f, index_t batch, index_t n, index_t m, int d, int e,
                   bool in_parts = false, bool bare = false) {
  matrices<T> const x(batch, n, d), y(batch, m, d), v(batch, m, e);
  host_call<T> call{params(f), x.view(), y.view(), batch, widths(d), false, in_parts, bare};
  double const error = error_of(call, v.view(), call.product(v.view()));
  // Products lose what they are smaller than their terms.
  bool const cancels = f == kernel_function::linear || f == kernel_function::polynomial;
  CHECK(error <= tolerance<T>(cancels ? 200 : 30));
}

}  // namespace

TEST(every_kernel_in_registers_and_in_tiles) {
  for (kernel_function const f : k_all)
    for (bool const bare : {false, true}) {
      check_product<float>(f, 1, 40, 150, 3, 1, false, bare);
      check_product<double>(f, 1, 20, 70, 3, 1, false, bare);
    }
  for (kernel_function const f : k_all) {
    check_product<float>(f, 1, 30, 140, 20, 1);
    check_product<double>(f, 1, 20, 70, 20, 3);
  }
}

TEST(sizes_of_all_sides) {
  auto const gauss = kernel_function::gaussian, soft = kernel_function::softmax;
  for (int const d : {0, 1, 2, 4, 5, 6, 8, 9, 17, 33})
    for (int const e : {1, 4, 33}) {
      check_product<float>(gauss, 1, 7, 131, d, e);
      if (d % 4 == 1) check_product<double>(soft, 1, 3, 70, d, e);
    }
  for (index_t const n : {1, 128, 129, 513})
    for (index_t const m : {1, 2, 128, 129}) check_product<float>(gauss, 1, n, m, 2, 1);
  check_product<float>(gauss, 3, 140, 150, 3, 2);
  check_product<float>(gauss, 2, 140, 150, 12, 2);
  check_product<double>(soft, 3, 70, 80, 4, 2);
}

TEST(segments_have_the_same_bits_by_one_block_and_by_many) {
  for (kernel_function const f : {kernel_function::gaussian, kernel_function::softmax})
    for (int const d : {3, 10})
      for (int const e : {1, 6}) {
        if (f == kernel_function::softmax && d + e != 9) continue;
        matrices<float> const x(1, 20, d), y(1, 1200, d), v(1, 1200, e);
        host_call<float> one{params(f), x.view(), y.view(), 1, widths(d)};
        host_call<float> many = one;
        many.in_parts = true;
        auto const whole = one.product(v.view());
        CHECK(error_of(one, v.view(), whole) <= tolerance<float>(30));
        CHECK(many.product(v.view()) == whole);
      }
  // Segments grow where there would be more than 64 of them.
  CHECK_EQUAL(gpu::kernel_job<float>::runs_of_segment(1), 8);
  CHECK_EQUAL(gpu::kernel_job<float>::runs_of_segment(64 * 8), 8);
  CHECK_EQUAL(gpu::kernel_job<float>::runs_of_segment(64 * 8 + 1), 9);
  CHECK_EQUAL(gpu::kernel_job<double>::runs_of_segment(100), 16);
}

TEST(near_points_are_met_by_differences) {
  int const d = 40, n = 100;
  matrices<float> x(1, n, d);
  for (int i = 0; i < n; ++i)
    for (int c = 0; c < d; ++c) x.at(0, i, c) = x.at(0, i % 6, c) + 1e-3f * x.at(0, i, c);
  std::vector<double> const b(d, 1e-3 * std::sqrt(d));
  host_call<float> call{params(kernel_function::distance), x.view(), x.view(), 1, b};
  matrices<float> unit(1, n, n);
  for (int i = 0; i < n; ++i)
    for (int k = 0; k < n; ++k) unit.at(0, i, k) = i == k;
  auto const out = call.product(unit.view());
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) {
      double const wanted = kernel_at(call, 0, row_of(call.x, 0, i), j);
      CHECK(std::abs(out[i * n + j] - wanted) <= 1e-4 * wanted + (i == j ? 0 : 1e-6));
    }
}

TEST(a_common_offset_costs_nothing) {
  matrices<float> x(1, 50, 12), y(1, 200, 12), v(1, 200, 1);
  for (auto* const a : {&x, &y})
    for (float& value : a->data) value = std::round(value * 4096) / 4096 + 100;
  host_call<float> call{params(kernel_function::gaussian), x.view(), y.view(), 1, widths(12)};
  CHECK(error_of(call, v.view(), call.product(v.view())) <= tolerance<float>(30));
}

TEST(softmax_with_great_scores_and_its_logarithm) {
  matrices<float> const x(2, 30, 8, 300), y(2, 1200, 8), v(2, 1200, 2);
  host_call<float> call{params(kernel_function::softmax), x.view(), y.view(), 2,
                        std::vector<double>(8, 1.0)};
  std::vector<double> lse(60);
  auto const out = call.product(v.view(), lse.data());
  for (index_t b = 0; b < 2; ++b)
    for (index_t i = 0; i < 30; ++i) {
      auto const row = row_of(call.x, b, i);
      double most = -1e300, mass = 0, sum[2] = {};
      for (int turn = 0; turn < 2; ++turn)
        for (index_t j = 0; j < 1200; ++j) {
          double p = 0;
          for (int c = 0; c < 8; ++c) p += row[c] * static_cast<double>(call.y(b, j, c));
          if (turn == 0) {
            most = std::max(most, p);
            continue;
          }
          mass += std::exp(p - most);
          for (int k = 0; k < 2; ++k) sum[k] += std::exp(p - most) * v.view()(b, j, k);
        }
      CHECK(std::abs(lse[b * 30 + i] - most - std::log(mass)) <= 1e-6 * std::abs(most) + 1e-4);
      for (int k = 0; k < 2; ++k)
        CHECK(std::abs(out[(b * 30 + i) * 2 + k] - sum[k] / mass) <= 5e-3);
    }
}

TEST(gradients_are_finite_differences) {
  for (kernel_function const f : k_all) {
    if (f == kernel_function::softmax) continue;
    for (int const d : {3, 11}) {
      index_t const n = 5, m = 90;
      int const e = d == 3 ? 1 : 6;
      matrices<double> const x(2, n, d), y(2, m, d), v(2, m, e), g(2, n, e);
      host_call<double> call{params(f), x.view(), y.view(), 2, widths(d)};
      auto const out = call.gradient(v.view(), g.view());
      auto const loss = [&](index_t b, index_t i, std::vector<double> const& row) {
        double sum = 0;
        for (index_t j = 0; j < m; ++j)
          for (int k = 0; k < e; ++k)
            sum += g.view()(b, i, k) * kernel_at(call, b, row, j) * v.view()(b, j, k);
        return sum;
      };
      for (index_t b = 0; b < 2; ++b)
        for (index_t i = 0; i < n; ++i)
          for (int c = 0; c < d; ++c) {
            auto row = row_of(call.x, b, i);
            double const step = 1e-5;
            row[c] += step;
            double const above = loss(b, i, row);
            row[c] -= 2 * step;
            double const wanted = (above - loss(b, i, row)) / (2 * step);
            CHECK(std::abs(out[(b * n + i) * d + c] - wanted) <= 1e-6 * (1 + std::abs(wanted)));
          }
    }
  }
}

TEST(the_gradient_of_a_point_and_itself_is_zero) {
  matrices<float> const x(1, 1, 3), v(1, 1, 1);
  for (kernel_function const f : {kernel_function::laplacian, kernel_function::distance}) {
    host_call<float> call{params(f), x.view(), x.view(), 1, widths(3)};
    for (float const of_x : call.gradient(v.view(), v.view())) CHECK_EQUAL(of_x, 0.0f);
  }
}

TEST(logarithms_do_not_underflow) {
  for (int const d : {2, 10})
    for (bool const in_parts : {false, true})
      for (kernel_function const f : k_all) {
        bool const usual = f == kernel_function::gaussian;
        if (!detail::has_logarithm(f) || (!usual && (in_parts || d == 2))) continue;
        index_t const n = 6, m = usual ? 1300 : 130;
        matrices<double> x(1, n, d, 60), y(1, m, d, 60), v(1, m, 2);
        for (double& w : v.data) w = w < -1 ? 0 : std::abs(w);
        host_call<double> call{params(f), x.view(), y.view(), 1, widths(d)};
        call.in_parts = in_parts;
        std::vector<double> parts(static_cast<std::size_t>(4 * n));
        auto const out = call.logs(v.view(), parts.data());
        for (index_t i = 0; i < n; ++i)
          for (int k = 0; k < 2; ++k) {
            auto const row = row_of(call.x, 0, i);
            std::vector<double> logs;
            for (index_t j = 0; j < m; ++j) {
              double square = 0, product = 0;
              for (int c = 0; c < d; ++c) {
                double const of_y = call.y(0, j, c), w = call.bandwidth[c];
                square += (row[c] - of_y) * (row[c] - of_y) / (w * w);
                product += row[c] * of_y / w;
              }
              double const r = std::sqrt(square), t3 = std::sqrt(3.0) * r, t5 = std::sqrt(5.0) * r;
              double const log_k =
                  f == kernel_function::gaussian    ? -square / 2
                  : f == kernel_function::laplacian ? -r
                  : f == kernel_function::matern32  ? std::log1p(t3) - t3
                  : f == kernel_function::matern52  ? std::log1p(t5 + t5 * t5 / 3) - t5
                  : f == kernel_function::exp_dot   ? product
                                                    : std::log(kernel_of(call.how, square, 0));
              logs.push_back(log_k + std::log(v.view()(0, j, k)));
            }
            double const most = *std::max_element(logs.begin(), logs.end());
            double mass = 0;
            for (double const log : logs) mass += std::exp(log - most);
            double const wanted = most + std::log(mass);
            CHECK(std::abs(out[i * 2 + k] - wanted) <= 1e-13 * (1 + std::abs(wanted)));
            double const again = parts[i * 4 + k] * std::log(2.0) + std::log(parts[i * 4 + 2 + k]);
            CHECK(std::abs(again - wanted) <= 1e-13 * (1 + std::abs(wanted)));
          }
      }
  matrices<float> const x(1, 2, 3);
  matrices<float> none(1, 2, 1);
  none.data = {0, 0};
  host_call<float> call{params(kernel_function::gaussian), x.view(), x.view(), 1, widths(3)};
  for (float const log : call.logs(none.view()))
    CHECK_EQUAL(log, -std::numeric_limits<float>::infinity());
}

TEST(terms_and_their_gradients) {
  for (kernel_function const f : k_all) {
    if (!detail::has_logarithm(f)) continue;
    for (bool const exchanged : {false, true}) {
      int const d = 4;
      index_t const n = 5, m = 100;
      matrices<double> const x(1, n, d), y(1, m, d);
      matrices<double> of_x(1, n, 2), of_y(1, m, 2);
      // Of the other side the scale is, so products are of the bandwidths of y there.
      host_call<double> call{params(f), x.view(), y.view(), 1, widths(d), exchanged};
      auto const weighed = [&](std::vector<double> const& row, index_t i) {
        double sum = 0;
        for (index_t j = 0; j < m; ++j)
          sum += std::exp2(of_x.at(0, i, 0) + of_y.at(0, j, 0)) * of_x.at(0, i, 1) *
                 of_y.at(0, j, 1) * kernel_at(call, 0, row, j);
        return sum;
      };
      auto const sums = call.of_terms(of_x.view(), of_y.view(), false);
      host_call<double> other{params(f), x.view(), y.view(), 1, widths(d), exchanged};
      auto const slopes = other.of_terms(of_x.view(), of_y.view(), true);
      for (index_t i = 0; i < n; ++i) {
        auto row = row_of(call.x, 0, i);
        double const wanted = weighed(row, i);
        CHECK(std::abs(sums[i] - wanted) <= 1e-12 * (10 + std::abs(wanted)));
        for (int c = 0; c < d; ++c) {
          row[c] += 1e-5;
          double const above = weighed(row, i);
          row[c] -= 2e-5;
          double const slope = (above - weighed(row, i)) / 2e-5;
          row[c] += 1e-5;
          CHECK(std::abs(slopes[i * d + c] - slope) <= 1e-6 * (1 + std::abs(slope)));
        }
      }
    }
  }
}

TEST(what_is_not_finite) {
  float const nan = std::numeric_limits<float>::quiet_NaN();
  for (int const d : {3, 12})
    for (int const e : {1, 6})
      for (kernel_function const f : {kernel_function::gaussian, kernel_function::softmax}) {
        matrices<float> x(1, 40, d), y(1, 50, d);
        matrices<float> const v(1, 50, e);
        x.at(0, 7, 1) = std::numeric_limits<float>::infinity();
        host_call<float> call{params(f), x.view(), y.view(), 1, widths(d)};
        auto const out = call.product(v.view());
        for (int i = 0; i < 40 * e; ++i) CHECK_EQUAL(std::isnan(out[i]), i / e == 7);
        y.at(0, 3, 0) = nan;
        host_call<float> all{params(f), x.view(), y.view(), 1, widths(d)};
        for (float const value : all.product(v.view())) CHECK(std::isnan(value));
      }
}

TEST(bandwidths_that_leave_coordinates_out_and_nothing_to_sum) {
  matrices<float> const x(1, 9, 3), y(1, 30, 3), v(1, 30, 2);
  double const infinity = std::numeric_limits<double>::infinity();
  for (bool const bare : {false, true}) {
    host_call<float> call{params(kernel_function::gaussian),
                          x.view(),
                          y.view(),
                          1,
                          {0.5, infinity, 2},
                          false,
                          false,
                          bare};
    CHECK(error_of(call, v.view(), call.product(v.view())) <= tolerance<float>(30));
  }
  matrices<float> const none(1, 0, 3), weights(1, 0, 2);
  for (bool const bare : {false, true}) {
    host_call<float> call{
        params(kernel_function::gaussian), x.view(), none.view(), 1, widths(3), false, false, bare};
    for (float const value : call.product(weights.view())) CHECK_EQUAL(value, 0.0f);
  }
}

int main() { return check::run_all(); }
