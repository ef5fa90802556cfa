#include "subspan/pca.hpp"

#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "detail/batched.hpp"
#include "detail/cuda_table.hpp"
#include "detail/dtypes.hpp"
#include "detail/row_products.hpp"

#define SUBSPAN_FILE "pca.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
#include "detail/product_tile.inl.hpp"
#include "detail/widen.inl.hpp"

template <class T>
inline constexpr detail::row_kernels<T> row_table{product_table<float>, product_table<double>,
                                                  &widen<T, float>, &widen<T, double>};
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace subspan {

namespace {

template <int Rank>
void check_state(char const* function, char const* name, strided_view<double, Rank> const& view,
                 std::array<index_t, Rank> shape) {
  detail::expects(
      view.shape == shape && view.device.kind == device_kind::cpu && view.inner_contiguous(),
      function, name,
      " must be a float64 array on the CPU of the documented shape, with contiguous "
      "rows");
}

void check_weights(char const* function,
                   std::optional<strided_view<double const, 1>> const& weights, index_t n,
                   device where) {
  if (!weights) return;
  detail::expects(weights->shape[0] == n, function, "weights must have one entry per row of x (", n,
                  "), got ", weights->shape[0]);
  detail::expects(weights->device == where, function, "weights must be on the device of x");
}

void check_moments(char const* function, moments_view const& state, index_t d) {
  check_state<1>(function, "state.mean", state.mean, {d});
  check_state<2>(function, "state.m2", state.m2, {d, d});
}

std::vector<double> copy_of(strided_view<double, 1> const& view) {
  std::vector<double> out(static_cast<std::size_t>(view.shape[0]));
  for (index_t i = 0; i < view.shape[0]; ++i) out[static_cast<std::size_t>(i)] = view(i);
  return out;
}

void copy_to(std::vector<double> const& in, strided_view<double, 1> const& out) {
  for (index_t i = 0; i < out.shape[0]; ++i) out(i) = in[static_cast<std::size_t>(i)];
}

/// a += b and the term that the distance of the means adds (Chan, Golub, LeVeque 1983).
void chan(context const& ctx, double weight_a, double weight_b, strided_view<double, 1> mean_x,
          strided_view<double, 1> mean_y, strided_view<double, 2> out,
          strided_view<double, 1> other_x, strided_view<double, 1> other_y,
          strided_view<double, 2> other) {
  double const share = weight_b / (weight_a + weight_b), factor = weight_a * share;
  detail::parallel_for(ctx, out.shape[0], 64, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      double const di = (other_x(i) - mean_x(i)) * factor;
      for (index_t j = 0; j < out.shape[1]; ++j)
        out(i, j) += other(i, j) + di * (other_y(j) - mean_y(j));
    }
  });
}

void move_mean(double share, strided_view<double, 1> mean, strided_view<double, 1> other) {
  for (index_t j = 0; j < mean.shape[0]; ++j) mean(j) += (other(j) - mean(j)) * share;
}

/// The k leading eigenpairs of a symmetric matrix (destroyed), ascending; row c of `vectors`
/// belongs to value c. Divide and conquer finds all of them; few are found faster by MRRR.
void leading_pairs(context const& ctx, char const* function, index_t d, index_t k, double* matrix,
                   double* values, double* vectors) {
  int const n = static_cast<int>(d), wanted = static_cast<int>(k);
  bool const all = 8 * k > d;
  detail::workspace<int> support(ctx, 2 * d);
  detail::workspace<double> every(ctx, all ? d : 0);
  int info = 0;
  auto const solve = [&](double* work, int lwork, int* iwork, int liwork) {
    if (all)
      detail::syevd('V', 'L', n, matrix, n, every.data(), work, lwork, iwork, liwork, info);
    else
      detail::syevr('V', 'L', n, matrix, n, n - wanted + 1, n, values, vectors, n, support.data(),
                    work, lwork, iwork, liwork, info);
  };
  detail::blas_scope const scope(d >= detail::k_large_matrix ? detail::thread_count(ctx) : 1);
  double work_size = 0;
  int iwork_size = 0;
  solve(&work_size, -1, &iwork_size, -1);
  int const lwork = detail::workspace_size(work_size);
  detail::workspace<double> work(ctx, lwork);
  detail::workspace<int> iwork(ctx, iwork_size);
  solve(work.data(), lwork, iwork.data(), iwork_size);
  if (info != 0)
    detail::fail(error_kind::no_convergence, function, "the eigenvalues of m2 did not converge (",
                 info, "). Is it finite?");
  if (!all) return;
  std::copy_n(every.data() + d - k, k, values);
  std::copy_n(matrix + (d - k) * d, k * d, vectors);
}

template <class T>
constexpr bool in_double(moments_precision precision) {
  return sizeof(T) == 8 || precision == moments_precision::float64;
}

