#include "subspan/qr.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "detail/dtypes.hpp"
#include "detail/pack_batch.hpp"
#include "detail/tall_qr.hpp"

#define SUBSPAN_FILE "qr.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {
#include "detail/pack_levels.inl.hpp"

template <class V>
struct qr_scratch {
  pack_qr<V> qr;
  pack_scratch<V> parts;
  V *a, *q, *tau;

  qr_scratch(void* memory, index_t m, index_t n) : qr(m, n), parts(memory) {
    a = parts.take(m * qr.pitch);
    q = parts.take(m * pack_pitch(qr.k));
    tau = parts.take(qr.tau_count());
  }
};

/// Thin QR of up to W matrices.
template <class T, int W>
void run_qr_pack(detail::qr_pack<T> const& task, void* memory) {
  using V = pack<T, W>;
  index_t const m = task.a.rows, n = task.a.cols, k = std::min(m, n), count = task.a.count;
  qr_scratch<V> const w(memory, m, n);
  index_t const pitch = w.qr.pitch;
  load_pack<V>(task.a, w.a, pitch);
  pack_scale<V> const scale = scale_pack(w.a, m, n, pitch);
  w.qr.factor(w.a, w.tau);
  set_identity(w.q, k);
  w.qr.multiply(w.a, w.tau, w.q);
  store_pack<V>(w.q, m, k, pack_pitch(k), nullptr, scale.finite, task.q, count);
  for (index_t i = 0; i < k; ++i)
    for (index_t j = 0; j < n; ++j) {
      V& x = w.a[i * pitch + j];
      x = j < i ? V{} : scale.undo(x);
    }
  store_pack<V>(w.a, k, n, pitch, nullptr, scale.finite, task.r, count);
  for (index_t l = 0; l < count; ++l) task.info[l] = scale.finite[l] ? 0 : detail::k_info_nonfinite;
}

template <class T, int W>
index_t qr_pack_bytes(index_t m, index_t n) {
  return qr_scratch<pack<T, W>>(nullptr, m, n).parts.bytes();
}

/// The same for a larger matrix, with the lanes along its rows.
template <class T>
struct qr_rows_scratch {
  using V = row_vector<T>;
  index_t m, n, k, pitch, q_pitch;
  pack_scratch<V> parts;
  T *a, *q, *r, *reflections, *work;

  qr_rows_scratch(void* memory, index_t rows, index_t columns)
      : m(rows),
        n(columns),
        k(std::min(rows, columns)),
        pitch(row_pitch<T>(columns)),
        q_pitch(row_pitch<T>(k)),
        parts(memory) {
    a = numbers(m * pitch);
    q = numbers(m * q_pitch);
    r = numbers(k * pitch);
    reflections = numbers(reflection_rows<T>::size(k, m));
    work = numbers(row_work<T>::size(std::max(m, n)));
  }

 private:
  T* numbers(index_t count) { return reinterpret_cast<T*>(parts.take(vectors_of<T>(count))); }
};

template <class T>
void run_qr_rows(detail::qr_pack<T> const& task, void* memory) {
  index_t const m = task.a.rows, n = task.a.cols;
  qr_rows_scratch<T> const s(memory, m, n);
  index_t const k = s.k;
  row_work<T> const work(s.work, std::max(m, n));
  reflection_rows<T> const reflections(s.reflections, k, m);
  for (index_t l = 0; l < task.a.count; ++l) {
    pack_scale<row_vector<T>> scale;
    load_rows(task.a, l, false, s.a, scale, 0);
    factor_rows(s.a, m, n, reflections, s.r, work);
    for (index_t i = 0; i < k * s.pitch; ++i) s.r[i] = s.r[i] * scale.power[0] / scale.up[0];
    std::fill_n(s.q, m * s.q_pitch, T{0});
    for (index_t i = 0; i < k; ++i) s.q[i * s.q_pitch + i] = 1;
    apply_reflections(reflections, k, 0, true, s.q, s.q_pitch, k, work);
    bool const finite = scale.finite[0] != 0;
    store_as_rows(s.q, s.q_pitch, m, k, finite, task.q, l);
    store_as_rows(s.r, s.pitch, k, n, finite, task.r, l);
    task.info[l] = finite ? 0 : detail::k_info_nonfinite;
  }
}

template <class T>
index_t qr_rows_bytes(index_t m, index_t n) {
  return qr_rows_scratch<T>(nullptr, m, n).parts.bytes();
}

template <class T>
constexpr detail::pack_kernels<detail::qr_pack<T>> qr_kernels = {
    {k_wide_pack<T>, qr_pack_bytes<T, k_wide_pack<T>>, run_qr_pack<T, k_wide_pack<T>>},
    {k_narrow_pack<T>, qr_pack_bytes<T, k_narrow_pack<T>>, run_qr_pack<T, k_narrow_pack<T>>}};
