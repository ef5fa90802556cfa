#include "subspan/solve_triangular.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "detail/dtypes.hpp"
#include "detail/triangle_packs.hpp"

#define SUBSPAN_FILE "solve_triangular.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {
#include "detail/pack_levels.inl.hpp"

#include "detail/triangle_packs.inl.hpp"

#include "detail/row_substitution.inl.hpp"

/// Forward substitution with the lower triangle of a pack, block by block.
template <class V>
class pack_substitution {
 public:
  static index_t scratch(index_t n, index_t k) {
    return n * (pack_pitch(n) + pack_pitch(k)) + 2 * n;
  }
  pack_substitution(V* memory, index_t n, index_t k)
      : n_(n),
        k_(k),
        a_{memory, pack_pitch(n), 1},
        x_{memory + n * a_.row, pack_pitch(k), 1},
        inverse_(x_.data + n * x_.row),
        power_(inverse_ + n) {}

  /// In every lane 0, -1 if not finite, or the place, from 1, of the first zero on the diagonal.
  lane_mask<V> solve(detail::substitution_pack<lane_type<V>> const& task) {
    load_triangle<V>(task.a, a_.data, a_.row);
    load_rectangle<V>(task.b, x_.data, x_.row);
    lane_mask<V> finite = V{} == V{};
    lane_mask<V> status = prepare(task.unit_diagonal, task.reversed, finite);
    index_t i = 0;
    for (; i + k_block <= n_; i += k_block) solve_rows<k_block>(i);
    for (; i < n_; ++i) solve_rows<1>(i);
    // What is not finite off the diagonal makes some of x so; x may also overflow by itself.
    for (i = 0; i < n_; ++i)
      for (index_t j = 0; j < k_; ++j) finite &= is_finite(x_(i, j));
    if (any(~finite))
      for (index_t l = 0; l < task.a.count; ++l)
        if (finite[l] == 0 &&
            !(is_finite_triangle(task.a, l, task.unit_diagonal) && is_finite_rectangle(task.b, l)))
          status[l] = detail::k_info_nonfinite;
    return status;
  }

  void store(lane_mask<V> status, index_t count, detail::pack_output<lane_type<V>> const& to) {
    V const nan = all_lanes<V>(std::numeric_limits<lane_type<V>>::quiet_NaN());
    if (any(status))
      for (index_t i = 0; i < n_; ++i)
        for (index_t j = 0; j < k_; ++j) x_(i, j) = status == 0 ? x_(i, j) : nan;
    store_rectangle<V>(x_.data, n_, k_, x_.row, count, to);
  }

 private:
  /// The inverse of the diagonal, in two factors so that neither overflows nor underflows.
  lane_mask<V> prepare(bool unit_diagonal, bool reversed, lane_mask<V>& finite) {
    constexpr lane_type<V> big = sizeof(lane_type<V>) == 4 ? 0x1p64f : 0x1p512;
    V const one = all_lanes<V>(1);
    lane_mask<V> zero{};
    for (index_t i = 0; i < n_; ++i) {
      V const diagonal = unit_diagonal ? one : a_(i, i), size = magnitude(diagonal);
      finite &= is_finite(diagonal);
      auto const place = lane_mask<V>{} + static_cast<lane_index<V>>(reversed ? n_ - i : i + 1);
      if (reversed)
        zero = diagonal == 0 ? place : zero;
      else
        zero = (diagonal == 0) & (zero == 0) ? place : zero;
      power_[i] = size < 1 / big ? all_lanes<V>(big) : size > big ? all_lanes<V>(1 / big) : one;
      inverse_[i] = 1 / (diagonal * power_[i]);
    }
    return zero;
  }

  template <int Rows>
  void solve_rows(index_t i) {
    index_t j = 0;
    for (; j + k_block <= k_; j += k_block) solve_block<Rows, k_block>(i, j);
    for (; j < k_; ++j) solve_block<Rows, 1>(i, j);
  }

  template <int Rows, int Columns>
  void solve_block(index_t i, index_t j) {
    V sum[Rows][Columns];
    for (int r = 0; r < Rows; ++r)
      for (int c = 0; c < Columns; ++c) sum[r][c] = x_(i + r, j + c);
    subtract_products<Rows, Columns, V>({&a_(i, 0), a_.row, 1}, {&x_(0, j), x_.row, 1}, i, sum);
    for (int r = 0; r < Rows; ++r) {
      V const inverse = inverse_[i + r], power = power_[i + r];
      for (int c = 0; c < Columns; ++c) x_(i + r, j + c) = sum[r][c] = sum[r][c] * inverse * power;
      for (int q = r + 1; q < Rows; ++q) {
        V const factor = a_(i + q, i + r);
        for (int c = 0; c < Columns; ++c) sum[q][c] -= factor * sum[r][c];
      }
    }
  }

  index_t n_, k_;
  pack_view<V> a_, x_;
  V *inverse_, *power_;
};

