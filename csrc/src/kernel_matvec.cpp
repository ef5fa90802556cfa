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
#include "detail/kernel_jobs.hpp"
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
// clang-format on
}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace subspan {
namespace {

using detail::rows_view;

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

template <class T>
void multiply_tiled(context const& ctx, rows_view<T> x, rows_view<T> y, rows_view<T> v,
                    strided_view<double const, 1> bandwidth, kernel_params const& how,
                    strided_view<T, 2> out, double* lse) {
  detail::kernel_product<T> job(ctx, table<T>(), x, y, v, bandwidth, how);
  detail::kernel_loop<T, detail::kernel_product<T>> loop(ctx, job);
  loop.run();
  index_t const d = x.shape[1], e = v.shape[1];
  detail::parallel_for(ctx, x.shape[0], 256, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      double const* const sums = loop[i];
      double const mass = job.has_greatest() ? sums[e * loop.pitch()] : 1;
      for (index_t k = 0; k < e; ++k)
        out(job.row(i), k) = static_cast<T>(sums[k * loop.pitch()] / mass);
      if (lse == nullptr) continue;
      // Scores were those of y - centre, in powers of two.
      double moved = 0;
      for (index_t c = 0; c < d; ++c)
        moved += static_cast<double>(x(i, c)) / bandwidth(c) * job.system().centre_y[c];
      lse[i] = static_cast<double>(loop.greatest(i)) * 0.6931471805599453 + std::log(mass) + moved;
    }
  });
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
           strided_view<T const, 3> v, strided_view<double const, 1> bandwidth,
           kernel_params const& how) {
  detail::require_cpu(function, x.device);
  auto const [batch, n, d] = x.shape;
  detail::expects(y.shape[0] == batch && y.shape[2] == d, function, "y must be [", batch, ", m, ",
                  d, "] like x, got [", y.shape[0], ", ", y.shape[1], ", ", y.shape[2], "]");
  detail::expects(v.shape[0] == batch && v.shape[1] == y.shape[1], function, "v must be [", batch,
                  ", ", y.shape[1], ", e], a row for each of y, got [", v.shape[0], ", ",
                  v.shape[1], ", ", v.shape[2], "]");
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
                   std::optional<strided_view<double, 2>> lse) {
  constexpr char const* function = "kernel_matvec";
  check(function, x, y, v, bandwidth, how);
  auto const [batch, n, d] = x.shape;
  check_output<T, T, 3>(function, "out", x, out, {batch, n, v.shape[2]});
  bool const softmax = how.function == kernel_function::softmax;
  detail::expects(softmax || !lse, function, "lse must be left out unless the kernel is softmax");
  detail::expects(!softmax || y.shape[1] > 0 || n == 0, function,
                  "y must have a row for softmax, got none");
  if (lse) check_output<T, double, 2>(function, "lse", x, *lse, {batch, n});
  if (n == 0 || (out.size() == 0 && !lse)) return;
  for_each_matrix(ctx, batch, [&](index_t b) {
    auto const xb = detail::matrix_of(x, b), yb = detail::matrix_of(y, b),
               vb = detail::matrix_of(v, b);
    auto const to = detail::matrix_of(out, b);
    if (how.function == kernel_function::linear)
      multiply_linear<T>(ctx, xb, yb, vb, bandwidth, to);
    else
      multiply_tiled<T>(ctx, xb, yb, vb, bandwidth, how, to,
                        lse ? lse->data + b * lse->shape[1] : nullptr);
    check_sums<T>(function, xb, yb, vb, to);
  });
}

template <class T>
void kernel_matvec_backward(context const& ctx, strided_view<T const, 3> x,
                            strided_view<T const, 3> y, strided_view<T const, 3> v,
                            strided_view<T const, 3> g, strided_view<double const, 1> bandwidth,
                            strided_view<T, 3> of_x, kernel_params const& how) {
  constexpr char const* function = "kernel_matvec_backward";
  check(function, x, y, v, bandwidth, how);
  auto const [batch, n, d] = x.shape;
  check_output<T, T, 3>(function, "of_x", x, of_x, {batch, n, d});
  detail::expects(g.shape == std::array<index_t, 3>{batch, n, v.shape[2]}, function, "g must be [",
                  batch, ", ", n, ", ", v.shape[2], "]");
  detail::expects(how.function != kernel_function::softmax, function,
                  "kernel must not be softmax, whose gradient is made of those of exp_dot");
  if (of_x.size() == 0) return;
  double const factor = detail::factor_of_gradient(how);
  for_each_matrix(ctx, batch, [&](index_t b) {
    detail::kernel_gradient<T> job(ctx, table<T>(), detail::matrix_of(x, b),
                                   detail::matrix_of(y, b), detail::matrix_of(v, b),
                                   detail::matrix_of(g, b), bandwidth, how);
    detail::kernel_loop<T, detail::kernel_gradient<T>> loop(ctx, job);
    loop.run();
    for (index_t i = 0; i < n; ++i)
      for (index_t c = 0; c < d; ++c)
        of_x(b, i, c) =
            static_cast<T>(loop[i][c * loop.pitch()] * factor * job.system().scale_x[c]);
  });
}

#define SUBSPAN_INSTANTIATE(T)                                                                     \
  template void kernel_matvec<T>(context const&, strided_view<T const, 3>,                         \
                                 strided_view<T const, 3>, strided_view<T const, 3>,               \
                                 strided_view<double const, 1>, strided_view<T, 3>,                \
                                 kernel_params const&, std::optional<strided_view<double, 2>>);    \
  template void kernel_matvec_backward<T>(context const&, strided_view<T const, 3>,                \
                                          strided_view<T const, 3>, strided_view<T const, 3>,      \
                                          strided_view<T const, 3>, strided_view<double const, 1>, \
                                          strided_view<T, 3>, kernel_params const&);
SUBSPAN_FOREACH_REAL(SUBSPAN_INSTANTIATE)
#undef SUBSPAN_INSTANTIATE

}  // namespace v0
}  // namespace subspan

#endif  // SUBSPAN_ONCE
