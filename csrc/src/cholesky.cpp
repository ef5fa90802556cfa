#include "subspan/cholesky.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "detail/dtypes.hpp"
#include "detail/triangle_packs.hpp"

#define SUBSPAN_FILE "cholesky.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {
#include "detail/pack_levels.inl.hpp"

#include "detail/triangle_packs.inl.hpp"

/// 2^-e for x = m 4^e, 1 <= m < 4. Subnormal numbers are taken for the least normal one, so that
/// the product of two such scales is finite.
template <class V>
inline V scale_of_root(V x) {
  using bits = lane_mask<V>;
  using limits = std::numeric_limits<lane_type<V>>;
  constexpr int mantissa = limits::digits - 1;
  constexpr lane_index<V> bias = limits::max_exponent - 1;
  bits const exponent = larger((bits)magnitude(x) >> mantissa, bits{} + 1);
  return (V)((bias + (bias + 1) / 2 - ((exponent + 1) >> 1)) << mantissa);
}

/// Left-looking factorization of the lower triangle of a pack, block by block.
template <class V>
class pack_factorization {
 public:
  static index_t scratch(index_t n) { return n * pack_pitch(n) + 2 * n; }
  pack_factorization(V* memory, index_t n)
      : n_(n),
        pitch_(pack_pitch(n)),
        scale_(memory + n * pitch_),
        inverse_(scale_ + n),
        l_{memory, pitch_, 1} {}

  /// In every lane 0, -1 if not finite, or the order of the first minor that is not positive.
  lane_mask<V> factor(detail::pack_input<lane_type<V>> const& a) {
    load_triangle<V>(a, l_.data, pitch_);
    scale();
    index_t i = 0;
    for (; i + k_block <= n_; i += k_block) factor_rows<k_block>(i);
    for (; i < n_; ++i) factor_rows<1>(i);
    // What is not finite spoils the pivot of its row.
    if (any(order_))
      for (index_t l = 0; l < a.count; ++l)
        if (order_[l] != 0 && !is_finite_triangle(a, l)) order_[l] = detail::k_info_nonfinite;
    return order_;
  }

  void store(lane_mask<V> status, index_t count, detail::pack_output<lane_type<V>> const& to) {
    auto const fine = status == 0;
    V const nan = all_lanes<V>(std::numeric_limits<lane_type<V>>::quiet_NaN());
    V const above = fine ? V{} : nan;
    for (index_t i = 0; i < n_; ++i) {
      V const undo = fine ? 1 / scale_[i] : nan;
      for (index_t j = 0; j <= i; ++j) l_(i, j) *= undo;
      for (index_t j = i + 1; j < n_; ++j) l_(i, j) = above;
    }
    store_rectangle<V>(l_.data, n_, n_, pitch_, count, to);
  }

 private:
  void scale() {
    for (index_t i = 0; i < n_; ++i) {
      V const own = scale_[i] = scale_of_root(l_(i, i));
      for (index_t j = 0; j <= i; ++j) l_(i, j) *= own * scale_[j];
    }
  }

  template <int Rows>
  void factor_rows(index_t i) {
    index_t j = 0;
    for (; j + k_block <= i; j += k_block) solve_block<Rows, k_block>(i, j);
    for (; j < i; ++j) solve_block<Rows, 1>(i, j);
    factor_block<Rows>(i);
  }

  template <int Rows, int Columns>
  void reduce(index_t i, index_t j, V (&sum)[Rows][Columns]) const {
    for (int r = 0; r < Rows; ++r)
      for (int c = 0; c < Columns; ++c) sum[r][c] = l_(i + r, j + c);
    subtract_products<Rows, Columns, V>({&l_(i, 0), pitch_, 1}, {&l_(j, 0), 1, pitch_}, j, sum);
  }

  template <int Rows, int Columns>
  void solve_block(index_t i, index_t j) {
    V sum[Rows][Columns];
    reduce(i, j, sum);
    for (int c = 0; c < Columns; ++c) {
      V const inverse = inverse_[j + c];
      for (int r = 0; r < Rows; ++r) l_(i + r, j + c) = sum[r][c] *= inverse;
      for (int p = c + 1; p < Columns; ++p) {
        V const factor = l_(j + p, j + c);
        for (int r = 0; r < Rows; ++r) sum[r][p] -= sum[r][c] * factor;
      }
    }
  }

