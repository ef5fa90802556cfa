#include "subspan/kernel_matvec.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <iterator>
#include <limits>

#include "detail/contract.hpp"
#include "detail/dtypes.hpp"
#include "detail/kernel_cuda.hpp"
#include "detail/kernel_log_jobs.hpp"
#include "detail/kernel_symmetric.hpp"
#include "detail/product_tile.hpp"
#include "detail/route.hpp"

#define SUBSPAN_FILE "kernel_matvec.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {
// In this order: the later ones need the earlier.
// clang-format off
#include "detail/widen.inl.hpp"
#include "detail/product_tile.inl.hpp"
#include "detail/tile_engine.inl.hpp"
#include "detail/vectors.inl.hpp"
#include "detail/kernel_functions.inl.hpp"
#include "detail/kernel_tiles.inl.hpp"
#include "detail/kernel_weighing.inl.hpp"
// clang-format on
}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace subspan {
namespace {

using detail::rows_view;

constexpr double k_log_2 = 0.6931471805599453;

template <class T>
detail::kernel_kernels<T> const& table() {
  return SUBSPAN_PICK(kernel_table<T>);
}

/// x (y^T v), coordinate by coordinate and row by row.
template <class T>
void multiply_linear(context const& ctx, rows_view<T> x, rows_view<T> y, rows_view<T> v,
                     strided_view<double const, 1> bandwidth, strided_view<T, 2> out) {
  index_t const d = x.shape[1], e = v.shape[1];
  constexpr index_t together = 16;
  detail::workspace<double> sums(ctx, d * e);
  detail::parallel_for(ctx, d, together, [&](index_t begin, index_t end) {
    std::fill(sums.data() + begin * e, sums.data() + end * e, 0.0);
    for (index_t j = 0; j < y.shape[0]; ++j)
      for (index_t c = begin; c < end; ++c) {
        double const of_y = static_cast<double>(y(j, c)) / bandwidth(c);
        for (index_t k = 0; k < e; ++k) sums[c * e + k] += of_y * static_cast<double>(v(j, k));
      }
  });
  detail::parallel_for(ctx, x.shape[0], 64, [&](index_t begin, index_t end) {
    detail::workspace<double> row(ctx, e);
    for (index_t i = begin; i < end; ++i) {
      std::fill_n(row.data(), e, 0.0);
      for (index_t c = 0; c < d; ++c)
        for (index_t k = 0; k < e; ++k) row[k] += static_cast<double>(x(i, c)) * sums[c * e + k];
      for (index_t k = 0; k < e; ++k) out(i, k) = static_cast<T>(row[k]);
    }
  });
}

/// The rows out and, of softmax, lse of a product.
template <class T, class Loop>
void write_sums(context const& ctx, detail::kernel_product<T> const& job, Loop const& loop,
                detail::kernel_problem<T> const& problem, strided_view<T, 2> out, double* lse) {
  index_t const d = problem.x.shape[1], e = out.shape[1];
  detail::parallel_for(ctx, problem.x.shape[0], 256, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      double const* const sums = loop[i];
      double const mass = job.has_greatest() ? sums[e * loop.pitch()] : 1;
      for (index_t k = 0; k < e; ++k)  // nothing to sum leaves a mass of 0, and sums, too
        out(job.row(i), k) = static_cast<T>(mass == 0 ? 0 : sums[k * loop.pitch()] / mass);
      if (lse == nullptr) continue;
      // Scores were those of y - centre, in powers of two.
      double moved = 0;
      for (index_t c = 0; c < d; ++c)
        moved +=
            static_cast<double>(problem.x(i, c)) / problem.bandwidth(c) * job.system().centre_y[c];
      lse[i] = static_cast<double>(loop.greatest(i)) * k_log_2 + std::log(mass) + moved;
    }
  });
}

/// Whether both sides are the same rows, so that every value counts twice.
template <class T>
bool is_symmetric(detail::kernel_problem<T> const& problem, rows_view<T> v) {
  auto const& [x, y, bandwidth, how, ranges, exchanged] = problem;
  return x.data == y.data && x.shape == y.shape && x.strides == y.strides && ranges == nullptr &&
         how.cutoff == 0 && how.function != kernel_function::softmax &&
         x.shape[0] >= detail::k_symmetric_rows && v.shape[1] <= detail::k_alone;
}

