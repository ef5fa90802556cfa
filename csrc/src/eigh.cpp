#include "subspan/eigh.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "detail/dtypes.hpp"
#include "detail/values_kernels.hpp"

#define SUBSPAN_FILE "eigh.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {
#include "detail/pack_levels.inl.hpp"

#include "detail/row_tridiagonal.inl.hpp"

template <class V>
struct eigh_scratch {
  pack_scratch<V> parts;
  V *a, *q, *d, *e, *tau, *work, *rotations;
  lane_mask<V>* order;

  eigh_scratch(void* memory, index_t n) : parts(memory) {
    a = parts.take(n * pack_pitch(n));
    q = parts.take(n * pack_pitch(n));
    d = parts.take(n);
    e = parts.take(n);
    tau = parts.take(n);
    work = parts.take(2 * n);
    rotations = parts.take(rotation_list<V, 1>::size(n));
    order = reinterpret_cast<lane_mask<V>*>(parts.take(n));
  }
};

/// Eigenvalues and vectors of up to W symmetric matrices: Householder's tridiagonalisation, then
/// implicitly shifted QR iteration.
template <class T, int W>
void run_eigh_pack(detail::eigh_pack<T> const& task, void* memory) {
  using V = pack<T, W>;
  index_t const n = task.a.rows, count = task.a.count, pitch = pack_pitch(n);
  eigh_scratch<V> const w(memory, n);
  load_pack<V>(task.a, w.a, pitch);
  // NaN above the diagonal is nobody's business.
  for (index_t i = 0; i < n; ++i)
    for (index_t j = i + 1; j < n; ++j) w.a[i * pitch + j] = V{};
  pack_scale<V> const scale = scale_pack(w.a, n, n, pitch);
  tridiagonalize(w.a, n, w.d, w.e, w.tau, w.work);
  bool const vectors = task.vectors.data != nullptr;
  if (vectors) form_tridiagonal(w.a, n, w.tau, w.q);
  rotation_list<V, 1> list(w.rotations, n);
  auto const left = iterate_tridiagonal(w.d, w.e, n, list, [&](rotation_list<V, 1>& some) {
    if (vectors) some.apply(0, w.q, n, pitch);
    some.clear();
  });
  finish_values<false>(w.d, w.order, n, scale, left, task, count);
  if (vectors) store_pack<V>(w.q, n, n, pitch, w.order, scale.finite, task.vectors, count);
}

template <class T, int W>
index_t eigh_pack_bytes(index_t, index_t n) {
  return eigh_scratch<pack<T, W>>(nullptr, n).parts.bytes();
}

/// The same for larger matrices: one after the other with the lanes along their rows, but for the
/// iteration, a chain of divisions and roots, that goes on for all at once.
template <class V>
struct eigh_rows_scratch {
  using T = lane_type<V>;
  using R = row_vector<T>;
  index_t n, pitch, square;
  pack_scratch<R> parts;
  V *d, *e, *rotations;
  lane_mask<V>* order;
  T *a, *work, *reflections, *turned;

  eigh_rows_scratch(void* memory, index_t size)
      : n(size),
        pitch(row_pitch<T>(size)),
        square(vectors_of<T>(size) * k_row_lanes<T> * pitch),
        parts(memory) {
    d = packs(n);
    e = packs(n);
    order = reinterpret_cast<lane_mask<V>*>(packs(n));
    rotations = packs(rotation_list<V, 1>::size(n));
    a = numbers(square);
    work = numbers(row_work<T>::size(n));
    reflections = numbers(reflection_rows<T>::size(n, n));
    turned = numbers(lane_count<V> * square);
  }

 private:
  T* numbers(index_t count) { return reinterpret_cast<T*>(parts.take(vectors_of<T>(count))); }
  V* packs(index_t count) { return reinterpret_cast<V*>(numbers(count * lane_count<V>)); }
};