  /// What the products put above the diagonal is not used.
  template <int Rows>
  void factor_block(index_t i) {
    V sum[Rows][Rows];
    reduce(i, i, sum);
    for (int c = 0; c < Rows; ++c) {
      auto const positive = (sum[c][c] > 0) & (sum[c][c] < 8);  // 4, and infinity is none
      order_ = (order_ == 0) & ~positive ? lane_mask<V>{} + static_cast<lane_index<V>>(i + c + 1)
                                         : order_;
      V const root = square_root(positive ? sum[c][c] : all_lanes<V>(1));
      V const inverse = inverse_[i + c] = 1 / root;
      l_(i + c, i + c) = root;
      for (int r = c + 1; r < Rows; ++r) l_(i + r, i + c) = sum[r][c] *= inverse;
      for (int p = c + 1; p < Rows; ++p)
        for (int r = p; r < Rows; ++r) sum[r][p] -= sum[r][c] * sum[p][c];
    }
  }

  index_t n_, pitch_;
  V *scale_, *inverse_;
  pack_view<V> l_;
  lane_mask<V> order_{};
};

template <class T, int W>
void run_cholesky_pack(detail::cholesky_pack<T> const& task, void* memory) {
  using V = pack<T, W>;
  pack_factorization<V> work(static_cast<V*>(memory), task.a.rows);
  lane_mask<V> const status = work.factor(task.a);
  work.store(status, task.a.count, task.l);
  for (index_t l = 0; l < task.a.count; ++l) task.info[l] = static_cast<std::int32_t>(status[l]);
}

template <class T, int W>
index_t cholesky_pack_bytes(index_t n, index_t) {
  return pack_factorization<pack<T, W>>::scratch(n) * W * static_cast<index_t>(sizeof(T));
}

/// One matrix, of which L^T is made with the lanes along its rows. Every entry is the result of the
/// same operations in the same order as in a pack, and so has the same bits.
template <class T>
class row_factorization {
 public:
  using V = row_vector<T>;

  static index_t scratch(index_t n) { return n * row_pitch<T>(n) + n; }
  row_factorization(T* memory, index_t n)
      : n_(n), pitch_(row_pitch<T>(n)), u_(memory), scale_(memory + n * pitch_) {}

  std::int32_t factor(detail::pack_input<T> const& a, index_t lane) {
    load(a, a.data + lane * a.next);
    index_t j = 0;
    std::int32_t order = 0;
    for (; order == 0 && j + k_block <= n_; j += k_block) order = factor_rows<k_block>(j);
    for (; order == 0 && j < n_; ++j) order = factor_rows<1>(j);
    return order == 0 || is_finite_triangle(a, lane) ? order : detail::k_info_nonfinite;
  }

  void store(std::int32_t status, T* to) const {
    if (status != 0) {
      std::fill_n(to, n_ * n_, std::numeric_limits<T>::quiet_NaN());
      return;
    }
    for (index_t i = 0; i < n_; ++i, to += n_) {
      T const undo = 1 / scale_[i];
      for (index_t j = 0; j <= i; ++j) to[j] = u_[j * pitch_ + i] * undo;
      std::fill(to + i + 1, to + n_, T{0});
    }
  }

 private:
  void load(detail::pack_input<T> const& a, T const* from) {
    std::fill_n(u_, n_ * pitch_, T{0});
    for (index_t i = 0; i < n_; ++i) {
      T const* const row = from + i * a.row_stride;
      T const own = scale_[i] = scale_of_root(all_lanes<V>(row[i * a.col_stride]))[0];
      for (index_t j = 0; j <= i; ++j)
        u_[j * pitch_ + i] = row[j * a.col_stride] * (own * scale_[j]);
    }
  }

  V* row(index_t j) const { return vectors_at(u_ + j * pitch_); }

