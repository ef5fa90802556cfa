#pragma once

#include <algorithm>
#include <optional>

#include "detail/dense_lists.hpp"
#include "detail/list_sums_kernels.hpp"
#include "detail/parallel.hpp"
#include "detail/workspace.hpp"

/// Weighted sums of gathered rows: what decoding, and every gradient around it, is made of.

namespace subspan::detail {

/// Lists are spread over the threads by their pairs, and the parts of giant lists are, too. All
/// lists are summed in parts of k_part pairs, so that it does not show who did which. The columns
/// are taken in slices: short enough for the first cache and so that the rows of a slice, each of
/// which is read several times, stay in the last.
template <class T>
class list_sums {
 public:
  using P = wide<T>;

  list_sums(context const& ctx, list_sums_kernels<T> const& kernels, list_sums_call<T> const& call)
      : ctx_(ctx),
        kernels_(kernels),
        call_(call),
        d_(call.rows.shape[1]),
        pairs_(call.offsets[call.lists]),
        packs_rows_(call.shift != nullptr || !call.rows.inner_contiguous()),
        packs_with_(call.with.data != nullptr && !call.with.inner_contiguous()),
        group_(call.columns      ? k_columns_at_once
               : has_dense(call) ? dense_lists<T>::k_at_once
                                 : 1),
        giant_(giant_of(ctx, pairs_)),
        width_(slice_width()),
        packed_rows_(ctx, packs_rows_ ? call.rows.shape[0] * width_ : 0),
        packed_with_(ctx, packs_with_ ? call.lists * width_ : 0),
        init_(ctx, d_),
        zero_(ctx, width_) {
    if (has_dense(call)) dense_.emplace(ctx, kernels, call_, width_);
    for (index_t c = 0; c < d_; ++c) init_[c] = call.init ? call.init[c] : P(0);
    std::fill_n(zero_.data(), width_, P(0));
    auto const bytes = static_cast<std::size_t>(call.lists * d_) * sizeof(T);
    streamed_ = call.out != nullptr && bytes >= k_streamed;
    // Parts of cache lines are dear to write past the caches.
    if (call.columns)
      streamed_ = streamed_ && reinterpret_cast<std::uintptr_t>(call.out) % 64 == 0 &&
                  call.lists * sizeof(T) % 64 == 0;
  }

  void run() {
    for (first_ = 0; first_ < d_; first_ += width_) {
      n_ = std::min(width_, d_ - first_);
      if (packs_rows_) pack(call_.rows, call_.shift, packed_rows_.data());
      if (packs_with_) pack(call_.with, nullptr, packed_with_.data());
      if (dense_) dense_->pack(first_, n_);
      // A list weighs as many pairs as it has, and one more for what is written.
      index_t const all = pairs_ + call_.lists;
      index_t const worth = std::max<index_t>(1, k_chunk / n_);
      parallel_for(ctx_, all, std::max(worth, all / (16 * thread_count(ctx_))),
                   [&](index_t begin, index_t end) { sum_lists(begin, end); });
      if (giant_ < pairs_)
        for (index_t j = 0; j < call_.lists; ++j)
          if (is_giant(j) && !is_dense(j)) sum_giant(j);
    }
  }

 private:
  static constexpr index_t k_part = 1024;               // pairs
  static constexpr index_t k_beyond = 16;               // elements that a whole vector may read
  static constexpr index_t k_chunk = index_t{1} << 15;  // elements
  static constexpr std::size_t k_streamed = std::size_t{8} << 20;
  static constexpr index_t k_cached = index_t{16} << 20;  // bytes of gathered rows
  static constexpr index_t k_narrowest = 128, k_widest = 1024;

  static index_t giant_of(context const& ctx, index_t pairs) {
    index_t const threads = thread_count(ctx);
    return threads == 1 ? pairs : std::max(2 * k_part, pairs / (4 * threads));
  }

  index_t slice_width() const {
    index_t const rows = call_.rows.shape[0];
    auto const bytes = static_cast<index_t>(packs_rows_ ? sizeof(P) : sizeof(T));
    index_t width = k_widest;
    if (pairs_ >= 2 * rows || packs_rows_)
      width = std::clamp(k_cached / std::max<index_t>(1, rows * bytes), k_narrowest, k_widest);
    index_t const slices = std::max<index_t>(1, (d_ + width - 1) / width);
    return std::max<index_t>(1, ((d_ + slices - 1) / slices + 15) / 16 * 16);
  }

  void pack(strided_view<T const, 2> const& from, P const* shift, P* to) const {
    index_t const grain = std::max<index_t>(16, k_chunk / n_ / 16 * 16);
    parallel_for(ctx_, from.shape[0], grain, [&](index_t begin, index_t end) {
      kernels_.pack(from.data + begin * from.strides[0] + first_ * from.strides[1], from.strides[0],
                    from.strides[1], end - begin, n_, shift ? shift + first_ : nullptr,
                    to + begin * n_);
    });
  }

  index_t begin_of(index_t j) const { return call_.offsets[j]; }
  index_t count_of(index_t j) const { return begin_of(j + 1) - begin_of(j); }
  bool is_giant(index_t j) const { return count_of(j) > giant_; }

  static index_t block_of(index_t j) {
    return j / dense_lists<T>::k_at_once * dense_lists<T>::k_at_once;
  }
  bool is_dense(index_t j) const { return dense_ && dense_lists<T>::worth(call_, block_of(j)); }
  static bool has_dense(list_sums_call<T> const& call) {
    for (index_t j = 0; j < call.lists; j += dense_lists<T>::k_at_once)
      if (dense_lists<T>::worth(call, j)) return true;
    return false;
  }

