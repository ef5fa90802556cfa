#pragma once

#include "detail/encode_jobs.hpp"

/// The k best of each row by a first pass in low precision. What its rounding may have moved across
/// the k-th is computed again as the plain encoder does, to the bit; a row whose candidates may not
/// be all is left to the plain encoder.

namespace subspan::detail {

template <class T>
class certified_encoding : public topk_encoding<T> {
 public:
  using typename topk_encoding<T>::entry_type;
  using typename topk_encoding<T>::order;

  /// rows: what the rows of w_enc^T are read from, elements side by side.
  certified_encoding(context const& ctx, typename encoding<T>::kernels_type const& kernels,
                     encode_pair_kernels<T> const& pairs, strided_view<T const, 2> x,
                     encoder<T> const& how, vector_set<T> rows, strided_view<T, 2> values,
                     strided_view<index_t, 2> indices, activation rectifier)
      : topk_encoding<T>(ctx, kernels, x, how, values, indices, rectifier, {},
                         std::min(kept_for(values.shape[1], x.shape[1]), how.w_enc.shape[1])),
        pairs_(pairs),
        latents_(rows),
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
  void multiply(tile_block<float> const& block, index_t part) {
    pairs_.select(block, this->best_.data() + part * this->states_, this->bias_.data(),
                  this->is_first());
  }
  void end(index_t first, index_t last, index_t parts) {
    index_t const column_panels = divide_up(this->columns(), this->size().width);
    double const norm = greatest(column_norm_.data(), column_panels);
    double const residual = greatest(column_residual_.data(), column_panels);
    this->each_row(last - first, parts, [&](index_t i, entry_type* entries, index_t found) {
      index_t const row = first + i;
      if (found > this->kept_) {
        std::nth_element(entries, entries + (this->kept_ - 1), entries + found, std::greater<>());
        found = this->kept_;
      }
      std::sort(entries, entries + found, std::greater<>());
      index_t const doubtful = count_doubtful(row, entries, found, norm, residual);
      if (doubtful < 0) {
        failed_[static_cast<std::size_t>(row)] = 1;
        return;
      }
      compute(row, entries, doubtful);
      this->deliver(row, entries, doubtful);
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
    auto const score = [&](index_t i) {
      return static_cast<double>(order::score(key_of(entries[i])));
    };
    double const bar = score(this->k_ - 1) - 2 * error;
    if (!(score(found - 1) < bar)) return -1;
    index_t count = this->k_;
    while (count < found && score(count) >= bar) ++count;
    return count;
  }

  void compute(index_t row, entry_type* entries, index_t count) const {
    std::vector<index_t> ids(static_cast<std::size_t>(count));
    std::vector<float> z(ids.size());
    for (index_t i = 0; i < count; ++i)
      ids[static_cast<std::size_t>(i)] = static_cast<index_t>(index_of(entries[i]));
    vector_set<T> chosen = latents_;
    chosen.ids = ids.data();
    chosen.count = count;
    pairs_.scores(this->ctx_, this->x_[row], this->x_.stride, this->shift_.data(), chosen,
                  z.data());
    for (index_t i = 0; i < count; ++i) {
      auto const j = ids[static_cast<std::size_t>(i)];
      float value = z[static_cast<std::size_t>(i)] + this->bias_[j];
      if (this->is_first() && value < 0) value = 0;
      entries[i] = make_entry(order::key(value), static_cast<std::uint32_t>(j));
    }
  }

  encode_pair_kernels<T> const& pairs_;
  vector_set<T> latents_;
  workspace<double> row_norm_, row_residual_, column_norm_, column_residual_;
  double bias_bound_ = 0;
  std::vector<char> failed_;
};

}  // namespace subspan::detail
