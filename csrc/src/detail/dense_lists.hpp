#pragma once

#include <algorithm>
#include <cmath>

#include "detail/list_sums_kernels.hpp"
#include "detail/parallel.hpp"
#include "detail/workspace.hpp"

/// Lists that name most of the rows, summed as a product of matrices: a row that is fetched once
/// serves many lists, and each costs as much as if it named all of them. Products with `with` are
/// left to who gathers.

namespace subspan::detail {

template <class T>
class dense_lists {
 public:
  using P = wide<T>;

  static constexpr index_t k_at_once = 32;  // lists: what is decided upon together

  /// Whether the lists from `first` on are worth it. It shows in the last bits, so that it must
  /// not depend on threads.
  static bool worth(list_sums_call<T> const& call, index_t first) {
    if (call.out == nullptr) return false;
    index_t const last = std::min(first + k_at_once, call.lists);
    index_t many = 0;
    for (index_t j = first; j < last; ++j)
      many += k_sparse * (call.offsets[j + 1] - call.offsets[j]) >= call.rows.shape[0];
    return many >= k_fewest && 2 * many >= last - first;
  }

  dense_lists(context const& ctx, list_sums_kernels<T> const& kernels,
              list_sums_call<T> const& call, index_t columns)
      : ctx_(ctx),
        kernels_(kernels),
        call_(call),
        depth_(call.rows.shape[0]),
        panels_(ctx, (columns + kernels.width - 1) / kernels.width * kernels.width * depth_) {}

  /// Packs columns first..first+n-1 of the rows.
  void pack(index_t first, index_t n) {
    n_ = n;
    index_t const width = kernels_.width;
    parallel_for(ctx_, depth_, k_part / 4, [&](index_t begin, index_t end) {
      for (index_t c = 0; c < n; c += width) {
        T const* const from =
            call_.rows.data + begin * call_.rows.strides[0] + (first + c) * call_.rows.strides[1];
        P const* const shift = call_.shift ? call_.shift + first + c : nullptr;
        P* const to = panels_.data() + c * depth_ + begin * width;
        auto const some = [&](index_t row, index_t rows, index_t columns) {
          kernels_.pack(from + row * call_.rows.strides[0], call_.rows.strides[0],
                        call_.rows.strides[1], rows, columns, shift, to + row * width);
        };
        index_t const columns = std::min(width, n - c);
        if (columns == width) {
          some(0, end - begin, width);
        } else {
          std::fill_n(to, (end - begin) * width, P(0));
          for (index_t row = 0; row < end - begin; ++row) some(row, 1, columns);
        }
      }
    });
  }

  /// sums[j - first] = init + list j, for k_at_once lists from `first` on, by parts of k_part rows.
  /// False for those whose sum is not finite: a row they do not name may have been the reason.
  void sum(index_t first, P const* init, P* sums, index_t stride, bool* finite) const {
    index_t const last = std::min(first + k_at_once, call_.lists);
    index_t const rows = kernels_.tile_rows, width = kernels_.width;
    index_t const tiles = (last - first + rows - 1) / rows;
    workspace<P> weights(ctx_, tiles * rows * depth_);
    scatter(first, last, weights.data());
    workspace<P> padded(ctx_, width);
    for (index_t j = first; j < last; ++j) std::copy(init, init + n_, sums + (j - first) * stride);
    for (index_t r = 0; r < depth_; r += k_part)
      for (index_t c = 0; c < n_; c += width)
        for (index_t tile = 0; tile < tiles; ++tile)
          kernels_.multiply(
              std::min(k_part, depth_ - r), weights.data() + (tile * depth_ + r) * rows,
              panels_.data() + c * depth_ + r * width, sums + tile * rows * stride + c, stride,
              std::min(rows, last - first - tile * rows), std::min(width, n_ - c));
    for (index_t j = 0; j < last - first; ++j)
      finite[j] = std::all_of(sums + j * stride, sums + j * stride + n_,
                              [](P sum) { return std::isfinite(sum); });
  }

 private:
  static constexpr index_t k_sparse =
      4;  // a list that names one row of so many is dense (measured)
  static constexpr index_t k_fewest = 8;   // dense lists of those at once
  static constexpr index_t k_part = 1024;  // rows

  /// weights[tile][row][list of the tile].
  void scatter(index_t first, index_t last, P* weights) const {
    index_t const rows = kernels_.tile_rows;
    std::fill_n(weights, (last - first + rows - 1) / rows * rows * depth_, P(0));
    for (index_t j = first; j < last; ++j) {
      P* const to = weights + (j - first) / rows * rows * depth_ + (j - first) % rows;
      for (index_t p = call_.offsets[j]; p < call_.offsets[j + 1]; ++p)
        to[call_.index[p] * rows] += call_.weight[p];
    }
  }

  context const& ctx_;
  list_sums_kernels<T> const& kernels_;
  list_sums_call<T> const& call_;
  index_t depth_, n_ = 0;
  workspace<P> panels_;
};

}  // namespace subspan::detail
