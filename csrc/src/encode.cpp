#include "subspan/encode.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "detail/contract.hpp"
#include "detail/dtypes.hpp"
#include "detail/encode_kernels.hpp"
#include "detail/product_tile.hpp"
#include "detail/route.hpp"

#define SUBSPAN_FILE "encode.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {
// In this order: the later ones need the earlier.
// clang-format off
#include "detail/narrow.inl.hpp"
#include "detail/widen.inl.hpp"
#include "detail/product_tile.inl.hpp"
#include "detail/row_selector.inl.hpp"
#include "detail/tile_engine.inl.hpp"
#include "detail/encode_kernels.inl.hpp"
// clang-format on
}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace subspan {
namespace {

using cpu::baseline::narrow_one;
using cpu::baseline::widen_one;

constexpr index_t k_state_bytes = index_t{64} << 20;

template <class T>
using product_type = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// What every encoder's job for the engine has in common; see run_tiles.
template <class T>
class encoding {
 public:
  using P = product_type<T>;

  encoding(context const& ctx, strided_view<T const, 2> x, encoder<T> const& how)
      : ctx_(ctx),
        kernels_(SUBSPAN_PICK(encode_table<T, P>)),
        x_{x.data, x.shape[0], x.shape[1], x.strides[0], x.strides[1]},
        w_{how.w_enc.data, how.w_enc.shape[1], how.w_enc.shape[0], how.w_enc.strides[1],
           how.w_enc.strides[0]},
        bias_(ctx, padded()),
        shift_(ctx, how.b_pre ? x_.depth : 0) {
    for (index_t j = 0; j < w_.count; ++j)
      bias_[j] = how.b_enc ? static_cast<P>(widen_one((*how.b_enc)(j))) : P{0};
    std::fill(bias_.data() + w_.count, bias_.data() + padded(),
              std::numeric_limits<P>::quiet_NaN());
    if (how.b_pre)
      for (index_t r = 0; r < x_.depth; ++r) shift_[r] = static_cast<P>(widen_one((*how.b_pre)(r)));
  }

  index_t rows() const { return x_.count; }
  index_t columns() const { return w_.count; }
  index_t depth() const { return x_.depth; }
  detail::tile_size size() const { return kernels_.size; }
  void pack_rows(index_t first, index_t count, P* out) const {
    kernels_.pack(x_, {shift_.data()}, first, count, size().rows, out);
  }
  void pack_columns(index_t first, index_t count, P* out) const {
    kernels_.pack(w_, {}, first, count, size().width, out);
  }

 protected:
  /// Columns with those of the last panel's padding.
  index_t padded() const { return detail::divide_up(w_.count, size().width) * size().width; }

  context ctx_;
  detail::encode_kernels<T, P> const& kernels_;
  detail::vector_set<T> x_, w_;
  detail::workspace<P> bias_, shift_;
};

/// The k best of each row.
template <class T>
class topk_encoding : public encoding<T> {
 public:
  using typename encoding<T>::P;
  using selector = detail::row_selector<P>;
  using entry_type = typename selector::entry_type;
  using order = detail::score_order<P>;

  topk_encoding(context const& ctx, strided_view<T const, 2> x, encoder<T> const& how,
                strided_view<T, 2> values, strided_view<index_t, 2> indices, activation rectifier)
      : encoding<T>(ctx, x, how),
        values_(values),
        indices_(indices),
        rectifier_(rectifier),
        k_(values.shape[1]) {}

  index_t strip() const {
    return k_state_bytes / (selector::room(k_) * static_cast<index_t>(sizeof(entry_type)));
  }
  void begin(index_t first, index_t last, index_t parts) {
    auto const tile_rows = this->size().rows;
    states_ = detail::divide_up(last - first, tile_rows) * tile_rows;
    buffers_.emplace(this->ctx_, parts * states_ * selector::room(k_));
    best_.clear();
    for (index_t i = 0; i < parts * states_; ++i)
      best_.emplace_back(k_, buffers_->data() + i * selector::room(k_));
  }
  void multiply(detail::tile_block<P> const& block, index_t part) {
    this->kernels_.select(block, best_.data() + part * states_, this->bias_.data(),
                          rectifier_ == activation::relu_first);
  }
  void end(index_t first, index_t last, index_t parts) {
    detail::parallel_for(this->ctx_, last - first, 16, [&](index_t begin, index_t end) {
      detail::workspace<entry_type> joined(this->ctx_, parts * k_);
      for (index_t i = begin; i < end; ++i) {
        index_t found = 0;
        for (index_t part = 0; part < parts; ++part) {
          auto& row = best_[static_cast<std::size_t>(part * states_ + i)];
          index_t const count = row.keep_best();
          std::copy_n(row.entries(), count, joined.data() + found);
          found += count;
        }
        deliver(first + i, joined.data(), found);
      }
    });
  }

 private:
  void deliver(index_t row, entry_type* entries, index_t found) const {
    index_t const count = std::min(found, k_);
    std::partial_sort(entries, entries + count, entries + found, std::greater<>());
    for (index_t i = 0; i < count; ++i) {
      P const z = order::score(detail::key_of(entries[i]));
      bool const cut = rectifier_ != activation::identity && z < 0;
      values_(row, i) = narrow_one<T>(cut ? P{0} : z);
      indices_(row, i) = detail::index_of(entries[i]);
    }
    if (count < k_) fill_with_nan(row, count);
  }

  /// All numbers of the row are there, so what is missing is NaN.
  void fill_with_nan(index_t row, index_t count) const {
    index_t* const indices = &indices_(row, 0);
    std::vector<index_t> taken(indices, indices + count);
    std::sort(taken.begin(), taken.end());
    auto next = taken.begin();
    for (index_t j = 0; count < k_; ++j) {
      if (next != taken.end() && *next == j) {
        ++next;
        continue;
      }
      values_(row, count) = narrow_one<T>(std::numeric_limits<P>::quiet_NaN());
      indices[count++] = j;
    }
  }

  strided_view<T, 2> values_;
  strided_view<index_t, 2> indices_;
  activation rectifier_;
  index_t k_, states_ = 0;
  std::optional<detail::workspace<entry_type>> buffers_;
  std::vector<selector> best_;
};

/// The best of all rows.
template <class T>
class batch_encoding : public encoding<T> {
 public:
  using typename encoding<T>::P;
  using selector = detail::batch_selector<P>;

  batch_encoding(context const& ctx, strided_view<T const, 2> x, encoder<T> const& how,
                 index_t count, activation rectifier)
      : encoding<T>(ctx, x, how),
        count_(count),
        least_(rectifier == activation::identity ? detail::score_order<P>::lowest
                                                 : std::numeric_limits<P>::denorm_min()) {}

  index_t strip() const { return 8192; }
  void begin(index_t first, index_t last, index_t) { first_ = first, rows_ = last - first; }
  void multiply(detail::tile_block<P> const& block, index_t) {
    auto best = take();
    this->kernels_.select_of_batch(block, first_, rows_, this->bias_.data(), *best);
    std::lock_guard const lock(mutex_);
    idle_.push_back(std::move(best));
  }
  void end(index_t, index_t, index_t) {}

  /// In the order of rows and columns.
  std::vector<typename selector::entry_type> entries() {
    std::vector<typename selector::entry_type> all;
    for (auto& best : idle_) {
      index_t const found = best->keep_best();
      all.insert(all.end(), best->entries(), best->entries() + found);
    }
    if (static_cast<index_t>(all.size()) > count_) {
      std::nth_element(all.begin(), all.begin() + (count_ - 1), all.end(), std::greater<>());
      all.resize(static_cast<std::size_t>(count_));
    }
    std::sort(all.begin(), all.end(),
              [](auto const& a, auto const& b) { return a.place > b.place; });
    return all;
  }

 private:
  /// As many come to be as there are threads.
  std::unique_ptr<selector> take() {
    {
      std::lock_guard const lock(mutex_);
      if (!idle_.empty()) {
        auto best = std::move(idle_.back());
        idle_.pop_back();
        return best;
      }
    }
    return std::make_unique<selector>(this->ctx_, count_, least_);
  }

  index_t count_, first_ = 0, rows_ = 0;
  std::atomic<P> least_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<selector>> idle_;
};

/// All above their latent's threshold.
template <class T>
class threshold_encoding : public encoding<T> {
 public:
  using typename encoding<T>::P;
  using hits_type = std::vector<detail::code_hit<P>>;

  threshold_encoding(context const& ctx, strided_view<T const, 2> x, encoder<T> const& how,
                     strided_view<T const, 1> threshold)
      : encoding<T>(ctx, x, how), bars_(ctx, this->padded()) {
    constexpr P infinity = std::numeric_limits<P>::infinity();
    for (index_t j = 0; j < this->padded(); ++j) {
      P const bar = j < this->columns() ? static_cast<P>(widen_one(threshold(j))) : infinity;
      bars_[j] =
          bar == infinity ? std::numeric_limits<P>::quiet_NaN() : std::nextafter(bar, infinity);
    }
  }

  index_t strip() const { return 8192; }
  void begin(index_t first, index_t last, index_t parts) {
    rows_ = last - first;
    parts_ = parts;
    hits_.emplace_back(
        static_cast<std::size_t>(detail::divide_up(rows_, detail::k_rows_of_task) * parts));
    first_rows_.push_back(first);
  }
  void multiply(detail::tile_block<P> const& block, index_t part) {
    auto const task = block.row0 / detail::k_rows_of_task * parts_ + part;
    this->kernels_.above(block, rows_, this->bias_.data(), bars_.data(),
                         hits_.back()[static_cast<std::size_t>(task)]);
  }
  void end(index_t, index_t, index_t) {}

  /// visit(row, hit) for all hits, in no order.
  template <class Visit>
  void each(Visit&& visit) const {
    for (std::size_t s = 0; s < hits_.size(); ++s)
      for (auto const& task : hits_[s])
        for (auto const& hit : task) visit(first_rows_[s] + static_cast<index_t>(hit.row), hit);
  }

 private:
  detail::workspace<P> bars_;
  index_t rows_ = 0, parts_ = 1;
  std::vector<std::vector<hits_type>> hits_;  // of every strip, by task
  std::vector<index_t> first_rows_;
};

template <class T>
void check(char const* function, strided_view<T const, 2> x, encoder<T> const& how) {
  index_t const d = x.shape[1], n = how.w_enc.shape[1];
  detail::require_cpu(function, x.device);
  detail::expects(how.w_enc.shape[0] == d, function, "w_enc must have d = ", d,
                  " rows, one per column of x, got ", how.w_enc.shape[0]);
  detail::expects(n < index_t{1} << 32 && x.shape[0] < index_t{1} << 32, function,
                  "w_enc must have fewer than 2^32 columns and x so many rows, got ", n, " and ",
                  x.shape[0]);
  auto const length = [&](char const* name, auto const& vector, index_t wanted) {
    if (vector)
      detail::expects(vector->shape[0] == wanted, function, name, " must have ", wanted,
                      " elements, got ", vector->shape[0]);
  };
  length("b_enc", how.b_enc, n);
  length("b_pre", how.b_pre, d);
}

template <class T, class Out, int Rank>
void check_output(char const* function, char const* name, strided_view<T const, 2> x,
                  encoder<T> const& how, strided_view<Out, Rank> const& out,
                  std::array<index_t, Rank> shape) {
  detail::expects(out.shape == shape && out.is_row_major() && out.device == x.device, function,
                  name, " must be C-ordered, on the device of x, and of the documented shape");
  detail::expects(!overlaps(out, x) && !overlaps(out, how.w_enc), function, name,
                  " must not overlap an input");
}

/// Turns counts behind their rows into offsets.
void accumulate(strided_view<index_t, 1> offsets) {
  for (index_t t = 1; t < offsets.shape[0]; ++t) offsets(t) += offsets(t - 1);
}

}  // namespace

inline namespace SUBSPAN_ABI {

template <class T>
void topk_encode(context const& ctx, strided_view<T const, 2> x, encoder<T> const& how,
                 strided_view<T, 2> values, strided_view<index_t, 2> indices,
                 activation rectifier) {
  constexpr char const* function = "topk_encode";
  index_t const k = values.shape[1], n = how.w_enc.shape[1];
  check(function, x, how);
  detail::expects(k >= 1 && k <= n, function, "k must be in 1..", n, ", got ", k);
  check_output<T, T, 2>(function, "values", x, how, values, {x.shape[0], k});
  check_output<T, index_t, 2>(function, "indices", x, how, indices, {x.shape[0], k});
  topk_encoding<T> job(ctx, x, how, values, indices, rectifier);
  detail::run_tiles<product_type<T>>(ctx, job);
}

template <class T>
void batch_topk_encode(context const& ctx, strided_view<T const, 2> x, encoder<T> const& how,
                       index_t count, strided_view<index_t, 1> offsets,
                       ragged_allocator<T> const& allocate, activation rectifier) {
  constexpr char const* function = "batch_topk_encode";
  using order = detail::score_order<product_type<T>>;
  check(function, x, how);
  index_t const all = x.shape[0] * how.w_enc.shape[1];
  detail::expects(count >= 0 && count <= all, function, "count must be in 0..", all, ", got ",
                  count);
  check_output<T, index_t, 1>(function, "offsets", x, how, offsets, {x.shape[0] + 1});
  batch_encoding<T> job(ctx, x, how, std::max<index_t>(count, 1), rectifier);
  if (count > 0) detail::run_tiles<product_type<T>>(ctx, job);
  auto const entries = job.entries();
  auto const out = allocate(static_cast<index_t>(entries.size()));
  for (index_t t = 0; t <= x.shape[0]; ++t) offsets(t) = 0;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    std::uint64_t const place = ~entries[i].place;
    out.values(i) = narrow_one<T>(order::score(entries[i].key));
    out.indices(i) = static_cast<index_t>(place & 0xffffffffu);
    ++offsets(static_cast<index_t>(place >> 32) + 1);
  }
  accumulate(offsets);
}

template <class T>
void threshold_encode(context const& ctx, strided_view<T const, 2> x, encoder<T> const& how,
                      strided_view<T const, 1> threshold, strided_view<index_t, 1> offsets,
                      ragged_allocator<T> const& allocate) {
  constexpr char const* function = "threshold_encode";
  check(function, x, how);
  detail::expects(threshold.shape[0] == how.w_enc.shape[1], function, "threshold must have ",
                  how.w_enc.shape[1], " elements, got ", threshold.shape[0]);
  check_output<T, index_t, 1>(function, "offsets", x, how, offsets, {x.shape[0] + 1});
  threshold_encoding<T> job(ctx, x, how, threshold);
  detail::run_tiles<product_type<T>>(ctx, job);

  for (index_t t = 0; t <= x.shape[0]; ++t) offsets(t) = 0;
  job.each([&](index_t row, auto const&) { ++offsets(row + 1); });
  accumulate(offsets);
  auto const out = allocate(offsets(x.shape[0]));
  std::vector<std::pair<std::uint32_t, product_type<T>>> codes(
      static_cast<std::size_t>(offsets(x.shape[0])));
  std::vector<index_t> next(static_cast<std::size_t>(x.shape[0]));
  for (index_t t = 0; t < x.shape[0]; ++t) next[static_cast<std::size_t>(t)] = offsets(t);
  job.each([&](index_t row, auto const& hit) {
    codes[static_cast<std::size_t>(next[static_cast<std::size_t>(row)]++)] = {hit.column,
                                                                              hit.value};
  });
  detail::parallel_for(ctx, x.shape[0], 64, [&](index_t begin, index_t end) {
    for (index_t t = begin; t < end; ++t)
      std::sort(codes.begin() + offsets(t), codes.begin() + offsets(t + 1),
                [](auto const& a, auto const& b) { return a.first < b.first; });
    for (index_t i = offsets(begin); i < offsets(end); ++i) {
      out.values(i) = narrow_one<T>(codes[static_cast<std::size_t>(i)].second);
      out.indices(i) = codes[static_cast<std::size_t>(i)].first;
    }
  });
}

#define SUBSPAN_INSTANTIATE(T)                                                                    \
  template void topk_encode<T>(context const&, strided_view<T const, 2>, encoder<T> const&,       \
                               strided_view<T, 2>, strided_view<index_t, 2>, activation);         \
  template void batch_topk_encode<T>(context const&, strided_view<T const, 2>, encoder<T> const&, \
                                     index_t, strided_view<index_t, 1>,                           \
                                     ragged_allocator<T> const&, activation);                     \
  template void threshold_encode<T>(context const&, strided_view<T const, 2>, encoder<T> const&,  \
                                    strided_view<T const, 1>, strided_view<index_t, 1>,           \
                                    ragged_allocator<T> const&);
SUBSPAN_FOREACH_STORAGE(SUBSPAN_INSTANTIATE)
#undef SUBSPAN_INSTANTIATE

}  // namespace v0
}  // namespace subspan

#endif  // SUBSPAN_ONCE
