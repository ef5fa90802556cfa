#pragma once

#include "detail/encode_jobs.hpp"

/// The k best of each row by a first pass in low precision. What its rounding may have moved across
/// the k-th is computed again as the plain encoder does, to the bit; a row whose candidates may not
/// be all is left to the plain encoder.

namespace subspan::detail {

/// The entries that were chosen of the rows of a strip, brought together by block of latents.
class block_lists {
 public:
  /// The counts[i] entries of row i stand from chosen[i * kept] on.
  template <class Entry>
  block_lists(index_t blocks, std::vector<index_t> const& counts, Entry const* chosen, index_t kept)
      : begins_(static_cast<std::size_t>(blocks) + 2) {
    auto const each_entry = [&](index_t shift, auto&& visit) {
      for (std::size_t i = 0; i < counts.size(); ++i)
        for (index_t c = 0; c < counts[i]; ++c) {
          index_t const place = static_cast<index_t>(i) * kept + c;
          auto const block = static_cast<index_t>(index_of(chosen[place])) / k_latents_at_once;
          visit(begins_[static_cast<std::size_t>(block + shift)], place);
        }
    };
    each_entry(2, [](index_t& count, index_t) { ++count; });
    for (std::size_t b = 2; b < begins_.size(); ++b) begins_[b] += begins_[b - 1];
    places_.resize(static_cast<std::size_t>(begins_.back()));
    // Moves the begin of each list to its end, where the next one begins.
    each_entry(1, [&](index_t& next, index_t place) {
      places_[static_cast<std::size_t>(next++)] = static_cast<std::uint32_t>(place);
    });
  }

  /// visit(places, count, ahead) for the entries of a block, up to k_rows_at_once at a time; `ahead`
  /// more follow.
  template <class Visit>
  void each(index_t block, Visit&& visit) const {
    index_t const end = begins_[static_cast<std::size_t>(block) + 1];
    for (index_t p = begins_[static_cast<std::size_t>(block)]; p < end; p += k_rows_at_once) {
      index_t const count = std::min(k_rows_at_once, end - p);
      index_t const rest = static_cast<index_t>(places_.size()) - (p + count);
      visit(places_.data() + p, count, std::min(k_rows_at_once, rest));
    }
  }

 private:
  std::vector<index_t> begins_;
  std::vector<std::uint32_t> places_;  // in `chosen`; a strip's take no more than k_state_bytes
};

template <class T>
class certified_encoding : public topk_encoding<T> {
 public:
  using typename topk_encoding<T>::entry_type;
  using typename topk_encoding<T>::order;

  certified_encoding(context const& ctx, typename encoding<T>::kernels_type const& kernels,
                     encode_pair_kernels<T> const& pairs, strided_view<T const, 2> x,
                     encoder<T> const& how, strided_view<T, 2> values,
                     strided_view<index_t, 2> indices, activation rectifier)
      : topk_encoding<T>(ctx, kernels, x, how, values, indices, rectifier, {},
                         std::min(kept_for(values.shape[1], x.shape[1]), how.w_enc.shape[1])),
        pairs_(pairs),
        row_norm_(ctx, x.shape[0]),
        row_residual_(ctx, x.shape[0]),
        column_norm_(ctx, divide_up(this->columns(), this->size().width)),
        column_residual_(ctx, divide_up(this->columns(), this->size().width)),
        failed_(static_cast<std::size_t>(x.shape[0]), 0) {
    for (index_t j = 0; j < this->columns(); ++j)
      bias_bound_ = std::max(bias_bound_, std::abs(static_cast<double>(this->bias_[j])));
  }

  /// Pairs of a panel.
  index_t depth() const { return divide_up(this->x_.depth, 2); }
  void pack_rows(index_t first, index_t count, float* out) {
    double norms[k_widest], residuals[k_widest];
    pack(this->x_, {this->shift_.data()}, first, count, this->size().rows, out, norms, residuals);
    std::copy_n(norms, count, row_norm_.data() + first);
    std::copy_n(residuals, count, row_residual_.data() + first);
  }
  void pack_columns(index_t first, index_t count, float* out) {
    auto const width = this->size().width;
    double norms[k_widest], residuals[k_widest];
    for (index_t const end = first + count; first < end; first += width, out += width * depth()) {
      pack(this->w_, {}, first, std::min(width, end - first), width, out, norms, residuals);
      column_norm_[first / width] = greatest(norms, width);
      column_residual_[first / width] = greatest(residuals, width);
    }
  }
  void multiply(encode_block<float> const& block, index_t part) {
    pairs_.select(block, this->best_.data() + part * this->states_, this->bias_.data(),
                  this->is_first());
  }
  void end(index_t first, index_t last, index_t parts) {
    index_t const column_panels = divide_up(this->columns(), this->size().width);
    double const norm = greatest(column_norm_.data(), column_panels);
    double const residual = greatest(column_residual_.data(), column_panels);
    index_t const rows = last - first;
    workspace<entry_type> chosen(this->ctx_, rows * this->kept_);
    std::vector<index_t> counts(static_cast<std::size_t>(rows));
    this->each_row(rows, parts, [&](index_t i, entry_type* entries, index_t found) {
      if (found > this->kept_) {
        std::nth_element(entries, entries + (this->kept_ - 1), entries + found, std::greater<>());
        found = this->kept_;
      }
      std::sort(entries, entries + found, std::greater<>());
      index_t const doubtful = count_doubtful(first + i, entries, found, norm, residual);
      failed_[static_cast<std::size_t>(first + i)] = doubtful < 0;
      counts[static_cast<std::size_t>(i)] = std::max(doubtful, index_t{0});
      std::copy_n(entries, counts[static_cast<std::size_t>(i)], chosen.data() + i * this->kept_);
    });
    compute(first, counts, chosen.data());
    parallel_for(this->ctx_, rows, 16, [&](index_t begin, index_t end) {
      for (index_t i = begin; i < end; ++i)
        if (index_t const count = counts[static_cast<std::size_t>(i)]; count > 0)
          this->deliver(first + i, chosen.data() + i * this->kept_, count);
    });
  }