/// The device hands back the moments of the batch; they merge on the host.
template <class T>
void moments_on_cuda(context const& ctx, subspan_cuda_table const& cuda, strided_view<T const, 2> x,
                     std::optional<strided_view<double const, 1>> weights, moments_view state,
                     moments_precision precision) {
  index_t const n = x.shape[0], d = x.shape[1];
  detail::expects(x.inner_contiguous() && (!weights || weights->is_row_major()), "moments_update",
                  "x and weights on CUDA must be contiguous in their last axis. Copy them first");
  detail::workspace<double> mean(ctx, d), m2(ctx, d * d);
  double totals[3] = {};
  std::int64_t bad[2] = {-1, -1};
  subspan_cuda_moments_call const call{x.data,
                                       detail::cuda_dtype<T>(),
                                       x.device.index,
                                       n,
                                       d,
                                       x.strides[0],
                                       weights ? weights->data : nullptr,
                                       precision == moments_precision::float64,
                                       ctx.stream,
                                       mean.data(),
                                       m2.data(),
                                       totals,
                                       bad};
  char message[256] = {};
  detail::check_cuda("moments_update", cuda.moments(&call, message, sizeof message), message);
  detail::expects(bad[0] < 0 || bad[1] >= 0, "moments_update",
                  "weights must be finite and >= 0, got another value in row ", bad[0]);
  detail::expects(bad[0] < 0, "moments_update", "x must be finite, got NaN or infinity in row ",
                  bad[0], ", column ", bad[1], ". Drop the row, or give it weight 0");
  index_t count = static_cast<index_t>(totals[0]);
  moments_merge(ctx, state,
                {&count, &totals[1], &totals[2], make_view<1>(mean.data(), {d}),
                 make_view<2>(m2.data(), {d, d})});
}

}  // namespace

