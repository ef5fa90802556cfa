#include "subspan/svd.hpp"

#include "detail/batched.hpp"
#include "detail/dtypes.hpp"

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
        detail::for_each_matrix(ctx, "svd", a, info, params,
                                [&] { return svd_worker<T>(ctx, a, s, u, vh, params.nonfinite); });
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