template <class T, int W>
void run_eigh_rows(detail::eigh_pack<T> const& task, void* memory) {
  using V = pack<T, W>;
  index_t const n = task.a.rows, count = task.a.count;
  eigh_rows_scratch<V> const s(memory, n);
  index_t const pitch = s.pitch, square = s.square;
  row_work<T> const work(s.work, n);
  reflection_rows<T> const reflections(s.reflections, n, n);
  bool const vectors = task.vectors.data != nullptr;
  pack_scale<V> scale;
  std::fill_n(s.d, n, V{});
  std::fill_n(s.e, n, V{});
  for (index_t l = 0; l < count; ++l) {
    load_rows(task.a, l, true, s.a, scale, l);
    tridiagonalize_rows(s.a, n, reflections, reinterpret_cast<T*>(s.d) + l,
                        reinterpret_cast<T*>(s.e) + l, W, work);
    if (!vectors) continue;
    set_identity_rows(s.a, pitch, square / pitch);
    apply_reflections(reflections, n - 1, 1, true, s.a, pitch, n, work);
    transpose_rows(s.a, s.turned + l * square, n);
  }
  rotation_list<V, 1> list(s.rotations, n);
  auto const unconverged = iterate_tridiagonal(s.d, s.e, n, list, [&](rotation_list<V, 1>& some) {
    for (index_t l = 0; vectors && l < count; ++l) turn_rows(some, 0, l, s.turned + l * square, n);
    some.clear();
  });
  finish_values<false>(s.d, s.order, n, scale, unconverged, task, count);
  for (index_t l = 0; vectors && l < count; ++l) {
    sort_rows(s.turned + l * square, pitch, n, s.order, l, s.a);
    store_as_columns(s.a, pitch, n, n, scale.finite[l] != 0, task.vectors, l);
  }
}

template <class T, int W>
index_t eigh_rows_bytes(index_t, index_t n) {
  return eigh_rows_scratch<pack<T, W>>(nullptr, n).parts.bytes();
}

/// Scratch for the tridiagonal form of one larger matrix, whose values alone are wanted.
template <class T>
struct tridiagonal_scratch {
  pack_scratch<row_vector<T>> parts;
  T *a, *panel;
  tridiagonal_scratch(void* memory, index_t n) : parts(memory) {
    a = numbers(lower_rows<T>::size(n));
    panel = numbers(reflection_panel<T>::size(n));
  }

 private:
  T* numbers(index_t count) { return reinterpret_cast<T*>(parts.take(vectors_of<T>(count))); }
};

/// What is left of a matrix: d[n], e[n], and how it was scaled.
template <class T>
void run_tridiagonal(detail::pack_input<T> const& from, T* to, void* memory) {
  index_t const n = from.rows;
  tridiagonal_scratch<T> const s(memory, n);
  lower_rows<T> const a{s.a, row_pitch<T>(n)};
  pack_scale<row_vector<T>> scale;
  load_lower(from, 0, a, scale, 0);
  tridiagonalize_lower(a, n, reflection_panel<T>(s.panel, n), to, to + n);
  to[2 * n - 1] = 0;
  T* const how = to + 2 * n;
  how[0] = scale.up[0];
  how[1] = scale.power[0];
  how[2] = scale.finite[0] ? T{1} : T{0};
}

template <class T>
index_t tridiagonal_bytes(index_t n) {
  return tridiagonal_scratch<T>(nullptr, n).parts.bytes();
}

template <class V>
struct values_scratch {
  pack_scratch<V> parts;
  V *d, *e, *rotations;
  lane_mask<V>* order;
  values_scratch(void* memory, index_t n) : parts(memory) {
    d = parts.take(2 * n + detail::k_tridiagonal_extra);  // as a line of the task
    e = d + n;
    rotations = parts.take(rotation_list<V, 1>::size(n));
    order = reinterpret_cast<lane_mask<V>*>(parts.take(n));
  }
};

/// Eigenvalues of up to W tridiagonal matrices.
template <class T, int W>
void run_values_pack(detail::eigh_pack<T> const& task, void* memory) {
  using V = pack<T, W>;
  index_t const n = task.a.rows, count = task.a.count;
  values_scratch<V> const s(memory, n);
  load_line<V>(task.a.data, task.a.next, 1, task.a.next, count, s.d);
  V const* const how = s.d + 2 * n;
  pack_scale<V> scale;
  scale.up = how[0];
  scale.power = how[1];
  scale.finite = how[2] == 1;
  rotation_list<V, 1> list(s.rotations, n);
  auto const left =
      iterate_tridiagonal(s.d, s.e, n, list, [](rotation_list<V, 1>& some) { some.clear(); });
  finish_values<false>(s.d, s.order, n, scale, left, task, count);
}