  /// The lists that begin in begin..end-1, counting pairs and lists.
  void sum_lists(index_t begin, index_t end) const {
    auto const start = [&](index_t group) { return begin_of(group * group_) + group * group_; };
    index_t low = 0, high = (call_.lists + group_ - 1) / group_;
    index_t const groups = high;
    while (low < high) {
      index_t const middle = low + (high - low) / 2;
      start(middle) < begin ? low = middle + 1 : high = middle;
    }
    index_t const stride = n_ + k_beyond;  // apart from a power of two
    workspace<P> sums(ctx_, call_.out ? group_ * stride : 0), part(ctx_, n_), factors(ctx_, n_);
    for (; low < groups && start(low) < end; ++low) {
      index_t const first = low * group_, last = std::min(first + group_, call_.lists);
      bool done[k_columns_at_once] = {};
      if (dense_)
        for (index_t j = first; j < last; j += dense_lists<T>::k_at_once)
          if (is_dense(j))
            dense_->sum(j, init_.data() + first_, sums.data() + (j - first) * stride, stride,
                        done + (j - first));
      for (index_t j = first; j < last; ++j) {
        if (is_giant(j) && !is_dense(j)) continue;
        P* const sum = call_.out ? sums.data() + (j - first) * stride : nullptr;
        bool const sums_left = !done[j - first];
        if (sums_left || call_.dots != nullptr)
          sum_list(j, factors_of(j, factors.data()), part.data(), sums_left ? sum : nullptr);
        if (call_.out && !call_.columns)
          kernels_.store(sum, n_, call_.out + j * d_ + first_, streamed_);
      }
      if (call_.columns)
        kernels_.store_columns(sums.data(), stride, last - first, n_,
                               call_.out + first_ * call_.lists + first, call_.lists, streamed_);
    }
    finish_streaming();
  }

  void sum_list(index_t j, P const* with, P* part, P* sum) const {
    index_t const begin = begin_of(j), end = begin_of(j + 1);
    P const* const init = init_.data() + first_;
    if (begin == end && sum != nullptr) std::copy(init, init + n_, sum);
    for (index_t p = begin; p < end; p += k_part) {
      index_t const stop = std::min(p + k_part, end);
      if (p == begin || sum == nullptr) {
        gather(p, stop, with, init, sum);
      } else {
        gather(p, stop, with, zero_.data(), part);
        add(part, sum);
      }
    }
  }

  void sum_giant(index_t j) const {
    index_t const begin = begin_of(j), count = count_of(j);
    workspace<P> parts(ctx_, call_.out ? (count + k_part - 1) / k_part * n_ + k_beyond : 0);
    workspace<P> factors(ctx_, n_);
    P const* const with = factors_of(j, factors.data());
    parallel_for(ctx_, count, k_part, [&](index_t from, index_t to) {
      gather(begin + from, begin + to, with, from == 0 ? init_.data() + first_ : zero_.data(),
             call_.out ? parts.data() + from / k_part * n_ : nullptr);
    });
    if (call_.out == nullptr) return;
    for (index_t p = k_part; p < count; p += k_part)
      add(parts.data() + p / k_part * n_, parts.data());
    if (call_.columns)
      kernels_.store_columns(parts.data(), n_, 1, n_, call_.out + first_ * call_.lists + j,
                             call_.lists, false);
    else
      kernels_.store(parts.data(), n_, call_.out + j * d_ + first_, false);
  }

  void add(P const* part, P* sum) const {
    for (index_t c = 0; c < n_; ++c) sum[c] += part[c];
  }

  /// The row of `with` that list j is multiplied by, if any.
  P const* factors_of(index_t j, P* buffer) const {
    if (call_.dots == nullptr) return nullptr;
    if (call_.with_one != nullptr) return call_.with_one + first_;
    if (packs_with_) return packed_with_.data() + j * n_;
    if constexpr (std::is_same_v<T, P>) return &call_.with(j, first_);
    kernels_.widen(&call_.with(j, first_), 1, n_, buffer);
    return buffer;
  }

  void gather(index_t begin, index_t end, P const* with, P const* from, P* to) const {
    index_t const* const index = call_.index + begin;
    P const* const weight = call_.weight ? call_.weight + begin : nullptr;
    P* const dots = call_.dots ? call_.dots + begin : nullptr;
    if (packs_rows_)
      kernels_.gather_packed({packed_rows_.data(), n_, index, weight, end - begin, pairs_ - end},
                             with, from, to, n_, dots);
    else
      kernels_.gather({call_.rows.data + first_, call_.rows.strides[0], index, weight, end - begin,
                       pairs_ - end},
                      with, from, to, n_, dots);
  }

  static void finish_streaming() {
#if defined(__x86_64__)
    __builtin_ia32_sfence();  // stores past the caches are not ordered by what ends a chunk
#endif
  }

  context const& ctx_;
  list_sums_kernels<T> const& kernels_;
  list_sums_call<T> const call_;
  index_t d_, pairs_;
  bool packs_rows_, packs_with_;
  index_t group_, giant_, width_;
  workspace<P> packed_rows_, packed_with_, init_, zero_;
  std::optional<dense_lists<T>> dense_;
  bool streamed_ = false;
  index_t first_ = 0, n_ = 0;  // the slice of columns
};

}  // namespace subspan::detail
