#include "subspan/tensor_power.hpp"

#include <numeric>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "detail/batched.hpp"
#include "detail/dtypes.hpp"
#include "detail/power_plan.hpp"

#define SUBSPAN_FILE "tensor_power.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {
template <class T>
struct whole_register {
  typedef T vector __attribute__((vector_size(SUBSPAN_VECTOR_BYTES)));
};

#include "detail/vectors.inl.hpp"

#include "detail/power_lanes.inl.hpp"

template <class T>
void run_power_lanes(detail::power_task<T> const& task, bool own, void* scratch) {
  using V = typename whole_register<T>::vector;
  if (own)
    power_lanes<V, true>(task, scratch).run();
  else
    power_lanes<V, false>(task, scratch).run();
}

template <class T>
index_t power_lanes_bytes(detail::power_space<T> const& space, bool own) {
  using V = typename whole_register<T>::vector;
  return own ? power_lanes<V, true>::bytes(space) : power_lanes<V, false>::bytes(space);
}

template <class T>
constexpr detail::power_kernels<T> power_table = {SUBSPAN_VECTOR_BYTES / sizeof(T),
                                                  power_lanes_bytes<T>, run_power_lanes<T>};

}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace subspan {
namespace {

/// Elements of the runs that are kept at once, and bytes of coefficients up to which every lane has
/// a tensor of its own, where lanes would lie idle and in any case.
constexpr index_t k_kept_elements = index_t{1} << 23;
constexpr index_t k_own_bytes = index_t{1} << 20, k_own_bytes_always = index_t{1} << 16;
constexpr index_t k_most_elements = 2147483647, k_most_iterations = 1000000;

/// Runs of some tensors at once, and what becomes of them.
template <class T>
class power_batch {
 public:
  power_batch(context const& ctx, strided_view<T const, 2> a, strided_view<T const, 3> starts,
              int order, tensor_power_results<T> const& out, tensor_power_params params)
      : ctx_(ctx),
        a_(a),
        starts_(starts),
        out_(out),
        params_(params),
        plan_(ctx, starts.shape[2], order, params),
        runs_(out.values.shape[1]),
        d_(starts.shape[2]),
        kept_(std::clamp<index_t>(k_kept_elements / (runs_ * (d_ + 4)), 1, a.shape[0])),
        x_(ctx, kept_ * runs_ * d_),
        value_(ctx, kept_ * runs_),
        residual_(ctx, kept_ * runs_),
        scale_(ctx, kept_),
        norm_(ctx, kept_),
        state_(ctx, kept_ * runs_) {
    T const epsilon = std::numeric_limits<T>::epsilon();
    merge_ = params.merge > 0 ? static_cast<T>(params.merge) : std::cbrt(epsilon);
  }

  void run() {
    for (index_t first = 0; first < a_.shape[0]; first += kept_)
      run_some(first, std::min(kept_, a_.shape[0] - first));
  }

 private:
  void run_some(index_t first, index_t count) {
    detail::parallel_for(ctx_, count, 1 + 20000 / plan_.entries(), [&](index_t begin, index_t end) {
      for (index_t i = begin; i < end; ++i) measure(first + i, i);
    });
    run_tasks(first, count);
    detail::parallel_for(ctx_, count, 1 + 2000 / (runs_ * d_), [&](index_t begin, index_t end) {
      for (index_t i = begin; i < end; ++i) collect(first + i, i);
    });
  }

  /// The power of two that brings the greatest entry into [1, 2), and the norm after it; NaN where
  /// an entry is.
  void measure(index_t b, index_t i) {
    T const* const a = a_.data + b * a_.strides[0];
    index_t const n = a_.shape[1], step = a_.strides[1];
    T most = 0;
    bool finite = true;
    for (index_t e = 0; e < n; ++e) {
      T const v = std::abs(a[e * step]);
      finite &= v <= std::numeric_limits<T>::max();
      most = std::max(most, v);
    }
    scale_[i] = T(1);
    norm_[i] = finite ? T(0) : std::numeric_limits<T>::quiet_NaN();
    if (!finite || most == 0) return;
    // The scale of the least numbers would be infinite; that of the greatest subnormal.
    int const limit = std::numeric_limits<T>::max_exponent - 2;
    scale_[i] = std::ldexp(T(1), std::clamp(-std::ilogb(most), -limit, limit));
    T sum = 0;
    for (index_t e = 0; e < n; ++e) {
      T const v = a[e * step] * scale_[i];
      sum += plan_.multiplicity()[e] * v * v;
    }
    norm_[i] = std::sqrt(sum);
  }

  void run_tasks(index_t first, index_t count) {
    auto const& kernels = SUBSPAN_PICK(power_table<T>);
    auto const& space = plan_.space();
    index_t const own_bytes = kernels.scratch(space, true);
    bool const own =
        count > 1 && own_bytes <= (runs_ < kernels.width ? k_own_bytes : k_own_bytes_always);
    index_t const tensors = own ? kernels.width : 1;
    index_t const groups = (count + tensors - 1) / tensors;
    // Several tasks share a tensor where there are fewer tensors than threads need.
    index_t const wanted = 4 * detail::thread_count(ctx_);
    index_t const cuts = std::clamp<index_t>(wanted / groups, 1, runs_);
    index_t const grain = own ? 1 : kernels.width;
    index_t const length = ((runs_ + cuts - 1) / cuts + grain - 1) / grain * grain;
    index_t const parts = (runs_ + length - 1) / length;
    index_t const flip = params_.which == extremum::maximum   ? runs_
                         : params_.which == extremum::minimum ? 0
                                                              : starts_.shape[1];
    detail::parallel_for(ctx_, groups * parts, 1, [&](index_t begin, index_t end) {
      detail::workspace<std::byte> scratch(ctx_, kernels.scratch(space, own));
      for (index_t item = begin; item < end; ++item) {
        index_t const i = item / parts * tensors, part = item % parts;
        index_t const b = first + i;
        detail::power_task<T> const task{
            &space,
            a_.data + b * a_.strides[0],
            a_.strides[0],
            a_.strides[1],
            std::min(tensors, count - i),
            scale_.data() + i,
            norm_.data() + i,
            starts_.data + b * starts_.strides[0],
            starts_.strides[0],
            starts_.strides[1],
            starts_.strides[2],
            starts_.shape[1],
            part * length,
            std::min(runs_, (part + 1) * length),
            flip,
            {x_.data() + i * runs_ * d_, value_.data() + i * runs_, residual_.data() + i * runs_,
             out_.iterations.data + b * runs_, state_.data() + i * runs_},
            runs_};
        kernels.run(task, own, scratch.data());
      }
    });
  }

  /// Merges the runs of a tensor into pairs.
  void collect(index_t b, index_t i) {
    T const nan = std::numeric_limits<T>::quiet_NaN();
    T* const values = out_.values.data + b * runs_;
    T* const residuals = out_.residuals.data + b * runs_;
    T* const vectors = out_.vectors.data + b * runs_ * d_;
    std::int32_t* const kinds = out_.kinds.data + b * runs_;
    std::int32_t* const counts = out_.counts.data + b * runs_;
    std::int32_t* const pair_of = out_.pair_of.data + b * runs_;
    std::fill_n(values, runs_, nan);
    std::fill_n(residuals, runs_, nan);
    std::fill_n(vectors, runs_ * d_, nan);
    std::fill_n(kinds, runs_, 0);
    std::fill_n(counts, runs_, 0);
    std::fill_n(pair_of, runs_, -1);
    out_.pairs(b) = 0;
    bool const finite = norm_[i] == norm_[i];
    out_.info(b) = finite ? 0 : detail::k_info_nonfinite;
    if (!finite || norm_[i] == 0) {
      std::fill_n(out_.iterations.data + b * runs_, runs_, 0);
      return;
    }

    T* const x = x_.data() + i * runs_ * d_;
    T* const value = value_.data() + i * runs_;
    T const* const residual = residual_.data() + i * runs_;
    std::int32_t* const state = state_.data() + i * runs_;
    std::vector<index_t> found;  // runs that ended, the best of them first
    for (index_t j = 0; j < runs_; ++j) {
      if (state[j] == static_cast<std::int32_t>(detail::run_state::exhausted)) continue;
      found.push_back(j);
      if (turns(x + j * d_, value[j])) turn(x + j * d_, value[j], state[j]);
    }
    out_.info(b) = static_cast<std::int32_t>(runs_ - static_cast<index_t>(found.size()));
    std::sort(found.begin(), found.end(), [&](index_t p, index_t q) {
      return residual[p] < residual[q] || (residual[p] == residual[q] && p < q);
    });
    std::vector<index_t> best;  // the run that stands for a pair
    T const close = merge_ * norm_[i] / scale_[i];
    for (index_t const j : found) {
      auto const same = std::find_if(best.begin(), best.end(), [&](index_t k) {
        return std::abs(value[j] - value[k]) <= close && meet(x + j * d_, x + k * d_);
      });
      pair_of[j] = static_cast<std::int32_t>(same - best.begin());
      if (same == best.end()) best.push_back(j);
    }
    auto const pairs = static_cast<index_t>(best.size());
    std::vector<std::int32_t> order(best.size()), place(best.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](auto p, auto q) {
      T const a = value[best[static_cast<std::size_t>(p)]],
              b = value[best[static_cast<std::size_t>(q)]];
      return a > b || (a == b && p < q);
    });
    out_.pairs(b) = static_cast<std::int32_t>(pairs);
    for (index_t p = 0; p < pairs; ++p) {
      auto const from = static_cast<std::size_t>(order[static_cast<std::size_t>(p)]);
      place[from] = static_cast<std::int32_t>(p);
      index_t const j = best[from];
      values[p] = value[j];
      residuals[p] = residual[j];
      std::copy_n(x + j * d_, d_, vectors + p * d_);
      kinds[p] = state[j] == static_cast<std::int32_t>(detail::run_state::maximum)   ? 1
                 : state[j] == static_cast<std::int32_t>(detail::run_state::minimum) ? -1
                                                                                     : 0;
    }
    for (index_t const j : found) {
      pair_of[j] = place[static_cast<std::size_t>(pair_of[j])];
      ++counts[pair_of[j]];
    }
  }

  /// Whether -x is the one to report.
  bool turns(T const* x, T value) const {
    if (plan_.space().order % 2 != 0 && value != 0) return value < 0;
    T most = 0;
    for (index_t i = 0; i < d_; ++i) most = std::max(most, std::abs(x[i]));
    for (index_t i = 0; i < d_; ++i)
      if (std::abs(x[i]) >= most / 2) return x[i] < 0;
    return false;
  }

  void turn(T* x, T& value, std::int32_t& state) const {
    using detail::run_state;
    for (index_t i = 0; i < d_; ++i) x[i] = -x[i];
    if (plan_.space().order % 2 == 0) return;
    value = -value;
    if (state == static_cast<std::int32_t>(run_state::maximum))
      state = static_cast<std::int32_t>(run_state::minimum);
    else if (state == static_cast<std::int32_t>(run_state::minimum))
      state = static_cast<std::int32_t>(run_state::maximum);
  }

  /// Whether two vectors are one, up to the sign that rounding may have decided.
  bool meet(T const* x, T const* y) const {
    T minus = 0, plus = 0;
    for (index_t i = 0; i < d_; ++i) {
      minus += (x[i] - y[i]) * (x[i] - y[i]);
      plus += (x[i] + y[i]) * (x[i] + y[i]);
    }
    return std::min(minus, plus) <= merge_ * merge_;
  }

  context const& ctx_;
  strided_view<T const, 2> a_;
  strided_view<T const, 3> starts_;
  tensor_power_results<T> const& out_;
  tensor_power_params params_;
  detail::power_plan<T> plan_;
  index_t runs_, d_, kept_;
  T merge_;
  detail::workspace<T> x_, value_, residual_, scale_, norm_;
  detail::workspace<std::int32_t> state_;
};

template <class T>
void check_starts(strided_view<T const, 3> const& starts) {
  auto const [batch, count, d] = starts.shape;
  index_t const matrices = starts.strides[0] == 0 ? 1 : batch;
  for (index_t b = 0; b < matrices; ++b)
    for (index_t s = 0; s < count; ++s) {
      T most = 0;
      bool finite = true;
      for (index_t i = 0; i < d; ++i) {
        T const v = std::abs(starts(b, s, i));
        finite &= v <= std::numeric_limits<T>::max();
        most = std::max(most, v);
      }
      detail::expects(finite && most > 0, "tensor_power",
                      "starts must be finite and not zero, got start ", s, " of tensor ", b,
                      " that is not. Leave it out");
    }
}

template <class T>
void check_arguments(strided_view<T const, 2> const& a, strided_view<T const, 3> const& starts,
                     int order, tensor_power_results<T> const& out,
                     tensor_power_params const& params) {
  char const* const name = "tensor_power";
  detail::require_cpu(name, a.device);
  detail::require_cpu(name, starts.device);
  detail::expects(order >= 3 && order <= detail::k_greatest_order, name,
                  "order must be in 3..6, got ", order, ". For order 2 use eigh");
  auto const [batch, count, d] = starts.shape;
  detail::expects(d >= 1 && count >= 1, name, "starts must have 1 or more rows and columns, got ",
                  count, " x ", d);
  // C(d + order - 1, order), in doubles until it is known to be small.
  double entries = 1;
  for (int k = 0; k < order; ++k) entries = entries * static_cast<double>(d + k) / (k + 1);
  double const pairs = static_cast<double>(d) * static_cast<double>(d + 1) / 2;
  double table = pairs;
  for (int k = 0; k < order - 2; ++k) table = table * static_cast<double>(d + k) / (k + 1);
  detail::expects(table <= static_cast<double>(k_most_elements), name,
                  "a must have fewer than 2^31 coefficients, got about ", table, " for dimension ",
                  d, " and order ", order);
  auto const wanted = static_cast<index_t>(entries + 0.5);
  detail::expects(a.shape[1] == wanted, name, "a must have ", wanted, " entries for dimension ", d,
                  " and order ", order, ", got ", a.shape[1]);
  detail::expects(a.shape[0] == batch, name, "starts must be for ", a.shape[0], " tensors, got ",
                  batch);
  detail::expects(params.shift >= 0 && params.shift <= std::numeric_limits<double>::max(), name,
                  "shift must be finite and >= 0, got ", params.shift,
                  ". Look for minima instead of a negative shift");
  detail::expects(params.max_iter >= 1 && params.max_iter <= k_most_iterations, name,
                  "max_iter must be in 1..", k_most_iterations, ", got ", params.max_iter);
  index_t const runs = params.which == extremum::both ? 2 * count : count;
  auto const check = [&](auto const& view, auto const& shape) {
    detail::expects(view.shape == shape && view.is_row_major() && view.device == a.device, name,
                    "outputs must be C-ordered, on the CPU, and of the documented shapes");
    detail::expects(!overlaps(view, a) && !overlaps(view, starts), name,
                    "outputs must not overlap a or starts");
  };
  std::array<index_t, 2> const flat{batch, runs};
  check(out.values, flat);
  check(out.vectors, std::array<index_t, 3>{batch, runs, d});
  check(out.residuals, flat);
  check(out.kinds, flat);
  check(out.counts, flat);
  check(out.iterations, flat);
  check(out.pair_of, flat);
  check(out.pairs, std::array<index_t, 1>{batch});
  check(out.info, std::array<index_t, 1>{batch});
}

void apply_policies(strided_view<std::int32_t, 1> const& info, tensor_power_params const& params) {
  index_t const batch = info.shape[0];
  index_t failed = 0, first = -1;
  for (index_t b = 0; b < batch; ++b) {
    if (info(b) < 0 && params.nonfinite == nonfinite_policy::raise)
      detail::fail(error_kind::invalid_argument, "tensor_power",
                   "a must be finite, got NaN or infinity in tensor ", b, " of ", batch,
                   ". Pass nonfinite=\"propagate\" to get NaN for it and results for the others");
    if (info(b) > 0 && failed++ == 0) first = b;
  }
  if (failed > 0 && params.raise_no_convergence)
    detail::fail(error_kind::no_convergence, "tensor_power", failed, " of ", batch,
                 " tensors have runs that did not converge in ", params.max_iter,
                 " iterations, the first is ", first, " (", info(first),
                 " runs). Raise max_iter, or pass errors=\"info\" to get the others");
}

}  // namespace

inline namespace SUBSPAN_ABI {

template <class T>
void tensor_power(context const& ctx, strided_view<T const, 2> a, strided_view<T const, 3> starts,
                  int order, tensor_power_results<T> const& out, tensor_power_params params) {
  check_arguments(a, starts, order, out, params);
  if (a.shape[0] == 0) return;
  check_starts(starts);
  power_batch<T>(ctx, a, starts, order, out, params).run();
  apply_policies(out.info, params);
}

#define SUBSPAN_INSTANTIATE(T)                                                                 \
  template void tensor_power<T>(context const&, strided_view<T const, 2>,                      \
                                strided_view<T const, 3>, int, tensor_power_results<T> const&, \
                                tensor_power_params);
SUBSPAN_FOREACH_REAL(SUBSPAN_INSTANTIATE)
#undef SUBSPAN_INSTANTIATE

}  // namespace v0
}  // namespace subspan
#endif  // SUBSPAN_ONCE