  /// What lies left of the diagonal in its vector is of no meaning.
  template <int Rows>
  std::int32_t factor_rows(index_t j) {
    index_t const first = j / k_row_lanes<T>, last = vectors_of<T>(n_);
    index_t at = first;
    for (; at + k_block <= last; at += k_block) reduce<Rows, k_block>(j, at);
    for (; at < last; ++at) reduce<Rows, 1>(j, at);
    for (int r = 0; r < Rows; ++r) {
      V* const own = row(j + r);
      T& diagonal = u_[(j + r) * pitch_ + j + r];
      T const pivot = diagonal;
      if (!(pivot > 0 && pivot < 8)) return static_cast<std::int32_t>(j + r + 1);
      T const root = std::sqrt(pivot);
      V const inverse = all_lanes<V>(1 / root);
      for (index_t c = first; c < last; ++c) own[c] *= inverse;
      diagonal = root;
      for (int p = r + 1; p < Rows; ++p) {
        V const factor = all_lanes<V>(u_[(j + r) * pitch_ + j + p]);
        V* const other = row(j + p);
        for (index_t c = first; c < last; ++c) other[c] -= own[c] * factor;
      }
    }
    return 0;
  }

  template <int Rows, int Columns>
  void reduce(index_t j, index_t at) {
    V sum[Rows][Columns];
    for (int r = 0; r < Rows; ++r)
      for (int c = 0; c < Columns; ++c) sum[r][c] = row(j + r)[at + c];
    for (index_t k = 0; k < j; ++k) {
      V right[Columns];
      for (int c = 0; c < Columns; ++c) right[c] = row(k)[at + c];
      for (int r = 0; r < Rows; ++r) {
        V const left = all_lanes<V>(u_[k * pitch_ + j + r]);
        for (int c = 0; c < Columns; ++c) sum[r][c] -= left * right[c];
      }
    }
    for (int r = 0; r < Rows; ++r)
      for (int c = 0; c < Columns; ++c) row(j + r)[at + c] = sum[r][c];
  }

  index_t n_, pitch_;
  T *u_, *scale_;
};

template <class T>
void run_cholesky_rows(detail::cholesky_pack<T> const& task, void* memory) {
  row_factorization<T> work(static_cast<T*>(memory), task.a.rows);
  for (index_t l = 0; l < task.a.count; ++l) {
    task.info[l] = work.factor(task.a, l);
    work.store(task.info[l], task.l.data + l * task.l.next);
  }
}

template <class T>
index_t cholesky_rows_bytes(index_t n, index_t) {
  return row_factorization<T>::scratch(n) * static_cast<index_t>(sizeof(T));
}

