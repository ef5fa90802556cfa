#include "subspan/svd.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "detail/dtypes.hpp"
#include "detail/pack_batch.hpp"
#include "detail/tall_qr.hpp"

#define SUBSPAN_FILE "svd.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {
#include "detail/pack_levels.inl.hpp"

template <class V>
struct svd_scratch {
  pack_qr<V> qr;
  pack_scratch<V> parts;
  V *a, *u, *v, *triangle, *tau_qr, *d, *e, *tau_left, *tau_right, *rotations;
  lane_mask<V>* order;

  svd_scratch(void* memory, index_t m, index_t n) : qr(m, n), parts(memory) {
    a = parts.take(m * pack_pitch(n));
    u = parts.take(m * pack_pitch(n));
    v = parts.take(n * pack_pitch(n));
    triangle = m > n ? parts.take(n * pack_pitch(n)) : a;
    tau_qr = parts.take(m > n ? qr.tau_count() : 0);
    d = parts.take(n);
    e = parts.take(n);
    tau_left = parts.take(n);
    tau_right = parts.take(n);
    rotations = parts.take(rotation_list<V, 2>::size(n));
    order = reinterpret_cast<lane_mask<V>*>(parts.take(n));
  }
};

/// Thin SVD of up to W matrices, rows >= columns >= 1: QR where there are more rows, then Golub and
/// Kahan's bidiagonalisation and implicitly shifted QR iteration.
template <class T, int W>
void run_svd_pack(detail::svd_pack<T> const& task, void* memory) {
  using V = pack<T, W>;
  index_t const m = task.a.rows, n = task.a.cols, count = task.a.count, pitch = pack_pitch(n);
  svd_scratch<V> const w(memory, m, n);
  load_pack<V>(task.a, w.a, pitch);
  pack_scale<V> const scale = scale_pack(w.a, m, n, pitch);
  if (m > n) {
    w.qr.factor(w.a, w.tau_qr);
    for (index_t i = 0; i < n; ++i)
      for (index_t j = 0; j < n; ++j) w.triangle[i * pitch + j] = j < i ? V{} : w.a[i * pitch + j];
  }
  bidiagonalize(w.triangle, n, w.d, w.e, w.tau_left, w.tau_right);
  bool const vectors = task.left.data != nullptr;
  if (vectors) form_bidiagonal(w.triangle, n, w.tau_left, w.tau_right, w.u, w.v);
  rotation_list<V, 2> list(w.rotations, n);
  auto const left = iterate_bidiagonal(w.d, w.e, n, list, [&](rotation_list<V, 2>& some) {
    if (vectors) {
      some.apply(0, w.u, n, pitch);
      some.apply(1, w.v, n, pitch);
    }
    some.clear();
  });
  for (index_t j = 0; j < n; ++j) {
    if (vectors)
      for (index_t i = 0; i < n; ++i) {
        V& x = w.v[i * pitch + j];
        x = w.d[j] < 0 ? -x : x;
      }
    w.d[j] = magnitude(w.d[j]);
  }
  finish_values<true>(w.d, w.order, n, scale, left, task, count);
  if (vectors) {
    if (m > n) w.qr.multiply(w.a, w.tau_qr, w.u);
    store_pack<V>(w.u, m, n, pitch, w.order, scale.finite, task.left, count);
    store_pack<V>(w.v, n, n, pitch, w.order, scale.finite, task.right, count);
  }
}

template <class T, int W>
index_t svd_pack_bytes(index_t m, index_t n) {
  return svd_scratch<pack<T, W>>(nullptr, m, n).parts.bytes();
}

/// The same for larger matrices: one after the other with the lanes along their rows, but for the
/// iteration, a chain of divisions and roots, that goes on for all at once.
template <class V>
struct svd_rows_scratch {
  using T = lane_type<V>;
  using R = row_vector<T>;
  index_t m, n, pitch;
  pack_scratch<R> parts;
  V *d, *e, *rotations;
  lane_mask<V>* order;
  T *a, *b, *triangle, *work, *left, *right;
  T *turned_left, *turned_right, *qr;  // of every matrix

