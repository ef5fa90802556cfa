#include "subspan/eigh.hpp"

#include "detail/batched.hpp"
#include "detail/dtypes.hpp"

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
        detail::for_each_matrix(ctx, "eigh", a, info, params, [&] {
          return eigh_worker<T>(ctx, a, values, vectors, params.nonfinite);
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
