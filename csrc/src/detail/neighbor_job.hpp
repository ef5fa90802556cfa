#pragma once

#include <atomic>

#include "detail/knn_data.hpp"

/// What every search for neighbours gives the tile engine: both sides packed around the shift, with
/// halves of squares, norms, and bounds of what rounding can do.

namespace subspan::detail {

/// The common part of a job, see run_tiles. P: type of the products.
template <class T, class P>
class neighbor_job {
 public:
  neighbor_job(knn_data<T> const& data, knn_kernels<T, P> const& kernels, pair_kernels const* pairs,
               std::vector<index_t> row_ids)
      : data_(data),
        ctx_(data.ctx),
        kernels_(kernels),
        pairs_(pairs),
        row_ids_(std::move(row_ids)),
        x_{data.x.data,       static_cast<index_t>(row_ids_.size()),
           data.depth(),      data.x.strides[0],
           data.x.strides[1], row_ids_.data()},
        y_{data.y.data,       data.columns(),    data.depth(),
           data.y.strides[0], data.y.strides[1], data.compacted ? data.column_ids.data() : nullptr},
        shift_(ctx_, data.depth()),
        column_half_(ctx_, divide_up(y_.count, size().width) * size().width),
        column_reach_(ctx_, divide_up(y_.count, size().width)),
        column_residual_(ctx_, divide_up(y_.count, size().width)) {
    for (index_t r = 0; r < data.depth(); ++r)
      shift_[r] = static_cast<P>(data.shift[static_cast<std::size_t>(r)]);
    if (data.cosine()) {
      for (index_t const i : row_ids_) row_scale_.push_back(inverse(data.x_norm, i));
      for (index_t c = 0; c < y_.count; ++c)
        column_scale_.push_back(inverse(data.y_norm, data.id(c)));
    }
  }

  index_t rows() const { return x_.count; }
  index_t columns() const { return y_.count; }
  /// Of a panel: a pair counts once.
  index_t depth() const { return pairs_ != nullptr ? divide_up(x_.depth, 2) : x_.depth; }
  tile_size size() const { return kernels_.size; }

  void pack_rows(index_t first, index_t count, P* out) {
    auto const tile_rows = size().rows;
    auto const at = static_cast<std::size_t>(first - first_);
    packing<P> const how{data_.by_product() ? nullptr : shift_.data(),
                         data_.cosine() ? row_scale_.data() : nullptr};
    pack(x_, how, first, count, tile_rows, out, row_half_.data() + at, row_norm_.data() + at,
         row_residual_.data() + at, row_reach_[at / static_cast<std::size_t>(tile_rows)]);
  }
  void pack_columns(index_t first, index_t count, P* out) {
    auto const width = size().width;
    double norms[k_widest_panel], residuals[k_widest_panel];
    packing<P> const how{shift_.data(), data_.cosine() ? column_scale_.data() : nullptr};
    for (index_t const end = first + count; first < end; first += width, out += width * depth()) {
      pack(y_, how, first, std::min(width, end - first), width, out, column_half_.data() + first,
           norms, residuals, column_reach_[first / width]);
      column_residual_[first / width] = *std::max_element(residuals, residuals + width);
    }
  }

  /// Rows or columns once more, with nothing new to be learnt of them.
  void repack_rows(index_t begin, index_t end, P* out) const {
    auto const tile_rows = size().rows;
    packing<P> const how{data_.by_product() ? nullptr : shift_.data(),
                         data_.cosine() ? row_scale_.data() : nullptr};
    for (index_t i = begin; i < end; i += tile_rows, out += tile_rows * depth())
      pack_only(x_, how, i, std::min(tile_rows, end - i), tile_rows, out);
  }
  void repack_columns(index_t begin, index_t end, P* out) const {
    auto const width = size().width;
    packing<P> const how{shift_.data(), data_.cosine() ? column_scale_.data() : nullptr};
    for (index_t i = begin; i < end; i += width, out += width * depth())
      pack_only(y_, how, i, std::min(width, end - i), width, out);
  }

  /// A square was too large for P: nothing that was delivered counts.
  bool overflowed() const { return overflowed_; }
  index_t difference_tiles() const { return all_difference_tiles_; }