inline namespace SUBSPAN_ABI {

template <class T>
void moments_update(context const& ctx, strided_view<T const, 2> x,
                    std::optional<strided_view<double const, 1>> weights, moments_view state,
                    moments_precision precision) {
  constexpr char const* function = "moments_update";
  check_moments(function, state, x.shape[1]);
  check_weights(function, weights, x.shape[0], x.device);
  if (x.size() == 0) return;
  detail::route(
      function, x.device,
      [&] {
        detail::row_weights const checked(function, weights, x.shape[0]);
        if (checked.count == 0) return;
        detail::row_products<T> sums(ctx, SUBSPAN_PICK(row_table<T>), function, x, std::nullopt,
                                     checked, in_double<T>(precision));
        std::vector<double> mean = copy_of(state.mean);
        double weight = *state.weight_sum;
        sums.run(weight, mean.data(), nullptr);
        sums.add_to(state.m2);
        copy_to(mean, state.mean);
        *state.weight_sum = weight;
        *state.count += checked.count;
        *state.weight_sq_sum += checked.square_sum;
      },
      [&](subspan_cuda_table const& cuda) {
        moments_on_cuda(ctx, cuda, x, weights, state, precision);
      });
}

template <class T>
void cross_moments_update(context const& ctx, strided_view<T const, 2> x,
                          strided_view<T const, 2> y,
                          std::optional<strided_view<double const, 1>> weights,
                          cross_moments_view state, moments_precision precision) {
  constexpr char const* function = "cross_moments_update";
  detail::require_cpu(function, x.device);
  detail::expects(y.shape[0] == x.shape[0] && y.device == x.device, function,
                  "y must have the rows of x (", x.shape[0], ") and be on its device, got ",
                  y.shape[0], " rows");
  check_state<1>(function, "state.mean_x", state.mean_x, {x.shape[1]});
  check_state<1>(function, "state.mean_y", state.mean_y, {y.shape[1]});
  check_state<2>(function, "state.cross", state.cross, {x.shape[1], y.shape[1]});
  check_weights(function, weights, x.shape[0], x.device);
  if (x.size() == 0 || y.size() == 0) return;
  detail::row_weights const checked(function, weights, x.shape[0]);
  if (checked.count == 0) return;
  detail::row_products<T> sums(ctx, SUBSPAN_PICK(row_table<T>), function, x, y, checked,
                               in_double<T>(precision));
  std::vector<double> mean_x = copy_of(state.mean_x), mean_y = copy_of(state.mean_y);
  double weight = *state.weight_sum;
  sums.run(weight, mean_x.data(), mean_y.data());
  sums.add_to(state.cross);
  copy_to(mean_x, state.mean_x);
  copy_to(mean_y, state.mean_y);
  *state.weight_sum = weight;
}

void moments_merge(context const& ctx, moments_view state, moments_view other) {
  check_moments("moments_merge", other, state.mean.shape[0]);
  check_moments("moments_merge", state, state.mean.shape[0]);
  if (*other.weight_sum == 0) return;
  chan(ctx, *state.weight_sum, *other.weight_sum, state.mean, state.mean, state.m2, other.mean,
       other.mean, other.m2);
  move_mean(*other.weight_sum / (*state.weight_sum + *other.weight_sum), state.mean, other.mean);
  *state.weight_sum += *other.weight_sum;
  *state.weight_sq_sum += *other.weight_sq_sum;
  *state.count += *other.count;
}

void cross_moments_merge(context const& ctx, cross_moments_view state, cross_moments_view other) {
  constexpr char const* function = "cross_moments_merge";
  check_state<1>(function, "other.mean_x", other.mean_x, state.mean_x.shape);
  check_state<1>(function, "other.mean_y", other.mean_y, state.mean_y.shape);
  check_state<2>(function, "other.cross", other.cross, state.cross.shape);
  if (*other.weight_sum == 0) return;
  chan(ctx, *state.weight_sum, *other.weight_sum, state.mean_x, state.mean_y, state.cross,
       other.mean_x, other.mean_y, other.cross);
  double const share = *other.weight_sum / (*state.weight_sum + *other.weight_sum);
  move_mean(share, state.mean_x, other.mean_x);
  move_mean(share, state.mean_y, other.mean_y);
  *state.weight_sum += *other.weight_sum;
}

template <class T>
void group_sums(context const& ctx, strided_view<T const, 2> x,
                std::optional<strided_view<double const, 1>> weights,
                strided_view<index_t const, 1> ids, strided_view<double, 2> sums) {
  constexpr char const* function = "group_sums";
  index_t const n = x.shape[0], d = x.shape[1], groups = sums.shape[0];
  detail::require_cpu(function, x.device);
  check_state<2>(function, "sums", sums, {groups, d});
  check_weights(function, weights, n, x.device);
  detail::expects(ids.shape[0] == n, function, "ids must have one entry per row of x (", n,
                  "), got ", ids.shape[0]);
  for (index_t i = 0; i < n; ++i)
    detail::expects(ids(i) >= 0 && ids(i) < groups, function, "ids must be in 0..", groups - 1,
                    ", got ", ids(i), " in row ", i);
  // Threads share columns, not rows: each sum is taken in row order by one thread.
  detail::parallel_for(ctx, d, 128, [&](index_t begin, index_t end) {
    detail::workspace<double> row(ctx, end - begin);
    for (index_t i = 0; i < n; ++i) {
      double const w = weights ? (*weights)(i) : 1.0;
      if (w == 0) continue;
      SUBSPAN_PICK(widen<T, double>)(&x(i, begin), x.strides[1], end - begin, row.data());
      for (index_t j = begin; j < end; ++j) sums(ids(i), j) += w * row[j - begin];
    }
  });
}

void principal_axes(context const& ctx, strided_view<double const, 2> m2, double denominator,
                    strided_view<double, 2> components, strided_view<double, 1> variances,
                    double negative_tolerance) {
  constexpr char const* function = "principal_axes";
  index_t const d = m2.shape[0], k = components.shape[0];
  detail::require_cpu(function, m2.device);
  detail::expects(m2.shape[1] == d && d > 0 && d <= 2147483647, function,
                  "m2 must be square and not empty, got ", d, " x ", m2.shape[1]);
  detail::expects(denominator > 0, function, "denominator must be > 0, got ", denominator);
  detail::expects(k >= 1 && k <= d, function, "k must be in 1..", d, ", got ", k);
  check_state<2>(function, "components", components, {k, d});
  check_state<1>(function, "variances", variances, {k});

  detail::workspace<double> matrix(ctx, d * d), values(ctx, d), vectors(ctx, k * d);
  for (index_t i = 0; i < d; ++i)
    for (index_t j = 0; j < d; ++j) matrix[i * d + j] = m2(i, j) / denominator;
  leading_pairs(ctx, function, d, k, matrix.data(), values.data(), vectors.data());

  double const top = std::max(values[k - 1], 0.0);
  detail::expects(values[0] >= -negative_tolerance * top, function,
                  "m2 must be positive semidefinite up to rounding, got an eigenvalue of ",
                  values[0], " beside ", top, ". Was it made by moments_update?");
  for (index_t c = 0; c < k; ++c) {
    variances(c) = std::max(values[k - 1 - c], 0.0);  // LAPACK's order is ascending
    double const* const vector = vectors.data() + (k - 1 - c) * d;
    index_t largest = 0;
    for (index_t j = 1; j < d; ++j)
      if (std::abs(vector[j]) > std::abs(vector[largest])) largest = j;
    double const sign = vector[largest] < 0 ? -1.0 : 1.0;
    for (index_t j = 0; j < d; ++j) components(c, j) = sign * vector[j];
  }
}

#define SUBSPAN_INSTANTIATE(T)                                                                \
  template void moments_update<T>(context const&, strided_view<T const, 2>,                   \
                                  std::optional<strided_view<double const, 1>>, moments_view, \
                                  moments_precision);                                         \
  template void cross_moments_update<T>(                                                      \
      context const&, strided_view<T const, 2>, strided_view<T const, 2>,                     \
      std::optional<strided_view<double const, 1>>, cross_moments_view, moments_precision);   \
  template void group_sums<T>(context const&, strided_view<T const, 2>,                       \
                              std::optional<strided_view<double const, 1>>,                   \
                              strided_view<index_t const, 1>, strided_view<double, 2>);
SUBSPAN_FOREACH_STORAGE(SUBSPAN_INSTANTIATE)
#undef SUBSPAN_INSTANTIATE

}  // namespace v0
}  // namespace subspan

#endif  // SUBSPAN_ONCE