/// A pack takes the time of a few matrices one by one.
template <class T>
constexpr detail::pack_kernels<detail::cholesky_pack<T>> cholesky_kernels = {
    {k_wide_pack<T>, cholesky_pack_bytes<T, k_wide_pack<T>>, run_cholesky_pack<T, k_wide_pack<T>>},
    {std::max(k_wide_pack<T> / 4, 1), cholesky_rows_bytes<T>, run_cholesky_rows<T>}};

}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace subspan {
namespace {

/// Which matrices go into packs where there are enough of them, and which have the lanes along their
/// rows in any case; larger ones go to LAPACK.
constexpr index_t k_cholesky_limit = 64, k_cholesky_rows_limit = 511;

template <class T>
class cholesky_worker {
 public:
  cholesky_worker(context const& ctx, strided_view<T const, 3> a, strided_view<T, 3> l,
                  nonfinite_policy policy)
      : a_(a), l_(l), policy_(policy), n_(static_cast<int>(a.shape[1])), scale_(ctx, n_) {}

  std::int32_t solve(index_t b) {
    T* const l = l_.data + b * l_.strides[0];
    if (!load(b, l) && policy_ != nonfinite_policy::ignore)
      return refuse(b, detail::k_info_nonfinite);
    int info = 0;
    detail::potrf('U', n_, l, n_, info);  // of what is the transpose in column-major order
    if (info > 0) return refuse(b, info);
    for (index_t i = 0; i < n_; ++i) {
      T const undo = 1 / scale_[i];
      for (index_t j = 0; j <= i; ++j) l[i * n_ + j] *= undo;
    }
    return 0;
  }

 private:
  std::int32_t refuse(index_t b, std::int32_t info) {
    detail::fill_matrix(l_, b, std::numeric_limits<T>::quiet_NaN());
    return info;
  }

  /// The scaled lower triangle; whether it is finite.
  bool load(index_t b, T* l) {
    auto const [sb, si, sj] = a_.strides;
    T const* const a = a_.data + b * sb;
    bool finite = true;
    for (index_t i = 0; i < n_; ++i) {
      T* const row = l + i * n_;
      T const* const from = a + i * si;
      if (sj == 1)
        std::copy_n(from, i + 1, row);
      else
        for (index_t j = 0; j <= i; ++j) row[j] = from[j * sj];
      scale_[i] = scale_of_root(row[i]);
      bool all = true;
      for (index_t j = 0; j <= i; ++j) {
        all &= std::abs(row[j]) <= std::numeric_limits<T>::max();
        // Beyond 4 the matrix is not definite, whatever the number; it must not become infinite.
        row[j] = std::clamp<T>(row[j] * (scale_[i] * scale_[j]), -8, 8);
      }
      finite &= all;
      std::fill(row + i + 1, row + n_, T{0});
    }
    return finite;
  }

  /// As that of packs.
  static T scale_of_root(T x) {
    using limits = std::numeric_limits<T>;
    int exponent = limits::min_exponent - 1;
    if (std::abs(x) >= limits::min()) exponent = std::min(std::ilogb(x), limits::max_exponent - 1);
    return std::ldexp(T{1}, -(exponent >> 1));
  }

  strided_view<T const, 3> a_;
  strided_view<T, 3> l_;
  nonfinite_policy policy_;
  int n_;
  detail::workspace<T> scale_;
};

void apply_policies(std::int32_t const* info, index_t batch, cholesky_params params) {
  detail::apply_policies("cholesky", info, batch, {params.nonfinite, false});
  if (!params.raise_not_definite) return;
  index_t const failed = std::count_if(info, info + batch, [](auto status) { return status > 0; });
  if (failed == 0) return;
  index_t const first = std::find_if(info, info + batch, [](auto s) { return s > 0; }) - info;
  detail::fail(error_kind::invalid_argument, "cholesky", "a must be positive definite, got ",
               failed, " of ", batch, " matrices that are not, the first is ", first,
               " (its leading minor of order ", info[first],
               "). Pass errors=\"info\" to get the others and the status of each");
}

}  // namespace

inline namespace SUBSPAN_ABI {

template <class T>
void cholesky(context const& ctx, strided_view<T const, 3> a, strided_view<T, 3> l,
              strided_view<std::int32_t, 1> info, cholesky_params params) {
  auto const [batch, n, columns] = a.shape;
  detail::require_cpu("cholesky", a.device);
  detail::check_batch("cholesky", a, info);
  detail::expects(n == columns, "cholesky", "a must be square in its last two axes, got ", n, " x ",
                  columns);
  detail::check_output<T, 3>("cholesky", "l", l, {batch, n, n}, a);
  if (n == 0) {
    std::fill_n(info.data, batch, 0);
  } else if (n <= k_cholesky_rows_limit) {
    auto const make_task = [&](index_t first, index_t count) {
      return detail::cholesky_pack<T>{detail::input_of(a, false, first, count),
                                      detail::output_of(l, false, first), info.data + first};
    };
    // Copying counts as much as arithmetic.
    double const flops = static_cast<double>(n * n) * (4 + static_cast<double>(n) / 3);
    auto kernels = SUBSPAN_PICK(cholesky_kernels<T>);
    if (n > k_cholesky_limit) kernels.wide = kernels.narrow;
    detail::run_packs(ctx, batch, n, n, flops, kernels, make_task);
  } else {
    detail::for_each_matrix(ctx, "cholesky", a, info, {nonfinite_policy::ignore, false},
                            [&] { return cholesky_worker<T>(ctx, a, l, params.nonfinite); });
  }
  apply_policies(info.data, batch, params);
}

#define SUBSPAN_INSTANTIATE(T)                                                            \
  template void cholesky<T>(context const&, strided_view<T const, 3>, strided_view<T, 3>, \
                            strided_view<std::int32_t, 1>, cholesky_params);
SUBSPAN_FOREACH_REAL(SUBSPAN_INSTANTIATE)
#undef SUBSPAN_INSTANTIATE

}  // namespace v0
}  // namespace subspan
#endif  // SUBSPAN_ONCE
