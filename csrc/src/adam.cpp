#include "subspan/adam.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "detail/adam_kernels.hpp"
#include "detail/contract.hpp"
#include "detail/dtypes.hpp"
#include "detail/parallel.hpp"
#include "detail/route.hpp"
#include "detail/workspace.hpp"

#define SUBSPAN_FILE "adam.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {

/// a b + c, rounded once where the level has such an instruction. Spelt out, so that no compiler's
/// own choice decides where it is used.
template <class T>
inline T multiply_add(T a, T b, T c) {
#if SUBSPAN_VECTOR_BYTES >= 32 || defined(__aarch64__)
  if constexpr (sizeof(T) == 4)
    return __builtin_fmaf(a, b, c);
  else
    return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

/// The sum over i of term(i), in double, in 32 lanes.
template <class Term>
inline double sum_lanes(index_t n, Term&& term) {
  constexpr index_t lanes = 32;
  double lane[lanes] = {};
  index_t i = 0;
  for (; i + lanes <= n; i += lanes)
#pragma omp simd
    for (index_t l = 0; l < lanes; ++l) lane[l] += term(i + l);
  for (index_t l = 0; i < n; ++i, ++l) lane[l] += term(i);
  for (index_t half = lanes / 2; half > 0; half /= 2)
    for (index_t l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}

template <class T>
inline double product(T const* a, T const* b, index_t n) {
  return sum_lanes(n, [=](index_t i) { return double(a[i]) * double(b[i]); });
}

/// How much of w there is in g.
template <class T>
inline double share(T const* g, T const* w, index_t n) {
  double const size = product(w, w, n);
  return size == 0 ? 0 : product(g, w, n) / size;
}

template <class T>
inline double squares_of_rest(T const* g, T const* w, double along, index_t n) {
  return sum_lanes(n, [=](index_t i) {
    double const rest = double(g[i]) - along * double(w[i]);
    return rest * rest;
  });
}

/// A row; its gradient is scale (g - along w) where `Changed`, else g.
template <class T, bool Changed>
struct row_update {
  detail::adam_numbers<T> const& c;
  T* __restrict w, * __restrict m, * __restrict v;
  T const* __restrict g;
  T along, scale;

  void apply(index_t begin, index_t end) const {
    // Interpolation from whichever end is nearer.
    bool const near = c.first < T(0.5);
    T const weight = near ? c.first : c.first - 1;
#pragma omp simd
    for (index_t i = begin; i < end; ++i) {
      T const gradient = Changed ? scale * multiply_add(-along, w[i], g[i]) : g[i];
      T const first = multiply_add(weight, gradient - m[i], near ? m[i] : gradient);
      T const second = multiply_add(c.second * gradient, gradient, c.second_keep * v[i]);
      m[i] = first;
      v[i] = second;
      w[i] = c.decay * w[i] + c.rate * first / (std::sqrt(second) / c.correction + c.eps);
    }
  }
};

template <class T, bool Changed>
inline void step_row(row_update<T, Changed> const& row, index_t d) {
  constexpr index_t line = 64 / sizeof(T);
  index_t i = 0;
  for (; i + line <= d; i += line) {
    // The next row may be read twice, first for its products: by then it shall be near.
    __builtin_prefetch(row.w + d + i);
    __builtin_prefetch(row.g + d + i);
    __builtin_prefetch(row.m + d + i);
    __builtin_prefetch(row.v + d + i);
    row.apply(i, i + line);
  }
  row.apply(i, d);
}

template <class T>
void step(detail::adam_task<T> const& task, index_t begin, index_t end) {
  index_t const d = task.d;
  bool const changed = task.remove_parallel || task.row_limit > 0 || task.scale != 1;
  for (index_t r = begin; r < end; ++r) {
    T *const w = task.w + r * d, *const m = task.m + r * d, *const v = task.v + r * d;
    T const* const g = task.g + r * d;
    if (changed) {
      double const along = task.remove_parallel ? share(g, w, d) : 0;
      double scale = task.scale;
      if (task.row_limit > 0) {
        double const length = scale * std::sqrt(squares_of_rest(g, w, along, d));
        if (length > task.row_limit) scale *= task.row_limit / length;
      }
      step_row<T, true>({task.numbers, w, m, v, g, T(along), T(scale)}, d);
    } else {
      step_row<T, false>({task.numbers, w, m, v, g, 0, 1}, d);
    }
    if (!task.unit_rows) continue;
    T const length = T(std::sqrt(product(w, w, d)));
    if (length == 0) continue;
#pragma omp simd
    for (index_t i = 0; i < d; ++i) w[i] /= length;
  }
}

template <class T>
double squares(T const* g, T const* w, index_t d, index_t begin, index_t end) {
  double sum = 0;
  for (index_t r = begin; r < end; ++r) {
    T const *const row = g + r * d, *const unit = w + (w == nullptr ? 0 : r * d);
    sum += w == nullptr ? product(row, row, d) : squares_of_rest(row, unit, share(row, unit, d), d);
  }
  return sum;
}

template <class T>
constexpr detail::adam_kernels<T> adam_table = {step<T>, squares<T>};

}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace subspan {
namespace {

/// Elements of a chunk: as much as is worth a change of thread.
constexpr index_t k_adam_chunk = 16384;

template <class View>
void check_rows(char const* function, char const* name, View const& view,
                std::array<index_t, 2> shape, device where) {
  detail::expects(view.shape == shape, function, name, " must have shape (", shape[0], ", ",
                  shape[1], "), got (", view.shape[0], ", ", view.shape[1], ")");
  detail::expects(view.is_row_major(), function, name, " must be in C order");
  detail::expects(view.device == where, function, name, " must be on the device of the others");
}

void check_number(char const* name, double value, double high) {
  // In this form NaN fails.
  detail::expects(value >= 0 && value < high, "adam_step", name, " must be in [0, ", high,
                  "), got ", value);
}

template <class T>
detail::adam_numbers<T> numbers_of(adam_params const& p) {
  double const steps = static_cast<double>(p.step);
  return {static_cast<T>(1 - p.beta1),
          static_cast<T>(p.beta2),
          static_cast<T>(1 - p.beta2),
          static_cast<T>(-p.lr / (1 - std::pow(p.beta1, steps))),
          static_cast<T>(std::sqrt(1 - std::pow(p.beta2, steps))),
          static_cast<T>(p.eps),
          static_cast<T>(1 - p.lr * p.weight_decay)};
}

/// The call of the CUDA twin for the rows of g; w null: a norm of g itself.
template <class T>
subspan_cuda_adam_call call_of(context const& ctx, strided_view<T const, 2> g, T const* w,
                               adam_params const& p) {
  auto const [first, second_keep, second, rate, correction, eps, decay] = numbers_of<double>(p);
  return {const_cast<T*>(w),
          nullptr,
          nullptr,
          g.data,
          g.shape[0],
          g.shape[1],
          detail::cuda_dtype<T>(),
          g.device.index,
          ctx.stream,
          {first, second_keep, second, rate, correction, eps, decay},
          p.scale,
          p.row_limit,
          p.remove_parallel,
          p.unit_rows,
          nullptr};
}

void run_on_device(char const* function, subspan_cuda_table const& cuda,
                   subspan_cuda_adam_call const& call) {
  char message[256] = {};
  detail::check_cuda(function, cuda.adam(&call, message, sizeof message), message);
}

}  // namespace

inline namespace SUBSPAN_ABI {

template <class T>
void adam_step(context const& ctx, strided_view<T, 2> w, strided_view<T const, 2> g,
               strided_view<T, 2> m, strided_view<T, 2> v, adam_params const& params) {
  char const* const function = "adam_step";
  check_rows(function, "w", w, w.shape, w.device);
  check_rows(function, "g", g, w.shape, w.device);
  check_rows(function, "m", m, w.shape, w.device);
  check_rows(function, "v", v, w.shape, w.device);
  bool const apart = !overlaps(w, g) && !overlaps(w, m) && !overlaps(w, v) && !overlaps(m, g) &&
                     !overlaps(v, g) && !overlaps(m, v);
  detail::expects(apart, function, "w, g, m and v must not overlap");
  detail::expects(params.step >= 1, function, "step must be >= 1, got ", params.step);
  double const any = std::numeric_limits<double>::infinity();
  check_number("lr", params.lr, any);
  check_number("beta1", params.beta1, 1);
  check_number("beta2", params.beta2, 1);
  check_number("eps", params.eps, any);
  check_number("weight_decay", params.weight_decay, any);
  check_number("scale", params.scale, any);
  check_number("row_limit", params.row_limit, any);
  auto const on_cpu = [&] {
    auto [rows, d] = w.shape;
    bool const by_rows = params.remove_parallel || params.unit_rows || params.row_limit > 0;
    // Where rows mean nothing, the chunks need not keep to them.
    index_t const chunk =
        by_rows ? std::max<index_t>(k_adam_chunk / std::max<index_t>(d, 1), 1) : 1;
    if (!by_rows) {
      rows = (rows * d + k_adam_chunk - 1) / k_adam_chunk;
      d = k_adam_chunk;
    }
    detail::adam_task<T> const task{w.data,
                                    m.data,
                                    v.data,
                                    g.data,
                                    d,
                                    numbers_of<T>(params),
                                    params.scale,
                                    params.row_limit,
                                    params.remove_parallel,
                                    params.unit_rows};
    auto const& kernels = SUBSPAN_PICK(adam_table<T>);
    detail::parallel_for(ctx, rows, chunk, [&](index_t begin, index_t end) {
      index_t const rest = w.size() - begin * d;
      if (by_rows || rest >= d) {
        kernels.step(task, begin, end);
        return;
      }
      auto last = task;  // the rest, as one shorter row
      for (T** part : {&last.w, &last.m, &last.v}) *part += begin * d;
      last.g += begin * d;
      last.d = rest;
      kernels.step(last, 0, 1);
    });
  };
  detail::route(function, w.device, on_cpu, [&](subspan_cuda_table const& cuda) {
    subspan_cuda_adam_call call = call_of<T>(ctx, g, w.data, params);
    call.m = m.data;
    call.v = v.data;
    run_on_device(function, cuda, call);
  });
}

template <class T>
double gradient_norm(context const& ctx, strided_view<T const, 2> g,
                     std::optional<strided_view<T const, 2>> w) {
  char const* const function = "gradient_norm";
  check_rows(function, "g", g, g.shape, g.device);
  if (w) check_rows(function, "w", *w, g.shape, g.device);
  auto const [rows, d] = g.shape;
  if (g.size() == 0) return 0;
  double sum = 0;
  auto const on_cpu = [&, rows = rows, d = d] {
    index_t const grain = std::max<index_t>(k_adam_chunk / d, 1);
    index_t const chunks = (rows + grain - 1) / grain;
    detail::workspace<double> sums(ctx, chunks);
    auto const& kernels = SUBSPAN_PICK(adam_table<T>);
    detail::parallel_for(ctx, rows, grain, [&](index_t begin, index_t end) {
      sums[begin / grain] = kernels.squares(g.data, w ? w->data : nullptr, d, begin, end);
    });
    for (index_t c = 0; c < chunks; ++c) sum += sums[c];
  };
  detail::route(function, g.device, on_cpu, [&](subspan_cuda_table const& cuda) {
    subspan_cuda_adam_call call = call_of<T>(ctx, g, w ? w->data : nullptr, {});
    call.squares = &sum;
    run_on_device(function, cuda, call);
  });
  return std::sqrt(sum);
}

#define SUBSPAN_INSTANTIATE(T)                                                             \
  template void adam_step<T>(context const&, strided_view<T, 2>, strided_view<T const, 2>, \
                             strided_view<T, 2>, strided_view<T, 2>, adam_params const&);  \
  template double gradient_norm<T>(context const&, strided_view<T const, 2>,               \
                                   std::optional<strided_view<T const, 2>>);
SUBSPAN_FOREACH_REAL(SUBSPAN_INSTANTIATE)
#undef SUBSPAN_INSTANTIATE

}  // namespace v0
}  // namespace subspan

#endif  // SUBSPAN_ONCE