template <class T, int W>
index_t values_bytes(index_t, index_t n) {
  return values_scratch<pack<T, W>>(nullptr, n).parts.bytes();
}

template <class T>
constexpr detail::values_kernels<T> eigenvalue_kernels = {
    tridiagonal_bytes<T>,
    run_tridiagonal<T>,
    {{k_wide_pack<T>, values_bytes<T, k_wide_pack<T>>, run_values_pack<T, k_wide_pack<T>>},
     {k_narrow_pack<T>, values_bytes<T, k_narrow_pack<T>>, run_values_pack<T, k_narrow_pack<T>>}}};

template <class T>
constexpr detail::pack_kernels<detail::eigh_pack<T>> eigh_kernels = {
    {k_wide_pack<T>, eigh_pack_bytes<T, k_wide_pack<T>>, run_eigh_pack<T, k_wide_pack<T>>},
    {k_narrow_pack<T>, eigh_pack_bytes<T, k_narrow_pack<T>>, run_eigh_pack<T, k_narrow_pack<T>>}};
template <class T>
constexpr detail::pack_kernels<detail::eigh_pack<T>> eigh_rows_kernels = {
    {k_wide_pack<T>, eigh_rows_bytes<T, k_wide_pack<T>>, run_eigh_rows<T, k_wide_pack<T>>},
    {k_narrow_pack<T>, eigh_rows_bytes<T, k_narrow_pack<T>>, run_eigh_rows<T, k_narrow_pack<T>>}};

}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace subspan {
namespace {

template <class T>
class eigh_worker {
 public:
  eigh_worker(context const& ctx, strided_view<T const, 3> a, strided_view<T, 2> values,
              std::optional<strided_view<T, 3>> vectors, nonfinite_policy policy)
      : a_(a),
        values_(values),
        vectors_(vectors),
        policy_(policy),
        n_(static_cast<int>(a.shape[1])),
        matrix_(ctx, a.shape[1] * a.shape[2]) {
    if (n_ == 0) return;
    T reported = 0;
    int ireported = 0;
    call(0, &reported, -1, &ireported, -1);
    lwork_ = detail::workspace_size(reported);
    liwork_ = ireported;
    work_.emplace(ctx, lwork_);
    iwork_.emplace(ctx, liwork_);
  }

  std::int32_t solve(index_t b) {
    if (n_ == 0) return 0;
    load_lower(b);
    int info = detail::k_info_nonfinite;
    if (finite_ || policy_ == nonfinite_policy::ignore)
      info = call(b, work_->data(), lwork_, iwork_->data(), liwork_);
    if (info < 0) {
      T const nan = std::numeric_limits<T>::quiet_NaN();
      detail::fill_matrix(values_, b, nan);
      if (vectors_) detail::fill_matrix(*vectors_, b, nan);
      return detail::k_info_nonfinite;
    }
    if (vectors_) {
      // LAPACK's column j is a row of this buffer; ours is a column.
      T* const out = vectors_->data + b * index_t{n_} * n_;
      for (index_t i = 0; i < n_; ++i)
        for (index_t j = 0; j < n_; ++j) out[i * n_ + j] = matrix_[j * n_ + i];
    }
    return info;
  }

 private:
  /// Only the lower triangle is read, so NaN above it is nobody's business.
  void load_lower(index_t b) {
    finite_ = true;
    auto const [sb, si, sj] = a_.strides;
    for (index_t i = 0; i < n_; ++i)
      for (index_t j = 0; j <= i; ++j) {
        T const v = a_.data[b * sb + i * si + j * sj];
        finite_ &= std::isfinite(v);
        matrix_[i * n_ + j] = v;
        matrix_[j * n_ + i] = v;
      }
  }

  int call(index_t b, T* work, int lwork, int* iwork, int liwork) {
    int info = 0;
    detail::syevd(vectors_ ? 'V' : 'N', 'U', n_, matrix_.data(), n_, values_.data + b * n_, work,
                  lwork, iwork, liwork, info);
    return info;
  }

  strided_view<T const, 3> a_;
  strided_view<T, 2> values_;
  std::optional<strided_view<T, 3>> vectors_;
  nonfinite_policy policy_;
  int n_;
  bool finite_ = true;
  detail::workspace<T> matrix_;
  int lwork_ = 0, liwork_ = 0;
  std::optional<detail::workspace<T>> work_;
  std::optional<detail::workspace<int>> iwork_;
};

/// The values of larger matrices: one after the other becomes tridiagonal, on all threads; these are
/// small, and iterate in packs.
template <class T>
void eigenvalues(context const& ctx, strided_view<T const, 3> a, strided_view<T, 2> values,
                 strided_view<std::int32_t, 1> info, decomposition_params params) {
  auto const& kernels = SUBSPAN_PICK(eigenvalue_kernels<T>);
  index_t const batch = a.shape[0], n = a.shape[1];
  index_t const length = 2 * n + detail::k_tridiagonal_extra;
  detail::workspace<T> forms(ctx, batch * length);
  detail::parallel_for(ctx, batch, 1, [&](index_t begin, index_t end) {
    detail::workspace<std::byte> scratch(ctx, kernels.scratch(n));
    for (index_t b = begin; b < end; ++b)
      kernels.reduce(detail::input_of(a, false, b, 1), forms.data() + b * length, scratch.data());
  });
  double const flops = 60.0 * static_cast<double>(n * n);
  detail::run_packs(ctx, batch, n, n, flops, kernels.iterate, [&](index_t first, index_t count) {
    return detail::eigh_pack<T>{{forms.data() + first * length, length, 1, 1, n, 1, count},
                                detail::output_of(values, false, first),
                                {},
                                info.data + first};
  });
  detail::apply_policies("eigh", info.data, batch, params);
}

}  // namespace

inline namespace SUBSPAN_ABI {

template <class T>
void eigh(context const& ctx, strided_view<T const, 3> a, strided_view<T, 2> values,
          std::optional<strided_view<T, 3>> vectors, strided_view<std::int32_t, 1> info,
          decomposition_params params) {
  auto const [batch, n, columns] = a.shape;
  detail::expects(n == columns, "eigh", "a must be square in its last two axes, got ", n, " x ",
                  columns);
  detail::check_batch("eigh", a, info);
  detail::check_output<T, 2>("eigh", "values", values, {batch, n}, a);
  if (vectors) detail::check_output<T, 3>("eigh", "vectors", *vectors, {batch, n, n}, a);
  detail::route(
      "eigh", a.device,
      [&] {
        if (!vectors && detail::fits_values(n)) return eigenvalues(ctx, a, values, info, params);
        if (!detail::fits_rows(n, n))
          return detail::for_each_matrix(ctx, "eigh", a, info, params, [&] {
            return eigh_worker<T>(ctx, a, values, vectors, params.nonfinite);
          });
        detail::for_each_pack(ctx, "eigh", a, info, params,
                              detail::fits_pack(n, n) ? SUBSPAN_PICK(eigh_kernels<T>)
                                                      : SUBSPAN_PICK(eigh_rows_kernels<T>),
                              [&](index_t first, index_t count) {
                                detail::eigh_pack<T> task{detail::input_of(a, false, first, count),
                                                          detail::output_of(values, false, first),
                                                          {},
                                                          info.data + first};
                                if (vectors)
                                  task.vectors = detail::output_of(*vectors, false, first);
                                return task;
                              });
      },
      [&](subspan_cuda_table const& cuda) {
        detail::decompose_on_cuda<T>(ctx, "eigh", cuda.eigh, a, values.data,
                                     vectors ? vectors->data : nullptr, nullptr, info, params);
      });
}

#define SUBSPAN_INSTANTIATE(T)                                                            \
  template void eigh<T>(context const&, strided_view<T const, 3>, strided_view<T, 2>,     \
                        std::optional<strided_view<T, 3>>, strided_view<std::int32_t, 1>, \
                        decomposition_params);
SUBSPAN_FOREACH_REAL(SUBSPAN_INSTANTIATE)
#undef SUBSPAN_INSTANTIATE

}  // namespace v0
}  // namespace subspan
#endif  // SUBSPAN_ONCE
