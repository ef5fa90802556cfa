#include "subspan/qr.hpp"

#include "detail/batched.hpp"
#include "detail/dtypes.hpp"

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
        detail::for_each_matrix(ctx, "qr", a, info, params,
                                [&] { return qr_worker<T>(ctx, a, q, r, params.nonfinite); });
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