 protected:
  static constexpr P k_nan = std::numeric_limits<P>::quiet_NaN();
  static constexpr double k_unit = std::numeric_limits<P>::epsilon() / 2.0;  // rounding
  static constexpr double k_exact_unit = std::numeric_limits<double>::epsilon() / 2;
  static constexpr double k_tiny = std::numeric_limits<P>::min();
  static constexpr index_t k_widest_panel = 64;

  void begin_strip(index_t first, index_t last, index_t parts) {
    auto const tile_rows = size().rows;
    first_ = first;
    panels_ = divide_up(last - first, tile_rows);
    states_ = panels_ * tile_rows;
    row_half_.assign(static_cast<std::size_t>(states_), k_nan);
    row_norm_.assign(static_cast<std::size_t>(states_), 0.0);
    row_residual_.assign(static_cast<std::size_t>(states_), 0.0);
    row_reach_.assign(static_cast<std::size_t>(panels_), 0);
    difference_tiles_.assign(static_cast<std::size_t>(parts * panels_), 0);
  }
  void end_strip() {
    for (index_t const tiles : difference_tiles_) all_difference_tiles_ += tiles;
  }

  neighbor_strip<P> describe_strip(index_t part) {
    neighbor_strip<P> strip{row_half_.data(),
                            column_half_.data(),
                            row_reach_.data(),
                            column_reach_.data(),
                            difference_tiles_.data() + part * panels_,
                            static_cast<P>(score_error()),
                            may_differ()};
    if (data_.mask) {
      strip.mask = data_.mask->data;
      strip.mask_ids = row_ids_.data() + first_;
      strip.mask_step = data_.mask->shape[0] == 1 ? 0 : data_.mask->strides[0];
      strip.mask_stride = data_.mask->strides[1];
    }
    return strip;
  }

  auto selecting() const {
    if constexpr (std::is_same_v<P, float>)
      if (pairs_ != nullptr) return pairs_->select;
    return kernels_.select;
  }
  auto selecting_both() const {
    if constexpr (std::is_same_v<P, float>)
      if (pairs_ != nullptr) return pairs_->select_both;
    return kernels_.select_both;
  }
  /// What the rounding to pairs can do to a score of row i; `reach` is column_reach().
  double pair_error(index_t i, double reach) const {
    if (pairs_ == nullptr) return 0;
    double residual = 0;
    for (index_t p = 0; p < divide_up(y_.count, size().width); ++p)
      residual = std::max(residual, column_residual_[p]);
    double const norm = row_norm_[static_cast<std::size_t>(i)];
    double const own = row_residual_[static_cast<std::size_t>(i)];
    // The instruction flushes denormals and rounds after each of its two additions.
    return (own * (reach + residual) + (norm + own) * residual) * (1 + 1e-9) +
           2.5 * k_unit * (static_cast<double>(dimensions()) / 4 + 8) * (norm + reach) *
               (norm + reach);
  }

  /// The greatest norm of a row of y, as packed.
  double column_reach() const {
    double reach = 0;
    for (index_t p = 0; p < divide_up(y_.count, size().width); ++p)
      reach = std::max(reach, static_cast<double>(column_reach_[p]));
    return reach;
  }
  index_t row_id(index_t i) const { return row_ids_[static_cast<std::size_t>(first_ + i)]; }
  bool is_zero_query(index_t row) const {
    return data_.cosine() && data_.x_norm[static_cast<std::size_t>(row)] == 0;
  }
  bool has_neighbors(index_t i) const {
    return !std::isnan(row_half_[static_cast<std::size_t>(i)]);
  }