  std::vector<index_t> failed() const {
    std::vector<index_t> rows;
    for (std::size_t i = 0; i < failed_.size(); ++i)
      if (failed_[i]) rows.push_back(static_cast<index_t>(i));
    return rows;
  }

 private:
  static constexpr index_t k_widest = 64;
  /// Candidates: the rounding's bound grows with the root of the depth against the spread of scores.
  static index_t kept_for(index_t k, index_t depth) { return 2 * k + k * depth / 1024 + 16; }

  static constexpr double k_most = 1e37;
  static constexpr double k_unit = std::numeric_limits<float>::epsilon() / 2.0;

  /// NaN is greater than all.
  static double greatest(double const* values, index_t n) {
    double most = 0;
    for (index_t i = 0; i < n; ++i)
      if (!(values[i] <= most)) most = values[i];
    return most;
  }

  void pack(vector_set<T> const& from, packing<float> const& how, index_t first, index_t count,
            index_t width, float* out, double* norms, double* residuals) const {
    workspace<float> panel(this->ctx_, width * from.depth);
    this->kernels_.pack(from, how, first, count, width, panel.data());
    pairs_.squares(panel.data(), from.depth, width, norms);
    pairs_.pack(panel.data(), from.depth, width, out, residuals);
    for (index_t c = 0; c < width; ++c) {
      norms[c] = std::sqrt(norms[c]);
      residuals[c] = std::sqrt(residuals[c]);
    }
  }

  /// How many of the candidates, which are in order, may be among the k best; -1: perhaps others, too.
  index_t count_doubtful(index_t row, entry_type const* entries, index_t found, double norm,
                         double residual) const {
    double const own = row_norm_[row], rest = row_residual_[row];
    auto const d = static_cast<double>(this->x_.depth);
    // What the rounding to pairs took, the sums of both passes, and their last additions.
    double const error = rest * (norm + residual) + (own + rest) * residual +
                         3.5 * k_unit * (d + 8) * (own + rest) * (norm + residual) +
                         8 * k_unit * bias_bound_ + d * std::numeric_limits<float>::min();
    // Not where a number may be NaN or infinite.
    if (!(error < k_most) || !((own + rest) * (norm + residual) < k_most)) return -1;
    if (found == this->columns()) return found;
    if (found < this->k_) return -1;
    auto const score = [&](index_t i) {
      return static_cast<double>(order::score(key_of(entries[i])));
    };
    double const bar = score(this->k_ - 1) - 2 * error;
    if (!(score(found - 1) < bar)) return -1;
    index_t count = this->k_;
    while (count < found && score(count) >= bar) ++count;
    return count;
  }

  /// The scores of what was chosen of every row, now as the tiles of full precision make them: latents
  /// are packed once more, and each block of them meets the rows that chose one of it.
  void compute(index_t first, std::vector<index_t> const& counts, entry_type* chosen) const {
    index_t const width = this->size().width, n = this->columns(), d = this->x_.depth;
    block_lists const lists(divide_up(n, width) * (width / k_latents_at_once), counts, chosen,
                            this->kept_);
    index_t const panels_at_once =
        std::max<index_t>(1, k_private_bytes / static_cast<index_t>(sizeof(float)) / (width * d));
    parallel_for(this->ctx_, divide_up(n, width), panels_at_once, [&](index_t begin, index_t end) {
      workspace<float> panels(this->ctx_, (end - begin) * width * d);
      this->kernels_.pack(this->w_, {}, begin * width, std::min(end * width, n) - begin * width,
                          width, panels.data());
      for (index_t j = begin * width; j < end * width; j += k_latents_at_once) {
        index_t const from = j - begin * width;
        float const* const panel = panels.data() + from / width * width * d + from % width;
        lists.each(j / k_latents_at_once,
                   [&](std::uint32_t const* places, index_t count, index_t ahead) {
                     compute_some(first, places, count, ahead, panel, chosen);
                   });
      }
    });
  }

  /// Up to k_rows_at_once entries of one block of latents.
  void compute_some(index_t first, std::uint32_t const* places, index_t count, index_t ahead,
                    float const* panel, entry_type* chosen) const {
    index_t ids[2 * k_rows_at_once];
    for (index_t i = 0; i < count + ahead; ++i) ids[i] = first + places[i] / this->kept_;
    vector_set<T> rows = this->x_;
    rows.ids = ids;
    rows.count = count;
    alignas(64) float sums[k_rows_at_once * k_latents_at_once];
    pairs_.scores(rows, ahead, this->shift_.data(), panel, this->size().width, sums);
    for (index_t i = 0; i < count; ++i) {
      auto const j = index_of(chosen[places[i]]);
      float z = sums[i * k_latents_at_once + j % k_latents_at_once] + this->bias_[j];
      if (this->is_first() && z < 0) z = 0;
      chosen[places[i]] = make_entry(order::key(z), j);
    }
  }

  encode_pair_kernels<T> const& pairs_;
  workspace<double> row_norm_, row_residual_, column_norm_, column_residual_;
  double bias_bound_ = 0;
  std::vector<char> failed_;
};

}  // namespace subspan::detail
