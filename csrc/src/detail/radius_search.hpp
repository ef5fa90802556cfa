#pragma once

#include "detail/neighbor_job.hpp"

/// The search for all within a radius: pairs that rounding leaves in doubt are candidates, too, and
/// the distance in double decides.

namespace subspan::detail {

/// One run of the engine over all rows of x.
template <class T, class P>
class radius_search : public neighbor_job<T, P> {
 public:
  radius_search(knn_data<T> const& data, knn_kernels<T, P> const& kernels,
                std::vector<index_t> row_ids, double radius)
      : neighbor_job<T, P>(data, kernels, nullptr, std::move(row_ids)),
        radius_(radius),
        limit_(limit_of(data.params.metric, radius)),
        rows_(this->row_ids_.size()) {}

  index_t strip() const { return 4096; }
  void begin(index_t first, index_t last, index_t parts) {
    this->begin_strip(first, last, parts);
    parts_ = parts;
    auto const groups = divide_up(last - first, k_rows_of_task);
    candidates_.assign(static_cast<std::size_t>(groups * parts), {});
    bars_.assign(static_cast<std::size_t>(this->states_), bar_of(limit_));
    if (!this->data_.by_product()) return;
    double const far = this->shift_norm();
    parallel_for(this->ctx_, last - first, 64, [&](index_t begin, index_t end) {
      workspace<double> wide(this->ctx_, this->data_.padded_depth());
      for (index_t i = begin; i < end; ++i) {
        widen(this->row_id(i), wide.data());
        double const offset = this->taken_by_shift(wide.data());
        double norm = 0;
        for (index_t r = 0; r < this->dimensions(); ++r) norm += wide[r] * wide[r];
        double const doubt = 4 * static_cast<double>(this->dimensions() + 16) * this->k_exact_unit *
                             std::sqrt(norm) * (far + 1);
        double const bar = radius_ - offset - doubt;
        bars_[static_cast<std::size_t>(i)] = static_cast<P>(bar - 4 * this->k_unit * std::abs(bar));
      }
    });
  }
  void multiply(tile_block<P> const& block, index_t part) {
    auto const task = block.row0 / k_rows_of_task * parts_ + part;
    this->kernels_.within(block, this->describe_strip(part), bars_.data(), static_cast<P>(limit_),
                          candidates_[static_cast<std::size_t>(task)]);
  }
  void end(index_t first, index_t last, index_t parts) {
    parallel_for(this->ctx_, divide_up(last - first, k_rows_of_task), 1,
                 [&](index_t group, index_t) { decide(group, last - first, parts); });
    this->end_strip();
    candidates_.clear();
  }

  /// By row, in order.
  std::vector<std::vector<ranked>> const& found() const { return rows_; }

 private:
  /// Scores at the radius are -limit.
  static double limit_of(metric how, double radius) {
    switch (how) {
      case metric::euclidean:
        return radius * radius / 2;
      case metric::sqeuclidean:
        return radius / 2;
      case metric::cosine:
        return radius;
      case metric::inner_product:
        return 0;
    }
    return 0;
  }
  static P bar_of(double limit) {
    return static_cast<P>(-limit * (1 + 4 * neighbor_job<T, P>::k_unit));
  }

  void widen(index_t row, double* out) const {
    this->data_.exact.widen(knn_data<T>::row_of(this->data_.x, row), this->data_.x.strides[1],
                            this->dimensions(), out);
  }

  void decide(index_t group, index_t rows, index_t parts) {
    workspace<double> wide(this->ctx_, this->data_.padded_depth());
    index_t const begin = group * k_rows_of_task, end = std::min(begin + k_rows_of_task, rows);
    std::vector<std::vector<std::uint32_t>> columns(static_cast<std::size_t>(end - begin));
    for (index_t part = 0; part < parts; ++part)
      for (near_pair const pair : candidates_[static_cast<std::size_t>(group * parts + part)])
        if (index_t const i = pair.row; i < end)
          columns[static_cast<std::size_t>(i - begin)].push_back(pair.column);
    for (index_t i = begin; i < end; ++i) {
      index_t const row = this->row_id(i);
      auto& found = rows_[static_cast<std::size_t>(row)];
      widen(row, wide.data());
      auto const consider = [&](index_t id) {
        if (!this->data_.allows(row, id)) return;
        double const distance = this->data_.distance(wide.data(), row, id);
        if (this->data_.is_within(distance, radius_)) found.push_back({distance, id});
      };
      if (this->is_zero_query(row)) {
        for (index_t c = 0; c < this->columns(); ++c) consider(this->data_.id(c));
      } else if (this->has_neighbors(i)) {
        for (std::uint32_t const c : columns[static_cast<std::size_t>(i - begin)])
          consider(this->data_.id(c));
        for (index_t const id : this->data_.zeros) consider(id);
      }
      std::sort(found.begin(), found.end());
    }
  }

  double radius_, limit_;
  index_t parts_ = 1;
  std::vector<P> bars_;
  std::vector<std::vector<near_pair>> candidates_;  // of the strip, by task
  std::vector<std::vector<ranked>> rows_;
};

}  // namespace subspan::detail