  index_t dimensions() const { return x_.depth; }
  bool may_differ() const {
    return !data_.by_product() && !data_.exact_scores && pairs_ == nullptr;
  }
  /// See neighbor_strip::error: d products and their sums, the rounding of both halves and of the
  /// packed elements; products are at most a quarter, halves a half of the square.
  double score_error() const {
    return data_.exact_scores ? 0 : 1.25 * k_unit * (static_cast<double>(dimensions()) / 4 + 8);
  }
  /// Of inner products: what the shift of y has taken from row i's scores; `wide` is the row in double.
  double taken_by_shift(double const* wide) const {
    double sum = 0;
    for (index_t r = 0; r < dimensions(); ++r) sum += wide[r] * static_cast<double>(shift_[r]);
    return sum;
  }
  double shift_norm() const {
    double square = 0;
    for (index_t r = 0; r < dimensions(); ++r)
      square += static_cast<double>(shift_[r]) * static_cast<double>(shift_[r]);
    return std::sqrt(square);
  }

  knn_data<T> const& data_;
  context const& ctx_;
  knn_kernels<T, P> const& kernels_;
  pair_kernels const* pairs_;  // of the first pass in low precision
  std::vector<index_t> row_ids_;
  vector_set<T> x_, y_;
  workspace<P> shift_, column_half_, column_reach_;
  workspace<double> column_residual_;
  std::vector<double> row_scale_, column_scale_;  // cosine
  index_t first_ = 0, panels_ = 0, states_ = 0;   // of the strip; states: its rows with padding
  std::vector<P> row_half_, row_reach_;
  std::vector<double> row_norm_, row_residual_;

 private:
  static double inverse(std::vector<double> const& norms, index_t i) {
    double const norm = norms[static_cast<std::size_t>(i)];
    return norm == 0 ? 0 : 1 / norm;
  }

  void pack_only(vector_set<T> const& from, packing<P> const& how, index_t first, index_t count,
                 index_t width, P* out) const {
    if constexpr (std::is_same_v<P, float>)
      if (pairs_ != nullptr) {
        double residuals[k_widest_panel];
        workspace<float> panel(ctx_, width * dimensions());
        kernels_.pack(from, how, first, count, width, panel.data());
        pairs_->pack(panel.data(), dimensions(), width, out, residuals);
        return;
      }
    kernels_.pack(from, how, first, count, width, out);
  }

  /// Packs vectors first.. of `from` into a panel, with what is to be known about each of them.
  void pack(vector_set<T> const& from, packing<P> const& how, index_t first, index_t count,
            index_t width, P* out, P* half, double* norms, double* residuals, P& reach) {
    double squares[k_widest_panel];
    std::fill_n(residuals, width, 0.0);
    bool paired = false;
    if constexpr (std::is_same_v<P, float>)
      if (pairs_ != nullptr) {
        workspace<float> panel(ctx_, width * dimensions());
        kernels_.pack(from, how, first, count, width, panel.data());
        kernels_.squares(panel.data(), dimensions(), width, squares);
        pairs_->pack(panel.data(), dimensions(), width, out, residuals);
        paired = true;
      }
    if (!paired) {
      kernels_.pack(from, how, first, count, width, out);
      kernels_.squares(out, dimensions(), width, squares);
    }
    double most = 0;
    for (index_t c = 0; c < width; ++c) {
      half[c] = k_nan;
      norms[c] = 0;
      residuals[c] = std::isfinite(residuals[c]) ? std::sqrt(residuals[c]) : 0;
      if (c >= count || (how.scale != nullptr && how.scale[first + c] == 0)) continue;
      if (!(squares[c] <= static_cast<double>(std::numeric_limits<P>::max()) / 64)) {
        if (is_finite(from, first + c)) overflowed_ = true;
        continue;
      }
      half[c] = data_.by_product() ? P{0} : static_cast<P>(squares[c] / 2);
      norms[c] = std::sqrt(squares[c]);
      most = std::max(most, norms[c]);
    }
    reach = static_cast<P>(most * (1 + 4 * k_unit));
  }

  bool is_finite(vector_set<T> const& from, index_t i) const {
    workspace<double> wide(ctx_, data_.padded_depth());
    data_.exact.widen(from[i], from.stride, dimensions(), wide.data());
    return std::all_of(wide.data(), wide.data() + dimensions(),
                       [](double v) { return std::isfinite(v); });
  }

  std::vector<index_t> difference_tiles_;
  index_t all_difference_tiles_ = 0;
  std::atomic<bool> overflowed_ = false;
};

}  // namespace subspan::detail