  svd_rows_scratch(void* memory, index_t rows, index_t columns)
      : m(rows), n(columns), pitch(row_pitch<T>(columns)), parts(memory) {
    d = packs(n);
    e = packs(n);
    order = reinterpret_cast<lane_mask<V>*>(packs(n));
    rotations = packs(rotation_list<V, 2>::size(n));
    index_t const whole = vectors_of<T>(std::max(m, n)) * k_row_lanes<T>;
    a = numbers(whole * pitch);
    b = numbers(whole * pitch);
    triangle = m > n ? numbers(vectors_of<T>(n) * k_row_lanes<T> * pitch) : a;
    work = numbers(row_work<T>::size(m));
    left = numbers(reflection_rows<T>::size(n, n));
    right = numbers(reflection_rows<T>::size(n, n));
    turned_left = numbers(lane_count<V> * square());
    turned_right = numbers(lane_count<V> * square());
    qr = numbers(m > n ? lane_count<V> * reflection_rows<T>::size(n, m) : 0);
  }

  /// One matrix of n rows, whole vectors of them.
  index_t square() const { return vectors_of<T>(n) * k_row_lanes<T> * pitch; }
  reflection_rows<T> qr_of(index_t lane) const {
    return {qr + lane * reflection_rows<T>::size(n, m), n, m};
  }

 private:
  T* numbers(index_t count) { return reinterpret_cast<T*>(parts.take(vectors_of<T>(count))); }
  V* packs(index_t count) { return reinterpret_cast<V*>(numbers(count * lane_count<V>)); }
};

template <class T, int W>
void run_svd_rows(detail::svd_pack<T> const& task, void* memory) {
  using V = pack<T, W>;
  index_t const m = task.a.rows, n = task.a.cols, count = task.a.count;
  svd_rows_scratch<V> const s(memory, m, n);
  index_t const pitch = s.pitch, square = s.square();
  row_work<T> const work(s.work, m);
  reflection_rows<T> const left(s.left, n, n), right(s.right, n, n);
  bool const vectors = task.left.data != nullptr;
  pack_scale<V> scale;
  std::fill_n(s.d, n, V{});
  std::fill_n(s.e, n, V{});
  for (index_t l = 0; l < count; ++l) {
    load_rows(task.a, l, false, s.a, scale, l);
    if (m > n) factor_rows(s.a, m, n, s.qr_of(l), s.triangle, work);
    bidiagonalize_rows(s.triangle, n, left, right, reinterpret_cast<T*>(s.d) + l,
                       reinterpret_cast<T*>(s.e) + l, W, work);
    if (!vectors) continue;
    set_identity_rows(s.b, pitch, square / pitch);
    apply_reflections(left, n, 0, true, s.b, pitch, n, work);
    transpose_rows(s.b, s.turned_left + l * square, n);
    set_identity_rows(s.b, pitch, square / pitch);
    apply_reflections(right, n - 1, 1, true, s.b, pitch, n, work);
    transpose_rows(s.b, s.turned_right + l * square, n);
  }
  rotation_list<V, 2> list(s.rotations, n);
  auto const unconverged = iterate_bidiagonal(s.d, s.e, n, list, [&](rotation_list<V, 2>& some) {
    if (vectors)
      for (index_t l = 0; l < count; ++l) {
        turn_rows(some, 0, l, s.turned_left + l * square, n);
        turn_rows(some, 1, l, s.turned_right + l * square, n);
      }
    some.clear();
  });
  // The sign of a value goes to its left vector.
  for (index_t l = 0; vectors && l < count; ++l)
    for (index_t j = 0; j < n; ++j)
      if (s.d[j][l] < 0) scale_row(s.turned_left + l * square + j * pitch, T(-1), n);
  for (index_t j = 0; j < n; ++j) s.d[j] = magnitude(s.d[j]);
  finish_values<true>(s.d, s.order, n, scale, unconverged, task, count);
  for (index_t l = 0; vectors && l < count; ++l) {
    bool const finite = scale.finite[l] != 0;
    sort_rows(s.turned_right + l * square, pitch, n, s.order, l, s.a);
    store_as_columns(s.a, pitch, n, n, finite, task.right, l);
    sort_rows(s.turned_left + l * square, pitch, n, s.order, l, s.a);
    if (m == n) {
      store_as_columns(s.a, pitch, n, n, finite, task.left, l);
      continue;
    }
    transpose_rows(s.a, s.b, n);
    std::fill_n(s.b + n * pitch, (m - n) * pitch, T{0});
    apply_reflections(s.qr_of(l), n, 0, false, s.b, pitch, n, work);
    store_as_rows(s.b, pitch, m, n, finite, task.left, l);
  }
}

