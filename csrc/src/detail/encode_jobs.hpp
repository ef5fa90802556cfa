#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "detail/encode_kernels.hpp"
#include "subspan/encode.hpp"

/// The encoders as jobs for the tile engine; see run_tiles.

namespace subspan::detail {

inline constexpr index_t k_state_bytes = index_t{64} << 20;

template <class T>
using product_type = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// What every encoder's job for the engine has in common; see run_tiles.
template <class T>
class encoding {
 public:
  using P = product_type<T>;
  using kernels_type = encode_kernels<T, P>;

  encoding(context const& ctx, kernels_type const& kernels, strided_view<T const, 2> x,
           encoder<T> const& how, std::vector<index_t> row_ids = {})
      : ctx_(ctx),
        kernels_(kernels),
        row_ids_(std::move(row_ids)),
        x_{x.data,       row_ids_.empty() ? x.shape[0] : static_cast<index_t>(row_ids_.size()),
           x.shape[1],   x.strides[0],
           x.strides[1], row_ids_.empty() ? nullptr : row_ids_.data()},
        w_{how.w_enc.data, how.w_enc.shape[1], how.w_enc.shape[0], how.w_enc.strides[1],
           how.w_enc.strides[0]},
        bias_(ctx, padded()),
        shift_(ctx, x_.depth) {
    for (index_t j = 0; j < w_.count; ++j)
      bias_[j] = how.b_enc ? kernels_.widen((*how.b_enc)(j)) : P{0};
    std::fill(bias_.data() + w_.count, bias_.data() + padded(),
              std::numeric_limits<P>::quiet_NaN());
    for (index_t r = 0; r < x_.depth; ++r)
      shift_[r] = how.b_pre ? kernels_.widen((*how.b_pre)(r)) : P{0};
  }

  index_t rows() const { return x_.count; }
  index_t columns() const { return w_.count; }
  index_t depth() const { return x_.depth; }
  tile_size size() const { return kernels_.size; }
  void pack_rows(index_t first, index_t count, P* out) const {
    kernels_.pack(x_, {shift_.data()}, first, count, size().rows, out);
  }
  void pack_columns(index_t first, index_t count, P* out) const {
    kernels_.pack(w_, {}, first, count, size().width, out);
  }
  /// Whether columns can be read where they lie, and that pays.
  bool in_place() const {
    return rows() > 0 && rows() <= k_rows_in_place && (w_.step == 1 || w_.stride == 1);
  }
  void multiply_in_place(P const* left, index_t first, index_t count, P* sums) const {
    auto const [tile_rows, width] = size();
    index_t const row_panels = divide_up(rows(), tile_rows), tile = tile_rows * width;
    for (index_t p = 0; p < row_panels; ++p)
      kernels_.sums_in_place(w_, first, count, left + p * tile_rows * depth(),
                             std::min(tile_rows, rows() - p * tile_rows), sums + p * tile,
                             row_panels * tile);
  }

 protected:
  index_t row_id(index_t i) const {
    return row_ids_.empty() ? i : row_ids_[static_cast<std::size_t>(i)];
  }
  /// Columns with those of the last panel's padding.
  index_t padded() const { return divide_up(w_.count, size().width) * size().width; }

  context ctx_;
  kernels_type const& kernels_;
  std::vector<index_t> row_ids_;  // rows of x that take part; empty: all
  vector_set<T> x_, w_;
  workspace<P> bias_, shift_;
};

/// Runs a job: few rows read the columns where they lie, more have them packed.
template <class Job>
void run_encoding(context const& ctx, Job& job) {
  using P = typename Job::P;
  if (!job.in_place()) return run_tiles<P>(ctx, job);
  auto const [tile_rows, width] = job.size();
  index_t const rows = job.rows(), row_panels = divide_up(rows, tile_rows), n = job.columns();
  index_t const parts = 4 * thread_count(ctx);
  index_t const each = divide_up(divide_up(n, parts), width) * width;
  workspace<P> left(ctx, row_panels * tile_rows * job.depth());
  for (index_t p = 0; p < rows; p += tile_rows)
    job.pack_rows(p, std::min(tile_rows, rows - p), left.data() + p * job.depth());
  job.begin(0, rows, parts);
  parallel_for(ctx, n, each, [&](index_t begin, index_t end) {
    workspace<P> sums(ctx, k_columns_in_place * row_panels * tile_rows);
    for (; begin < end; begin += k_columns_in_place) {
      index_t const count = std::min(k_columns_in_place, end - begin);
      job.multiply_in_place(left.data(), begin, count, sums.data());
      tile_block<P> const block{nullptr, row_panels, nullptr, divide_up(count, width), 0, 0, begin};
      job.multiply({block, sums.data()}, begin / each);
    }
  });
  job.end(0, rows, parts);
}

/// The k best of each row.
template <class T>
class topk_encoding : public encoding<T> {
 public:
  using typename encoding<T>::P;
  using typename encoding<T>::kernels_type;
  using selector = row_selector<P>;
  using entry_type = typename selector::entry_type;
  using order = score_order<P>;