template <class T>
constexpr detail::pack_kernels<detail::qr_pack<T>> qr_rows_kernels = {
    {1, qr_rows_bytes<T>, run_qr_rows<T>}, {1, qr_rows_bytes<T>, run_qr_rows<T>}};

}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace subspan {
namespace {

template <class T>
class qr_worker {
 public:
  qr_worker(context const& ctx, strided_view<T const, 3> a, strided_view<T, 3> q,
            strided_view<T, 3> r, nonfinite_policy policy)
      : a_(a),
        q_(q),
        r_(r),
        policy_(policy),
        m_(static_cast<int>(a.shape[1])),
        n_(static_cast<int>(a.shape[2])),
        k_(std::min(m_, n_)),
        matrix_(ctx, a.shape[1] * a.shape[2]),
        columns_(ctx, a.shape[1] * a.shape[2]),
        tau_(ctx, k_) {
    if (k_ == 0) return;
    T for_qr = 0, for_q = 0;
    int info = 0;
    detail::geqrf(m_, n_, columns_.data(), m_, tau_.data(), &for_qr, -1, info);
    detail::orgqr(m_, k_, k_, columns_.data(), m_, tau_.data(), &for_q, -1, info);
    lwork_ = std::max(detail::workspace_size(for_qr), detail::workspace_size(for_q));
    work_.emplace(ctx, lwork_);
  }

  std::int32_t solve(index_t b) {
    if (k_ == 0) return 0;
    if (!detail::load_matrix(a_, b, matrix_.data()) && policy_ != nonfinite_policy::ignore) {
      T const nan = std::numeric_limits<T>::quiet_NaN();
      detail::fill_matrix(q_, b, nan);
      detail::fill_matrix(r_, b, nan);
      return detail::k_info_nonfinite;
    }
    for (index_t i = 0; i < m_; ++i)
      for (index_t j = 0; j < n_; ++j) columns_[j * m_ + i] = matrix_[i * n_ + j];
    int info = 0;
    detail::geqrf(m_, n_, columns_.data(), m_, tau_.data(), work_->data(), lwork_, info);
    T* const r = r_.data + b * index_t{k_} * n_;
    for (index_t i = 0; i < k_; ++i)
      for (index_t j = 0; j < n_; ++j) r[i * n_ + j] = j >= i ? columns_[j * m_ + i] : T(0);
    detail::orgqr(m_, k_, k_, columns_.data(), m_, tau_.data(), work_->data(), lwork_, info);
    T* const q = q_.data + b * index_t{m_} * k_;
    for (index_t i = 0; i < m_; ++i)
      for (index_t j = 0; j < k_; ++j) q[i * k_ + j] = columns_[j * m_ + i];
    return 0;
  }

 private:
  strided_view<T const, 3> a_;
  strided_view<T, 3> q_, r_;
  nonfinite_policy policy_;
  int m_, n_, k_;
  detail::workspace<T> matrix_, columns_, tau_;
  int lwork_ = 0;
  std::optional<detail::workspace<T>> work_;
};

}  // namespace

inline namespace SUBSPAN_ABI {

template <class T>
void qr(context const& ctx, strided_view<T const, 3> a, strided_view<T, 3> q, strided_view<T, 3> r,
        strided_view<std::int32_t, 1> info, decomposition_params params) {
  auto const [batch, m, n] = a.shape;
  index_t const k = std::min(m, n);
  detail::check_batch("qr", a, info);
  detail::check_output<T, 3>("qr", "q", q, {batch, m, k}, a);
  detail::check_output<T, 3>("qr", "r", r, {batch, k, n}, a);
  detail::route(
      "qr", a.device,
      [&] {
        auto const make_worker = [&] { return qr_worker<T>(ctx, a, q, r, params.nonfinite); };
        if (detail::fits_tall(m, n))
          return detail::for_each_tall(
              ctx, "qr", a, info, params,
              [&](index_t b, detail::tall_qr<T>& tall, T const* triangle) {
                std::copy_n(triangle, n * n, r.data + b * n * n);
                detail::workspace<T> one(ctx, n * n);
                for (index_t i = 0; i < n * n; ++i) one[i] = i % (n + 1) == 0;
                tall.multiply(one.data(), q.data + b * m * n, n, 1);
              },
              make_worker);
        if (!detail::fits_rows(m, n))
          return detail::for_each_matrix(ctx, "qr", a, info, params, make_worker);
        detail::for_each_pack(ctx, "qr", a, info, params,
                              detail::fits_pack(m, n) ? SUBSPAN_PICK(qr_kernels<T>)
                                                      : SUBSPAN_PICK(qr_rows_kernels<T>),
                              [&](index_t first, index_t count) {
                                return detail::qr_pack<T>{detail::input_of(a, false, first, count),
                                                          detail::output_of(q, false, first),
                                                          detail::output_of(r, false, first),
                                                          info.data + first};
                              });
      },
      [&](subspan_cuda_table const& cuda) {
        detail::decompose_on_cuda<T>(ctx, "qr", cuda.qr, a, nullptr, q.data, r.data, info, params);
      });
}

#define SUBSPAN_INSTANTIATE(T)                                                      \
  template void qr<T>(context const&, strided_view<T const, 3>, strided_view<T, 3>, \
                      strided_view<T, 3>, strided_view<std::int32_t, 1>, decomposition_params);
SUBSPAN_FOREACH_REAL(SUBSPAN_INSTANTIATE)
#undef SUBSPAN_INSTANTIATE

}  // namespace v0
}  // namespace subspan
#endif  // SUBSPAN_ONCE