template <class T>
void multiply_tiled(context const& ctx, detail::kernel_problem<T> const& problem, rows_view<T> v,
                    strided_view<T, 2> out, double* lse) {
  auto const multiply = [&]<class Loop>(bool symmetric) {
    detail::kernel_product<T> job(ctx, table<T>(), problem, v, symmetric);
    Loop loop(ctx, job);
    loop.run();
    write_sums(ctx, job, loop, problem, out, lse);
  };
  if (is_symmetric(problem, v))
    multiply.template operator()<detail::symmetric_loop<T>>(true);
  else
    multiply.template operator()<detail::kernel_loop<T, detail::kernel_product<T>>>(false);
}

/// Column k of out, and of the parts, if they are wanted.
template <class T>
void sum_logs(context const& ctx, detail::kernel_problem<T> const& problem, rows_view<T> v,
              index_t k, strided_view<T, 2> out, double* parts) {
  index_t const m = problem.y.shape[0], e = v.shape[1];
  detail::workspace<double> logs(ctx, m);
  for (index_t j = 0; j < m; ++j) logs[j] = std::log2(static_cast<double>(v(j, k)));
  using job_type = detail::kernel_log_job<T>;
  job_type job(ctx, table<T>(), problem, logs.data());
  detail::kernel_loop<T, job_type> loop(ctx, job);
  loop.run();
  constexpr T lowest = sizeof(T) == 4 ? T(-0x1p120) : T(-0x1p1000);
  for (index_t i = 0; i < out.shape[0]; ++i) {
    T const most = loop.greatest(i);
    double const mass = *loop[i];
    bool const nothing = most <= lowest && mass == mass;
    out(i, k) = nothing ? -std::numeric_limits<T>::infinity()
                        : static_cast<T>(static_cast<double>(most) * k_log_2 + std::log(mass));
    if (parts == nullptr) continue;
    parts[i * 2 * e + k] = nothing ? 0 : static_cast<double>(most);
    parts[i * 2 * e + e + k] = nothing ? 0 : mass;
  }
}

/// Runs body(ctx, b) for all matrices: side by side where there are enough of them.
template <class Body>
void for_each_matrix(context const& ctx, index_t batch, Body&& body) {
  if (batch >= 2 * detail::thread_count(ctx))
    detail::parallel_for(ctx, batch, 1, [&](index_t b, index_t) { body(b); });
  else
    for (index_t b = 0; b < batch; ++b) body(b);
}

template <class T>
void check(char const* function, strided_view<T const, 3> x, strided_view<T const, 3> y,
           strided_view<double const, 1> bandwidth, kernel_params const& how,
           kernel_ranges const* ranges) {
  auto const [batch, n, d] = x.shape;
  detail::expects(y.device == x.device, function, "y must be on the device of x");
  detail::expects(y.shape[0] == batch && y.shape[2] == d, function, "y must be [", batch, ", m, ",
                  d, "] like x, got [", y.shape[0], ", ", y.shape[1], ", ", y.shape[2], "]");
  detail::expects(bandwidth.shape[0] == d, function, "bandwidth must have ", d,
                  " elements, one per column of x, got ", bandwidth.shape[0]);
  for (index_t c = 0; c < d; ++c)
    detail::expects(bandwidth(c) > 0, function, "bandwidth must be > 0, got ", bandwidth(c));
  detail::expects(how.alpha > 0 && how.alpha <= std::numeric_limits<float>::max(), function,
                  "alpha must be > 0 and finite, got ", how.alpha);
  detail::expects(how.degree >= 1, function, "degree must be >= 1, got ", how.degree);
  detail::expects(how.cutoff >= 0 && how.cutoff < 1, function, "cutoff must be in [0, 1), got ",
                  how.cutoff);
  detail::expects(how.cutoff == 0 || detail::profile(how, 1) <= 1, function,
                  "cutoff must be 0 unless the kernel decreases with the distance, got ",
                  how.cutoff);
  detail::expects(std::isfinite(how.offset), function, "offset must be finite, got ", how.offset);
  if (ranges == nullptr) return;
  detail::check_ranges(function, *ranges, n, y.shape[1]);
  detail::expects(how.cutoff == 0, function, "cutoff must be 0 with ranges, got ", how.cutoff);
}