template <class T, int W>
void run_substitution_pack(detail::substitution_pack<T> const& task, void* memory) {
  using V = pack<T, W>;
  index_t const count = task.a.count;
  pack_substitution<V> work(static_cast<V*>(memory), task.b.rows, task.b.cols);
  lane_mask<V> const status = work.solve(task);
  work.store(status, count, task.x);
  for (index_t l = 0; l < count; ++l) task.info[l] = static_cast<std::int32_t>(status[l]);
}

template <class T, int W>
index_t substitution_pack_bytes(index_t n, index_t k) {
  return pack_substitution<pack<T, W>>::scratch(n, k) * W * static_cast<index_t>(sizeof(T));
}

template <class T>
void run_substitution_rows(detail::substitution_pack<T> const& task, void* memory) {
  for (index_t l = 0; l < task.a.count; ++l) {
    row_substitution<T> work(task, l, static_cast<T*>(memory));
    task.info[l] = work.solve(l);
    work.store(task.info[l], l);
  }
}

template <class T>
index_t substitution_rows_bytes(index_t n, index_t k) {
  return row_substitution<T>::scratch(n, k) * static_cast<index_t>(sizeof(T));
}

/// A pack takes the time of a few systems one by one.
template <class T>
constexpr detail::pack_kernels<detail::substitution_pack<T>> substitution_kernels = {
    {k_wide_pack<T>, substitution_pack_bytes<T, k_wide_pack<T>>,
     run_substitution_pack<T, k_wide_pack<T>>},
    {std::max(k_wide_pack<T> / 4, 1), substitution_rows_bytes<T>, run_substitution_rows<T>}};

}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace subspan {
namespace {

/// Which systems go into packs where there are enough of them, and which have the lanes along their
/// rows in any case; larger ones go to BLAS.
constexpr index_t k_substitution_limit = 64, k_substitution_rows_limit = 256;

/// op(a) x = b, with a the way it is stored.
template <class T>
struct triangular_system {
  strided_view<T const, 3> a, b;
  strided_view<T, 3> x;
  bool lower, unit_diagonal;

  void transpose() {
    std::swap(a.shape[1], a.shape[2]);
    std::swap(a.strides[1], a.strides[2]);
    lower = !lower;
  }
};

/// The same rows from the last to the first: turns an upper triangle into a lower one.
template <class T>
T* reversed(T* data, index_t n, index_t& stride) {
  data += (n - 1) * stride;
  stride = -stride;
  return data;
}

template <class T>
detail::substitution_pack<T> pack_of(triangular_system<T> const& system, index_t first,
                                     index_t count, std::int32_t* info) {
  detail::substitution_pack<T> task{detail::input_of(system.a, false, first, count),
                                    detail::input_of(system.b, false, first, count),
                                    detail::output_of(system.x, false, first),
                                    system.unit_diagonal,
                                    !system.lower,
                                    info + first};
  if (system.lower) return task;
  index_t const n = task.a.rows;
  task.a.data = reversed(task.a.data, n, task.a.row_stride);
  task.a.data = reversed(task.a.data, n, task.a.col_stride);
  task.b.data = reversed(task.b.data, n, task.b.row_stride);
  task.x.data = reversed(task.x.data, n, task.x.row_stride);
  return task;
}

template <class T>
class substitution_worker {
 public:
  substitution_worker(context const& ctx, triangular_system<T> const& system,
                      nonfinite_policy policy)
      : system_(system),
        policy_(policy),
        n_(static_cast<int>(system.b.shape[1])),
        k_(static_cast<int>(system.b.shape[2])) {
    // BLAS reads columns and b and x are in rows: x^T a^T = b^T.
    auto const& strides = system_.a.strides;
    if (strides[1] == 1 && strides[2] != 1) {
      system_.transpose();
      transposed_ = true;
    }
    in_place_ = strides[2] == 1 && strides[1] >= n_ && strides[1] <= 2147483647;
    if (!in_place_) copy_.emplace(ctx, index_t{n_} * n_);
  }

  std::int32_t solve(index_t b) {
    T* const x = system_.x.data + b * system_.x.strides[0];
    bool finite = detail::load_matrix(system_.b, b, x);
    auto const [data, pitch] = triangle(b);
    std::int32_t zero = 0;
    for (index_t i = 0; i < n_; ++i) {
      T const* const row = data + i * pitch;
      auto const [begin, end] = columns(i);
      bool all = true;
      for (index_t j = begin; j < end; ++j)
        all &= std::abs(row[j]) <= std::numeric_limits<T>::max();
      finite &= all;
      if (!system_.unit_diagonal && row[i] == 0 && zero == 0)
        zero = static_cast<std::int32_t>(i + 1);
    }
    std::int32_t const info =
        finite || policy_ == nonfinite_policy::ignore ? zero : detail::k_info_nonfinite;
    if (info != 0) {
      detail::fill_matrix(system_.x, b, std::numeric_limits<T>::quiet_NaN());
      return info;
    }
    detail::trsm('R', system_.lower ? 'U' : 'L', transposed_ ? 'T' : 'N',
                 system_.unit_diagonal ? 'U' : 'N', k_, n_, data, static_cast<int>(pitch), x, k_);
    return 0;
  }

 private:
  struct rows {
    T const* data;
    index_t pitch;
  };

  /// What counts of row i.
  std::pair<index_t, index_t> columns(index_t i) const {
    index_t const diagonal = system_.unit_diagonal ? 0 : 1;
    return system_.lower ? std::pair<index_t, index_t>{0, i + diagonal}
                         : std::pair<index_t, index_t>{i + 1 - diagonal, n_};
  }

  rows triangle(index_t b) {
    auto const [sb, si, sj] = system_.a.strides;
    T const* const a = system_.a.data + b * sb;
    if (in_place_) return {a, si};
    T* const copy = copy_->data();
    for (index_t i = 0; i < n_; ++i) {
      auto const [begin, end] = columns(i);
      for (index_t j = begin; j < end; ++j) copy[i * n_ + j] = a[i * si + j * sj];
    }
    return {copy, n_};
  }

  triangular_system<T> system_;
  nonfinite_policy policy_;
  int n_, k_;
  bool transposed_ = false, in_place_ = false;
  std::optional<detail::workspace<T>> copy_;
};

void apply_policies(std::int32_t const* info, index_t batch,
                    solve_triangular_params const& params) {
  char const* const function = "solve_triangular";
  auto const* const end = info + batch;
  auto const* const bad = std::find(info, end, detail::k_info_nonfinite);
  if (bad != end && params.nonfinite == nonfinite_policy::raise)
    detail::fail(error_kind::invalid_argument, function,
                 "a and b must be finite, got NaN or infinity in matrix ", bad - info, " of ",
                 batch,
                 ". Pass nonfinite=\"propagate\" to get NaN for it and results for the "
                 "others");
  auto const singular = [](std::int32_t status) { return status > 0; };
  index_t const failed = std::count_if(info, end, singular);
  if (failed == 0 || !params.raise_singular) return;
  auto const* const first = std::find_if(info, end, singular);
  detail::fail(error_kind::invalid_argument, function,
               "a must have no zero on its diagonal, got one in ", failed, " of ", batch,
               " matrices, the first is ", first - info, " (element ", *first,
               " of its diagonal). Pass errors=\"info\" to get the others and the status of each");
}

}  // namespace

inline namespace SUBSPAN_ABI {

template <class T>
void solve_triangular(context const& ctx, strided_view<T const, 3> a, strided_view<T const, 3> b,
                      strided_view<T, 3> x, strided_view<std::int32_t, 1> info,
                      solve_triangular_params params) {
  char const* const function = "solve_triangular";
  auto const [batch, n, k] = b.shape;
  detail::require_cpu(function, a.device);
  detail::check_batch(function, a, info);
  detail::expects(a.shape[1] == a.shape[2], function, "a must be square in its last two axes, got ",
                  a.shape[1], " x ", a.shape[2]);
  detail::expects(batch == a.shape[0] && n == a.shape[1] && k <= 2147483647 && b.device == a.device,
                  function, "b must be [", a.shape[0], ", ", a.shape[1],
                  ", k], on the device of a, got [", batch, ", ", n, ", ", k, "]");
  detail::check_output<T, 3>(function, "x", x, b.shape, a);
  detail::expects(!overlaps(x, b), function, "x must not overlap b");
  triangular_system<T> system{a, b, x, params.lower, params.unit_diagonal};
  if (params.transposed) system.transpose();
  if (n == 0 || k == 0) {
    std::fill_n(info.data, batch, 0);
  } else if (std::max(n, k) <= k_substitution_rows_limit) {
    // Copying counts as much as arithmetic.
    double const flops = static_cast<double>(n * (n + k)) * (4 + static_cast<double>(k) / 2);
    auto kernels = SUBSPAN_PICK(substitution_kernels<T>);
    if (std::max(n, k) > k_substitution_limit) kernels.wide = kernels.narrow;
    detail::run_packs(ctx, batch, n, k, flops, kernels, [&](index_t first, index_t count) {
      return pack_of(system, first, count, info.data);
    });
  } else {
    detail::for_each_matrix(ctx, function, b, info, {nonfinite_policy::ignore, false},
                            [&] { return substitution_worker<T>(ctx, system, params.nonfinite); });
  }
  apply_policies(info.data, batch, params);
}

#define SUBSPAN_INSTANTIATE(T)                                                    \
  template void solve_triangular<T>(context const&, strided_view<T const, 3>,     \
                                    strided_view<T const, 3>, strided_view<T, 3>, \
                                    strided_view<std::int32_t, 1>, solve_triangular_params);
SUBSPAN_FOREACH_REAL(SUBSPAN_INSTANTIATE)
#undef SUBSPAN_INSTANTIATE

}  // namespace v0
}  // namespace subspan
#endif  // SUBSPAN_ONCE
