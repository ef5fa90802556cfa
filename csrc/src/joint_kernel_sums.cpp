#include "subspan/joint_kernel_sums.hpp"

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
#include "detail/joint_gradient.hpp"
#include "detail/product_tile.hpp"
#include "detail/route.hpp"
#include "detail/scalar_distances.hpp"

#define SUBSPAN_FILE "joint_kernel_sums.cpp"
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
#include "detail/joint_tiles.inl.hpp"
// clang-format on
}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace subspan {
namespace {

constexpr char const* k_name = "joint_kernel_sums";

template <class A, int Rank>
bool same_memory(strided_view<A, Rank> const& a, strided_view<A, Rank> const& b) {
  return a.data == b.data && a.shape == b.shape && a.strides == b.strides;
}

void check_kernel(char const* name, kernel_params const& how,
                  strided_view<double const, 1> bandwidth, index_t depth) {
  detail::expects(detail::is_radial(how.function), k_name, "kernel of ", name,
                  " must be a function of the distance");
  detail::expects(how.alpha > 0 && how.alpha <= std::numeric_limits<float>::max(), k_name,
                  "alpha of ", name, " must be > 0 and finite, got ", how.alpha);
  detail::expects(how.function != kernel_function::distance || how.alpha <= 4, k_name, "alpha of ",
                  name, " must be at most 4, the exponent of a distance, got ", how.alpha);
  detail::expects(how.cutoff == 0, k_name, "cutoff of ", name, " must be 0, got ", how.cutoff);
  detail::expects(bandwidth.shape[0] == depth, k_name, "bandwidth of ", name, " must have ", depth,
                  " elements, one per column, got ", bandwidth.shape[0]);
  for (index_t c = 0; c < depth; ++c)
    detail::expects(bandwidth(c) > 0, k_name, "bandwidth of ", name, " must be > 0, got ",
                    bandwidth(c));
}

template <class Out, int Rank>
void check_output(char const* name, strided_view<Out, Rank> const& out,
                  std::array<index_t, Rank> shape) {
  detail::expects(out.shape == shape && out.is_row_major(), k_name, name,
                  " must be C-ordered and of the documented shape");
}

bool is_plain_distance(kernel_params const& how) {
  return how.function == kernel_function::distance && how.alpha == 1;
}

/// All in one column, so that sorting does it; NaN has no place in an order.
template <class T>
bool on_lines(detail::rows_view<T> x, detail::rows_view<T> y, strided_view<T const, 3> z,
              strided_view<T const, 3> w, kernel_params const& of_x, kernel_params const& of_z) {
  if (x.shape[1] != 1 || z.shape[2] != 1 || !is_plain_distance(of_x) || !is_plain_distance(of_z) ||
      !same_memory(x, y) || !same_memory(z, w) || !detail::is_finite(x))
    return false;
  for (index_t s = 0; s < z.shape[0]; ++s)
    if (!detail::is_finite(detail::matrix_of(z, s))) return false;
  return true;
}

template <class T>
void sum_on_lines(context const& ctx, detail::rows_view<T> x, strided_view<T const, 3> z,
                  double width_x, double width_z, double* joint, double* first, double* second) {
  index_t const n = x.shape[0];
  detail::sorted_line<T> const of_x(ctx, x, width_x);
  of_x.sum_distances(first);
  detail::parallel_for(ctx, z.shape[0], 1, [&](index_t s, index_t) {
    detail::sorted_line<T> const of_z(ctx, detail::matrix_of(z, s), width_z);
    of_z.sum_distances(second + s * n);
    detail::sum_scalar_products(ctx, of_x, of_z, joint + s * n);
  });
}

}  // namespace

inline namespace SUBSPAN_ABI {

template <class T>
void joint_kernel_sums(context const& ctx, strided_view<T const, 2> x, strided_view<T const, 2> y,
                       strided_view<T const, 3> z, strided_view<T const, 3> w,
                       strided_view<double const, 1> bandwidth_x,
                       strided_view<double const, 1> bandwidth_z, strided_view<double, 2> joint,
                       strided_view<double, 1> first, strided_view<double, 2> second,
                       kernel_params const& of_x, kernel_params const& of_z) {
  detail::require_cpu(k_name, x.device);
  auto const [n, d] = x.shape;
  auto const [count, rows, q] = z.shape;
  index_t const m = y.shape[0];
  detail::expects(y.shape[1] == d, k_name, "y must have ", d, " columns like x, got ", y.shape[1]);
  detail::expects(count >= 1 && rows == n, k_name, "z must be [count, ", n,
                  ", q], a row for each of x, got [", count, ", ", rows, ", ", q, "]");
  detail::expects(w.shape == std::array<index_t, 3>{count, m, q}, k_name, "w must be [", count,
                  ", ", m, ", ", q, "], a row for each of y, got [", w.shape[0], ", ", w.shape[1],
                  ", ", w.shape[2], "]");
  check_kernel("x", of_x, bandwidth_x, d);
  check_kernel("z", of_z, bandwidth_z, q);
  check_output<double, 2>("joint", joint, {count, n});
  check_output<double, 1>("first", first, {n});
  check_output<double, 2>("second", second, {count, n});
  if (n == 0) return;
  if (on_lines<T>(x, y, z, w, of_x, of_z))
    return sum_on_lines<T>(ctx, x, z, bandwidth_x(0), bandwidth_z(0), joint.data, first.data,
                           second.data);

  detail::joint_job<T> job(ctx, SUBSPAN_PICK(joint_table<T>), x, y, z, w, bandwidth_x, bandwidth_z,
                           of_x, of_z);
  detail::kernel_loop<T, detail::joint_job<T>> loop(ctx, job);
  loop.run();
  for (index_t i = 0; i < n; ++i) {
    double const* const sums = loop[i];
    first(i) = sums[0];
    for (index_t s = 0; s < count; ++s) {
      joint(s, i) = sums[(1 + 2 * s) * loop.pitch()];
      second(s, i) = sums[(2 + 2 * s) * loop.pitch()];
    }
  }
}

template <class T>
void joint_kernel_sums_backward(context const& ctx, strided_view<T const, 2> x,
                                strided_view<T const, 2> y, strided_view<T const, 2> z,
                                strided_view<T const, 2> w, strided_view<double const, 2> of_rows,
                                strided_view<double const, 2> of_columns,
                                strided_view<double const, 1> bandwidth_x,
                                strided_view<double const, 1> bandwidth_z,
                                strided_view<T, 2> gradient, kernel_params const& of_x,
                                kernel_params const& of_z) {
  detail::require_cpu(k_name, x.device);
  auto const [n, d] = x.shape;
  index_t const m = y.shape[0], q = z.shape[1];
  using pair = std::array<index_t, 2>;
  detail::expects(y.shape[1] == d && z.shape == pair{n, q} && w.shape == pair{m, q}, k_name,
                  "y, z and w must have shapes that fit x, [", n, ", ", d, "]");
  detail::expects(of_rows.shape == pair{n, 2} && of_columns.shape == pair{m, 2}, k_name,
                  "weights must be [", n, ", 2] and [", m, ", 2]");
  check_kernel("x", of_x, bandwidth_x, d);
  check_kernel("z", of_z, bandwidth_z, q);
  check_output<T, 2>("gradient", gradient, {n, d});
  if (gradient.size() == 0) return;
  detail::joint_gradient<T> job(ctx, SUBSPAN_PICK(joint_table<T>), x, y, z, w, of_rows, of_columns,
                                bandwidth_x, bandwidth_z, of_x, of_z);
  detail::kernel_loop<T, detail::joint_gradient<T>> loop(ctx, job);
  loop.run();
  double const factor = detail::is_power(of_x) ? of_x.alpha : detail::factor_of_gradient(of_x);
  for (index_t i = 0; i < n; ++i)
    for (index_t c = 0; c < d; ++c)
      gradient(i, c) = static_cast<T>(loop[i][c * loop.pitch()] * factor * job.system().scale_x[c]);
}

#define SUBSPAN_INSTANTIATE(T)                                                                     \
  template void joint_kernel_sums<T>(                                                              \
      context const&, strided_view<T const, 2>, strided_view<T const, 2>,                          \
      strided_view<T const, 3>, strided_view<T const, 3>, strided_view<double const, 1>,           \
      strided_view<double const, 1>, strided_view<double, 2>, strided_view<double, 1>,             \
      strided_view<double, 2>, kernel_params const&, kernel_params const&);                        \
  template void joint_kernel_sums_backward<T>(                                                     \
      context const&, strided_view<T const, 2>, strided_view<T const, 2>,                          \
      strided_view<T const, 2>, strided_view<T const, 2>, strided_view<double const, 2>,           \
      strided_view<double const, 2>, strided_view<double const, 1>, strided_view<double const, 1>, \
      strided_view<T, 2>, kernel_params const&, kernel_params const&);
SUBSPAN_FOREACH_REAL(SUBSPAN_INSTANTIATE)
#undef SUBSPAN_INSTANTIATE

}  // namespace v0
}  // namespace subspan

#endif  // SUBSPAN_ONCE