template <class T>
void check_weights(char const* function, strided_view<T const, 3> y, strided_view<T const, 3> v) {
  detail::expects(v.device == y.device, function, "v must be on the device of x");
  detail::expects(v.shape[0] == y.shape[0] && v.shape[1] == y.shape[1], function, "v must be [",
                  y.shape[0], ", ", y.shape[1], ", e], a row for each of y, got [", v.shape[0],
                  ", ", v.shape[1], ", ", v.shape[2], "]");
}

void check_logarithm(char const* function, kernel_params const& how) {
  detail::expects(detail::has_logarithm(how.function), function,
                  "kernel must be one that is nowhere 0, got another");
  detail::expects(how.cutoff == 0, function, "cutoff must be 0, got ", how.cutoff);
}

/// What comes out not finite, though what went in is, is an overflow.
template <class T>
void check_sums(char const* function, rows_view<T> x, rows_view<T> y, rows_view<T> v,
                rows_view<T> out) {
  for (index_t i = 0; i < out.shape[0]; ++i)
    if (!detail::is_finite_row(out, i) && detail::is_finite_row(x, i) && detail::is_finite(y) &&
        detail::is_finite(v))
      detail::fail(error_kind::invalid_argument, function,
                   "x, y and v must have finite kernel values and sums, got an overflow "
                   "of ",
                   sizeof(T) == 4 ? "float32" : "float64", " in row ", i,
                   ". Take a larger bandwidth, softmax in place of exp_dot, or float64");
}

/// Sums over differences of coordinates as gradients.
template <class T, class Job>
void write_gradient(context const& ctx, Job& job, kernel_params const& how,
                    strided_view<T, 2> of_x) {
  detail::kernel_loop<T, Job> loop(ctx, job);
  loop.run();
  double const factor = detail::factor_of_gradient(how);
  for (index_t i = 0; i < of_x.shape[0]; ++i)
    for (index_t c = 0; c < of_x.shape[1]; ++c)
      of_x(i, c) = static_cast<T>(loop[i][c * loop.pitch()] * factor * job.system().scale_x[c]);
}

template <class T, class Out, int Rank>
void check_output(char const* function, char const* name, strided_view<T const, 3> x,
                  strided_view<Out, Rank> const& out, std::array<index_t, Rank> shape) {
  detail::expects(
      out.shape == shape && out.is_row_major() && out.device == x.device && !overlaps(out, x),
      function, name,
      " must be C-ordered, apart from x, on its device and of the "
      "documented shape");
}

}  // namespace

