#pragma once

#include <memory>

#include "detail/pack_batch.hpp"

/// QR of one tall and narrow matrix on all threads: blocks of its rows are the matrices of packs, and
/// their triangles, stacked, a smaller tall matrix (TSQR; Demmel, Grigori, Hoemmen and Langou 2012).

namespace subspan::detail {

template <class T>
class tall_qr {
 public:
  /// a[m, n], m >= n; read by factor() only.
  tall_qr(context const& ctx, T const* a, index_t m, index_t n, index_t row_stride,
          index_t col_stride);
  ~tall_qr();

  /// R[n, n] in C order. Entries that are not finite, or so large or small that squares of sums would
  /// leave the range, are only reported; there is no R then.
  extent_of_entries factor(T* r);

  /// q[m, n] = Q c, c[n, n] in C order. Once: the triangles are used up.
  void multiply(T const* c, T* q, index_t row_stride, index_t col_stride);

 private:
  struct level;

  context const& ctx_;
  index_t n_;
  // Each level has the triangles of the one before, at most a quarter of its rows.
  std::unique_ptr<level> levels_[32];
  int count_ = 0;
};

inline bool fits_tall(index_t m, index_t n) {
  return n > 0 && n <= k_pack_limit && m * n > k_entries_limit;
}

/// `finish(b, qr, r)` for every matrix, which is transposed if it is wide; then the policies. What
/// is not of usual size is left to `make_worker().solve(b)`.
template <class T, class Finish, class MakeWorker>
void for_each_tall(context const& ctx, char const* function, strided_view<T const, 3> const& a,
                   strided_view<std::int32_t, 1> info, decomposition_params params, Finish&& finish,
                   MakeWorker&& make_worker) {
  auto const [batch, rows, columns] = a.shape;
  index_t const m = std::max(rows, columns), n = std::min(rows, columns);
  index_t const row = a.strides[rows < columns ? 2 : 1], column = a.strides[rows < columns ? 1 : 2];
  workspace<T> r(ctx, n * n);
  for (index_t b = 0; b < batch; ++b) {
    tall_qr<T> qr(ctx, a.data + b * a.strides[0], m, n, row, column);
    info(b) = 0;
    if (qr.factor(r.data()) == extent_of_entries::usual)
      finish(b, qr, r.data());
    else
      info(b) = make_worker().solve(b);
  }
  apply_policies(function, info.data, batch, params);
}

}  // namespace subspan::detail