  /// `kept`: candidates that every row's state keeps, at least k.
  topk_encoding(context const& ctx, kernels_type const& kernels, strided_view<T const, 2> x,
                encoder<T> const& how, strided_view<T, 2> values, strided_view<index_t, 2> indices,
                activation rectifier, std::vector<index_t> row_ids = {}, index_t kept = 0)
      : encoding<T>(ctx, kernels, x, how, std::move(row_ids)),
        rectifier_(rectifier),
        k_(values.shape[1]),
        kept_(std::max(kept, k_)),
        values_(values),
        indices_(indices) {}

  index_t strip() const {
    return k_state_bytes / (selector::room(kept_) * static_cast<index_t>(sizeof(entry_type)));
  }
  void begin(index_t first, index_t last, index_t parts) {
    auto const tile_rows = this->size().rows;
    states_ = divide_up(last - first, tile_rows) * tile_rows;
    buffers_.emplace(this->ctx_, parts * states_ * selector::room(kept_));
    best_.clear();
    for (index_t i = 0; i < parts * states_; ++i)
      best_.emplace_back(kept_, buffers_->data() + i * selector::room(kept_));
  }
  void multiply(encode_block<P> const& block, index_t part) {
    this->kernels_.select(block, best_.data() + part * states_, this->bias_.data(), is_first());
  }
  void end(index_t first, index_t last, index_t parts) {
    each_row(last - first, parts, [&](index_t i, entry_type* entries, index_t found) {
      deliver(this->row_id(first + i), entries, found);
    });
  }

 protected:
  bool is_first() const { return rectifier_ == activation::relu_first; }

  /// visit(row, entries, count): the candidates of every row of the strip, of all parts.
  template <class Visit>
  void each_row(index_t rows, index_t parts, Visit&& visit) {
    parallel_for(this->ctx_, rows, 16, [&](index_t begin, index_t end) {
      workspace<entry_type> joined(this->ctx_, parts * kept_);
      for (index_t i = begin; i < end; ++i) {
        index_t found = 0;
        for (index_t part = 0; part < parts; ++part) {
          auto& row = best_[static_cast<std::size_t>(part * states_ + i)];
          index_t const count = row.keep_best();
          std::copy_n(row.entries(), count, joined.data() + found);
          found += count;
        }
        visit(i, joined.data(), found);
      }
    });
  }

  void deliver(index_t row, entry_type* entries, index_t found) const {
    index_t const count = std::min(found, k_);
    std::partial_sort(entries, entries + count, entries + found, std::greater<>());
    for (index_t i = 0; i < count; ++i) {
      P const z = order::score(key_of(entries[i]));
      bool const cut = rectifier_ != activation::identity && z < 0;
      values_(row, i) = this->kernels_.narrow(cut ? P{0} : z);
      indices_(row, i) = index_of(entries[i]);
    }
    if (count < k_) fill_with_nan(row, count);
  }

  activation rectifier_;
  index_t k_, kept_, states_ = 0;
  std::vector<selector> best_;

 private:
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
      values_(row, count) = this->kernels_.narrow(std::numeric_limits<P>::quiet_NaN());
      indices[count++] = j;
    }
  }

  strided_view<T, 2> values_;
  strided_view<index_t, 2> indices_;
  std::optional<workspace<entry_type>> buffers_;
};

/// The best of all rows.
template <class T>
class batch_encoding : public encoding<T> {
 public:
  using typename encoding<T>::P;
  using selector = batch_selector<P>;

  batch_encoding(context const& ctx, typename encoding<T>::kernels_type const& kernels,
                 strided_view<T const, 2> x, encoder<T> const& how, index_t count,
                 activation rectifier)
      : encoding<T>(ctx, kernels, x, how),
        count_(count),
        least_(rectifier == activation::identity ? score_order<P>::lowest
                                                 : std::numeric_limits<P>::denorm_min()) {}

  index_t strip() const { return 8192; }
  void begin(index_t first, index_t last, index_t) { first_ = first, rows_ = last - first; }
  void multiply(encode_block<P> const& block, index_t) {
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
  using hits_type = std::vector<code_hit<P>>;

  threshold_encoding(context const& ctx, typename encoding<T>::kernels_type const& kernels,
                     strided_view<T const, 2> x, encoder<T> const& how,
                     strided_view<T const, 1> threshold)
      : encoding<T>(ctx, kernels, x, how), bars_(ctx, this->padded()) {
    constexpr P infinity = std::numeric_limits<P>::infinity();
    for (index_t j = 0; j < this->padded(); ++j) {
      P const bar = j < this->columns() ? this->kernels_.widen(threshold(j)) : infinity;
      bars_[j] =
          bar == infinity ? std::numeric_limits<P>::quiet_NaN() : std::nextafter(bar, infinity);
    }
  }

  index_t strip() const { return 8192; }
  void begin(index_t first, index_t last, index_t parts) {
    rows_ = last - first;
    parts_ = parts;
    hits_.emplace_back(static_cast<std::size_t>(divide_up(rows_, k_rows_of_task) * parts));
    first_rows_.push_back(first);
  }
  void multiply(encode_block<P> const& block, index_t part) {
    auto const task = block.row0 / k_rows_of_task * parts_ + part;
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
  workspace<P> bars_;
  index_t rows_ = 0, parts_ = 1;
  std::vector<std::vector<hits_type>> hits_;  // of every strip, by task
  std::vector<index_t> first_rows_;
};

}  // namespace subspan::detail