inline namespace SUBSPAN_ABI {

template <class T>
void kernel_matvec(context const& ctx, strided_view<T const, 3> x, strided_view<T const, 3> y,
                   strided_view<T const, 3> v, strided_view<double const, 1> bandwidth,
                   strided_view<T, 3> out, kernel_params const& how,
                   std::optional<strided_view<double, 2>> lse, kernel_ranges const* ranges) {
  constexpr char const* function = "kernel_matvec";
  check(function, x, y, bandwidth, how, ranges);
  check_weights(function, y, v);
  index_t const batch = x.shape[0], n = x.shape[1];
  check_output<T, T, 3>(function, "out", x, out, {batch, n, v.shape[2]});
  bool const softmax = how.function == kernel_function::softmax;
  detail::expects(softmax || !lse, function, "lse must be left out unless the kernel is softmax");
  detail::expects(!softmax || y.shape[1] > 0 || n == 0, function,
                  "y must have a row for softmax, got none");
  if (lse) check_output<T, double, 2>(function, "lse", x, *lse, {batch, n});
  if (n == 0 || (out.size() == 0 && !lse)) return;
  auto const on_cpu = [&] {
    for_each_matrix(ctx, batch, [&](index_t b) {
      detail::kernel_problem<T> const problem{detail::matrix_of(x, b), detail::matrix_of(y, b),
                                              bandwidth, how, ranges};
      auto const vb = detail::matrix_of(v, b);
      auto const to = detail::matrix_of(out, b);
      if (how.function == kernel_function::linear && ranges == nullptr)
        multiply_linear<T>(ctx, problem.x, problem.y, vb, bandwidth, to);
      else
        multiply_tiled<T>(ctx, problem, vb, to, lse ? lse->data + b * lse->shape[1] : nullptr);
      check_sums<T>(function, problem.x, problem.y, vb, to);
    });
  };
  detail::route(function, x.device, on_cpu, [&](subspan_cuda_table const& cuda) {
    detail::sum_on_device<T, T, T>(cuda, function, ctx, subspan_cuda_kernel_product, how, ranges, x,
                                   y, {}, v, bandwidth, out.data, lse ? lse->data : nullptr);
  });
}

template <class T>
void kernel_matvec_backward(context const& ctx, strided_view<T const, 3> x,
                            strided_view<T const, 3> y, strided_view<T const, 3> v,
                            strided_view<T const, 3> g, strided_view<double const, 1> bandwidth,
                            strided_view<T, 3> of_x, kernel_params const& how,
                            kernel_ranges const* ranges) {
  constexpr char const* function = "kernel_matvec_backward";
  kernel_params all = how;
  all.cutoff = 0;
  check(function, x, y, bandwidth, all, ranges);
  check_weights(function, y, v);
  auto const [batch, n, d] = x.shape;
  check_output<T, T, 3>(function, "of_x", x, of_x, {batch, n, d});
  detail::expects(g.shape == std::array<index_t, 3>{batch, n, v.shape[2]}, function, "g must be [",
                  batch, ", ", n, ", ", v.shape[2], "]");
  detail::expects(how.function != kernel_function::softmax, function,
                  "kernel must not be softmax, whose gradient is made of those of exp_dot");
  detail::expects(g.device == x.device, function, "g must be on the device of x");
  if (of_x.size() == 0) return;
  auto const on_cpu = [&] {
    for_each_matrix(ctx, batch, [&](index_t b) {
      detail::kernel_problem<T> const problem{detail::matrix_of(x, b), detail::matrix_of(y, b),
                                              bandwidth, all, ranges};
      detail::kernel_gradient<T> job(ctx, table<T>(), problem, detail::matrix_of(v, b),
                                     detail::matrix_of(g, b));
      write_gradient<T>(ctx, job, how, detail::matrix_of(of_x, b));
    });
  };
  detail::route(function, x.device, on_cpu, [&](subspan_cuda_table const& cuda) {
    detail::sum_on_device<T, T, T>(cuda, function, ctx, subspan_cuda_kernel_gradient, how, ranges,
                                   x, y, g, v, bandwidth, of_x.data);
  });
}

template <class T>
void kernel_logsumexp(context const& ctx, strided_view<T const, 3> x, strided_view<T const, 3> y,
                      strided_view<T const, 3> v, strided_view<double const, 1> bandwidth,
                      strided_view<T, 3> out, kernel_params const& how,
                      std::optional<strided_view<double, 3>> parts, kernel_ranges const* ranges) {
  constexpr char const* function = "kernel_logsumexp";
  check(function, x, y, bandwidth, how, ranges);
  check_weights(function, y, v);
  check_logarithm(function, how);
  auto const [batch, m, e] = v.shape;
  check_output<T, T, 3>(function, "out", x, out, {batch, x.shape[1], e});
  if (parts) check_output<T, double, 3>(function, "parts", x, *parts, {batch, x.shape[1], 2 * e});
  auto const on_cpu = [&] {
    for (index_t b = 0; b < batch; ++b)
      for (index_t j = 0; j < m; ++j)
        for (index_t k = 0; k < e; ++k)
          detail::expects(!(v(b, j, k) < 0), function, "v must be >= 0, got ", v(b, j, k));
    if (out.size() == 0) return;
    for_each_matrix(ctx, batch, [&](index_t b) {
      detail::kernel_problem<T> const problem{detail::matrix_of(x, b), detail::matrix_of(y, b),
                                              bandwidth, how, ranges};
      for (index_t k = 0; k < e; ++k)
        sum_logs<T>(ctx, problem, detail::matrix_of(v, b), k, detail::matrix_of(out, b),
                    parts ? parts->data + b * parts->strides[0] : nullptr);
    });
  };
  detail::route(function, x.device, on_cpu, [&](subspan_cuda_table const& cuda) {
    if (out.size() == 0) return;
    detail::sum_on_device<T, T, T>(cuda, function, ctx, subspan_cuda_kernel_logs, how, ranges, x, y,
                                   {}, v, bandwidth, out.data, parts ? parts->data : nullptr);
  });
}

template <class T>
void kernel_logsumexp_backward(context const& ctx, strided_view<T const, 3> x,
                               strided_view<T const, 3> y, strided_view<double const, 3> terms_x,
                               strided_view<double const, 3> terms_y,
                               strided_view<double const, 1> bandwidth,
                               std::optional<strided_view<T, 3>> sums,
                               std::optional<strided_view<T, 3>> of_x, bool exchanged,
                               kernel_params const& how, kernel_ranges const* ranges) {
  constexpr char const* function = "kernel_logsumexp_backward";
  check(function, x, y, bandwidth, how, ranges);
  check_logarithm(function, how);
  auto const [batch, n, d] = x.shape;
  using shape = std::array<index_t, 3>;
  detail::expects(terms_x.shape == shape{batch, n, 2}, function, "terms_x must be [", batch, ", ",
                  n, ", 2]");
  detail::expects(terms_y.shape == shape{batch, y.shape[1], 2}, function, "terms_y must be [",
                  batch, ", ", y.shape[1], ", 2]");
  if (sums) check_output<T, T, 3>(function, "sums", x, *sums, {batch, n, 1});
  if (of_x) check_output<T, T, 3>(function, "of_x", x, *of_x, {batch, n, d});
  for (auto const& terms : {terms_x, terms_y})
    detail::expects(terms.device == x.device, function, "terms must be on the device of x");
  if (n == 0) return;
  auto const on_cpu = [&] {
    for_each_matrix(ctx, batch, [&](index_t b) {
      detail::kernel_problem<T> const problem{
          detail::matrix_of(x, b), detail::matrix_of(y, b), bandwidth, how, ranges, exchanged};
      auto const of_rows = detail::matrix_of(terms_x, b),
                 of_columns = detail::matrix_of(terms_y, b);
      if (sums) {
        using job_type = detail::kernel_term_job<T>;
        job_type job(ctx, table<T>(), problem, of_rows, of_columns, exchanged);
        detail::kernel_loop<T, job_type> loop(ctx, job);
        loop.run();
        for (index_t i = 0; i < n; ++i) (*sums)(b, i, 0) = static_cast<T>(*loop[i]);
      }
      if (of_x && d > 0) {
        detail::kernel_term_gradient<T> job(ctx, table<T>(), problem, of_rows, of_columns,
                                            exchanged);
        write_gradient<T>(ctx, job, how, detail::matrix_of(*of_x, b));
      }
    });
  };
  detail::route(function, x.device, on_cpu, [&](subspan_cuda_table const& cuda) {
    auto const sum = [&](subspan_cuda_kernel_task task, T* to) {
      detail::sum_on_device<T, double, double>(cuda, function, ctx, task, how, ranges, x, y,
                                               terms_x, terms_y, bandwidth, to, nullptr, exchanged);
    };
    if (sums) sum(subspan_cuda_kernel_terms, sums->data);
    if (of_x && d > 0) sum(subspan_cuda_kernel_term_gradient, of_x->data);
  });
}

#define SUBSPAN_INSTANTIATE(T)                                                                     \
  template void kernel_matvec<T>(                                                                  \
      context const&, strided_view<T const, 3>, strided_view<T const, 3>,                          \
      strided_view<T const, 3>, strided_view<double const, 1>, strided_view<T, 3>,                 \
      kernel_params const&, std::optional<strided_view<double, 2>>, kernel_ranges const*);         \
  template void kernel_matvec_backward<T>(                                                         \
      context const&, strided_view<T const, 3>, strided_view<T const, 3>,                          \
      strided_view<T const, 3>, strided_view<T const, 3>, strided_view<double const, 1>,           \
      strided_view<T, 3>, kernel_params const&, kernel_ranges const*);                             \
  template void kernel_logsumexp<T>(                                                               \
      context const&, strided_view<T const, 3>, strided_view<T const, 3>,                          \
      strided_view<T const, 3>, strided_view<double const, 1>, strided_view<T, 3>,                 \
      kernel_params const&, std::optional<strided_view<double, 3>>, kernel_ranges const*);         \
  template void kernel_logsumexp_backward<T>(                                                      \
      context const&, strided_view<T const, 3>, strided_view<T const, 3>,                          \
      strided_view<double const, 3>, strided_view<double const, 3>, strided_view<double const, 1>, \
      std::optional<strided_view<T, 3>>, std::optional<strided_view<T, 3>>, bool,                  \
      kernel_params const&, kernel_ranges const*);
SUBSPAN_FOREACH_REAL(SUBSPAN_INSTANTIATE)
#undef SUBSPAN_INSTANTIATE

}  // namespace v0
}  // namespace subspan

#endif  // SUBSPAN_ONCE