template <class T, int W>
index_t svd_rows_bytes(index_t m, index_t n) {
  return svd_rows_scratch<pack<T, W>>(nullptr, m, n).parts.bytes();
}

template <class T>
constexpr detail::pack_kernels<detail::svd_pack<T>> svd_kernels = {
    {k_wide_pack<T>, svd_pack_bytes<T, k_wide_pack<T>>, run_svd_pack<T, k_wide_pack<T>>},
    {k_narrow_pack<T>, svd_pack_bytes<T, k_narrow_pack<T>>, run_svd_pack<T, k_narrow_pack<T>>}};
template <class T>
constexpr detail::pack_kernels<detail::svd_pack<T>> svd_rows_kernels = {
    {k_wide_pack<T>, svd_rows_bytes<T, k_wide_pack<T>>, run_svd_rows<T, k_wide_pack<T>>},
    {k_narrow_pack<T>, svd_rows_bytes<T, k_narrow_pack<T>>, run_svd_rows<T, k_narrow_pack<T>>}};

}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace subspan {
namespace {

/// One matrix at a time. LAPACK is column-major: it sees the C-ordered copy of a as a^T = V S U^T,
/// so its U is our vh and its VT our u, already in C order, and nothing is transposed.
template <class T>
class svd_worker {
 public:
  svd_worker(context const& ctx, strided_view<T const, 3> a, strided_view<T, 2> s,
             std::optional<strided_view<T, 3>> u, std::optional<strided_view<T, 3>> vh,
             nonfinite_policy policy)
      : a_(a),
        s_(s),
        u_(u),
        vh_(vh),
        policy_(policy),
        m_(static_cast<int>(a.shape[1])),
        n_(static_cast<int>(a.shape[2])),
        k_(std::min(m_, n_)),
        matrix_(ctx, a.shape[1] * a.shape[2]),
        iwork_(ctx, 8 * std::max(k_, 1)),
        lwork_(work_size()),
        work_(ctx, lwork_) {}

  std::int32_t solve(index_t b) {
    if (k_ == 0) return 0;
    bool const finite = detail::load_matrix(a_, b, matrix_.data());
    int info = detail::k_info_nonfinite;
    if (finite || policy_ == nonfinite_policy::ignore) {
      info = call(b, false, work_.data(), lwork_);
      if (info > 0) {  // divide and conquer gave up: the slower QR iteration seldom does
        detail::load_matrix(a_, b, matrix_.data());
        info = call(b, true, work_.data(), lwork_);
      }
    }
    if (info >= 0) return info;
    T const nan = std::numeric_limits<T>::quiet_NaN();
    detail::fill_matrix(s_, b, nan);
    if (u_) detail::fill_matrix(*u_, b, nan);
    if (vh_) detail::fill_matrix(*vh_, b, nan);
    return detail::k_info_nonfinite;
  }

 private:
  int call(index_t b, bool robust, T* work, int lwork) {
    T* const u = u_ ? u_->data + b * index_t{m_} * k_ : nullptr;
    T* const vh = vh_ ? vh_->data + b * index_t{k_} * n_ : nullptr;
    T* const s = s_.data + b * k_;
    char const job = u_ ? 'S' : 'N';
    int info = 0;
    if (robust)
      detail::gesvd(job, n_, m_, matrix_.data(), n_, s, vh, n_, u, k_, work, lwork, info);
    else
      detail::gesdd(job, n_, m_, matrix_.data(), n_, s, vh, n_, u, k_, work, lwork, iwork_.data(),
                    info);
    return info;
  }

  int work_size() {
    if (k_ == 0) return 0;
    int size = 1;
    for (bool const robust : {false, true}) {
      T reported = 0;
      call(0, robust, &reported, -1);
      size = std::max(size, detail::workspace_size(reported));
    }
    return size;
  }

  strided_view<T const, 3> a_;
  strided_view<T, 2> s_;
  std::optional<strided_view<T, 3>> u_, vh_;
  nonfinite_policy policy_;
  int m_, n_, k_;
  detail::workspace<T> matrix_;
  detail::workspace<int> iwork_;
  int lwork_;
  detail::workspace<T> work_;
};

/// The SVD of a tall matrix, or of a wide one's transpose, from its QR.
template <class T>
void finish_tall(context const& ctx, index_t b, detail::tall_qr<T>& tall, T const* triangle,
                 strided_view<T, 2> s, std::optional<strided_view<T, 3>> u,
                 std::optional<strided_view<T, 3>> vh, strided_view<std::int32_t, 1> info) {
  index_t const k = s.shape[1];
  decomposition_params params;
  params.raise_no_convergence = false;
  auto const square = [k](auto* data) { return make_view<3>(data, {1, k, k}); };
  auto const values = make_view<2>(s.data + b * k, {1, k});
  auto const status = make_view<1>(info.data + b, {1});
  if (!u) return svd<T>(ctx, square(triangle), values, {}, {}, status, params);
  index_t const m = u->shape[1], n = vh->shape[2];
  detail::workspace<T> turn(ctx, k * k), other(ctx, k * k);
  svd<T>(ctx, square(triangle), values, square(turn.data()), square(other.data()), status, params);
  T *const left = u->data + b * m * k, *const right = vh->data + b * k * n;
  if (m >= n) {
    tall.multiply(turn.data(), left, k, 1);
    std::copy_n(other.data(), k * k, right);
  } else {
    tall.multiply(turn.data(), right, 1, n);
    for (index_t i = 0; i < k; ++i)
      for (index_t j = 0; j < k; ++j) left[i * k + j] = other[j * k + i];
  }
}

}  // namespace

inline namespace SUBSPAN_ABI {

template <class T>
void svd(context const& ctx, strided_view<T const, 3> a, strided_view<T, 2> s,
         std::optional<strided_view<T, 3>> u, std::optional<strided_view<T, 3>> vh,
         strided_view<std::int32_t, 1> info, decomposition_params params) {
  auto const [batch, m, n] = a.shape;
  index_t const k = std::min(m, n);
  detail::check_batch("svd", a, info);
  detail::check_output<T, 2>("svd", "s", s, {batch, k}, a);
  detail::expects(u.has_value() == vh.has_value(), "svd", "u and vh must be given together");
  if (u) detail::check_output<T, 3>("svd", "u", *u, {batch, m, k}, a);
  if (vh) detail::check_output<T, 3>("svd", "vh", *vh, {batch, k, n}, a);
  detail::route(
      "svd", a.device,
      [&] {
        auto const make_worker = [&] { return svd_worker<T>(ctx, a, s, u, vh, params.nonfinite); };
        if (detail::fits_tall(std::max(m, n), k))
          return detail::for_each_tall(
              ctx, "svd", a, info, params,
              [&](index_t b, detail::tall_qr<T>& tall, T const* triangle) {
                finish_tall(ctx, b, tall, triangle, s, u, vh, info);
              },
              make_worker);
        if (!detail::fits_rows(m, n))
          return detail::for_each_matrix(ctx, "svd", a, info, params, make_worker);
        bool const wide = m < n;
        detail::for_each_pack(ctx, "svd", a, info, params,
                              detail::fits_pack(m, n) ? SUBSPAN_PICK(svd_kernels<T>)
                                                      : SUBSPAN_PICK(svd_rows_kernels<T>),
                              [&](index_t first, index_t count) {
                                detail::svd_pack<T> task{detail::input_of(a, wide, first, count),
                                                         detail::output_of(s, false, first),
                                                         {},
                                                         {},
                                                         info.data + first};
                                if (u) {
                                  task.left = detail::output_of(wide ? *vh : *u, wide, first);
                                  task.right = detail::output_of(wide ? *u : *vh, !wide, first);
                                }
                                return task;
                              });
      },
      [&](subspan_cuda_table const& cuda) {
        detail::decompose_on_cuda<T>(ctx, "svd", cuda.svd, a, s.data, u ? u->data : nullptr,
                                     vh ? vh->data : nullptr, info, params);
      });
}

#define SUBSPAN_INSTANTIATE(T)                                                               \
  template void svd<T>(context const&, strided_view<T const, 3>, strided_view<T, 2>,         \
                       std::optional<strided_view<T, 3>>, std::optional<strided_view<T, 3>>, \
                       strided_view<std::int32_t, 1>, decomposition_params);
SUBSPAN_FOREACH_REAL(SUBSPAN_INSTANTIATE)
#undef SUBSPAN_INSTANTIATE

}  // namespace v0
}  // namespace subspan
#endif  // SUBSPAN_ONCE
