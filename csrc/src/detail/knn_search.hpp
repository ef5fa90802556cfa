#pragma once

#include <numeric>

#include "detail/neighbor_job.hpp"

/// The search for the k nearest: candidates by the tile engine, distances in double, and a proof for
/// every row that no other row of y can be among its k nearest.

namespace subspan::detail {

/// One run of the engine over some rows of x.
template <class T, class P>
class knn_search : public neighbor_job<T, P> {
 public:
  using selector = row_selector<P>;
  using entry_type = typename selector::entry_type;
  using order = score_order<P>;

  knn_search(knn_data<T> const& data, knn_kernels<T, P> const& kernels, pair_kernels const* pairs,
             std::vector<index_t> row_ids, index_t pad, bool only_differences, knn_output out)
      : neighbor_job<T, P>(data, kernels, pairs, std::move(row_ids)),
        only_(only_differences),
        out_(out),
        k_(out.indices.shape[1]),
        candidates_(std::clamp<index_t>(k_ + pad + (data.params.exclude_self ? 1 : 0), 1,
                                        std::max<index_t>(data.columns(), 1))),
        failed_(this->row_ids_.size(), 0) {}

  index_t strip() const {
    return k_state_bytes / (selector::room(candidates_) * static_cast<index_t>(sizeof(entry_type)));
  }
  void begin(index_t first, index_t last, index_t parts, bool ascending = true) {
    this->begin_strip(first, last, parts);
    index_t const states = parts * this->states_;
    buffers_.emplace(this->ctx_, states * selector::room(candidates_));
    best_.clear();
    for (index_t i = 0; i < states; ++i)
      best_.emplace_back(candidates_, buffers_->data() + i * selector::room(candidates_),
                         ascending);
    // A panel of columns may reach beyond the last panel of rows.
    used_.assign(static_cast<std::size_t>(parts * this->panels_ + this->size().width), 0);
  }

  /// Whether the states of so many rows may be alive together, as `run_with` has them.
  bool fits_together(index_t rows) const {
    return rows * selector::room(candidates_) * static_cast<index_t>(sizeof(entry_type)) <=
           k_together_bytes;
  }

  /// Searches of two sets in each other: this one of x in y, the other of y in x, around the same
  /// shift. Or of x in x, which is its own other one. Every tile serves its rows and its columns. In
  /// a phase no block of rows takes part twice, so a row's state has one thread.
  void run_with(knn_search& other) {
    begin_all();
    if (this == &other) {
      meet_in_tournament();
    } else {
      other.begin_all();
      index_t const mine = divide_up(this->rows(), side_);
      index_t const others = divide_up(other.rows(), other.side_), rounds = std::max(mine, others);
      for (index_t round = 0; round < rounds; ++round)
        parallel_for(this->ctx_, mine, 1, [&](index_t b, index_t) {
          if (index_t const met = (round + b) % rounds; met < others) meet(other, b, met);
        });
      other.end(0, other.rows(), 1);
    }
    end(0, this->rows(), 1);
  }

  void multiply(tile_block<P> const& block, index_t part) {
    auto const select = this->selecting();
    select(block, this->describe_strip(part), best_.data() + part * this->states_,
           used_.data() + part * this->panels_, only_);
  }
  void end(index_t first, index_t last, index_t parts) {
    double const reach = this->column_reach();
    parallel_for(this->ctx_, last - first, 16, [&](index_t begin, index_t end) {
      workspace<entry_type> joined(this->ctx_, parts * candidates_);
      workspace<double> wide(this->ctx_, this->data_.padded_depth());
      std::vector<ranked> found;
      for (index_t i = begin; i < end; ++i) {
        index_t count = 0;
        for (index_t part = 0; part < parts; ++part) {
          auto& row = best_[static_cast<std::size_t>(part * this->states_ + i)];
          index_t const kept = row.keep_best();
          std::copy_n(row.entries(), kept, joined.data() + count);
          count += kept;
        }
        finish(i, parts, joined.data(), count, reach, wide.data(), found);
      }
    });
    this->end_strip();
  }

  /// Rows of x for which nothing was proved; some of what was delivered for them may be wrong.
  std::vector<index_t> unproved() const {
    std::vector<index_t> out;
    for (std::size_t i = 0; i < failed_.size(); ++i)
      if (failed_[i]) out.push_back(this->row_ids_[i]);
    return out;
  }

 private:
  static constexpr index_t k_state_bytes = index_t{64} << 20;
  static constexpr index_t k_together_bytes = index_t{1} << 30;
  static constexpr index_t k_block_rows = 1024;

  /// Begins a strip of all rows, and learns what is to be known of both sides.
  void begin_all() {
    auto const [tile_rows, width] = this->size();
    index_t const n = this->rows(), unit = std::lcm(k_rows_of_task, width);
    index_t const fair = divide_up(n, 8 * thread_count(this->ctx_) * unit) * unit;
    side_ = std::clamp<index_t>(fair, unit, divide_up(k_block_rows, unit) * unit);
    begin(0, n, 1, false);
    auto const learn = [&](index_t count, index_t panel, auto&& pack) {
      parallel_for(this->ctx_, count, unit, [&](index_t first, index_t last) {
        workspace<P> scratch(this->ctx_, panel * this->depth());
        for (; first < last; first += panel)
          pack(first, std::min(panel, last - first), scratch.data());
      });
    };
    learn(n, tile_rows, [&](auto... panel) { this->pack_rows(panel...); });
    learn(this->columns(), width, [&](auto... panel) { this->pack_columns(panel...); });
    least_.assign(static_cast<std::size_t>(divide_up(n, unit) * unit),
                  -std::numeric_limits<P>::max());
    for (index_t i = 0; i < n; ++i)
      if (this->has_neighbors(i)) least_[static_cast<std::size_t>(i)] = order::lowest;
  }

  /// All pairs of blocks of x: each with itself, then the rounds of a round-robin tournament.
  void meet_in_tournament() {
    index_t const blocks = divide_up(this->rows(), side_);
    parallel_for(this->ctx_, blocks, 1, [&](index_t b, index_t) { meet(*this, b, b); });
    for (index_t i = 0; i < this->rows(); ++i) {
      P const bar = best_[static_cast<std::size_t>(i)].least();
      if (bar > least_[static_cast<std::size_t>(i)]) least_[static_cast<std::size_t>(i)] = bar;
    }
    index_t const players = blocks + blocks % 2, rounds = players - 1;
    for (index_t round = 0; round < rounds; ++round)
      parallel_for(this->ctx_, players / 2, 1, [&](index_t i, index_t) {
        index_t const one = i == 0 ? rounds : (round + i) % rounds;
        index_t const two = i == 0 ? round : (round + rounds - i) % rounds;
        if (std::max(one, two) < blocks) meet(*this, std::min(one, two), std::max(one, two));
      });
  }

  /// A block of rows of this search against a block of the other's.
  void meet(knn_search& other, index_t left, index_t right) {
    auto const [tile_rows, width] = this->size();
    index_t const depth = this->depth(), group = k_rows_of_task / tile_rows;
    index_t const row = left * side_, column = right * other.side_;
    index_t const rows = std::min(side_, this->rows() - row);
    index_t const columns = std::min(other.side_, other.rows() - column);
    workspace<P> packed_rows(this->ctx_, side_ * depth), packed(this->ctx_, other.side_ * depth);
    this->repack_rows(row, row + rows, packed_rows.data());
    this->repack_columns(column, column + columns, packed.data());
    for (index_t p = 0, panels = divide_up(rows, tile_rows); p < panels; p += group) {
      tile_block<P> const block{packed_rows.data() + p * tile_rows * depth,
                                std::min(group, panels - p),
                                packed.data(),
                                divide_up(columns, width),
                                depth,
                                row + p * tile_rows,
                                column};
      auto const strip = this->describe_strip(0);
      if (this == &other && left == right)
        this->selecting()(block, strip, best_.data(), used_.data(), false);
      else
        this->selecting_both()(block, strip, states(), other.states());
    }
  }
  searched_rows<P> states() { return {best_.data(), least_.data(), used_.data()}; }

  void finish(index_t i, index_t parts, entry_type* entries, index_t count, double reach,
              double* wide, std::vector<ranked>& found) {
    index_t const row = this->row_id(i);
    this->data_.widen_query(row, wide);
    found.clear();
    double const last =
        this->data_.template consider_best<P>(wide, row, entries, count, candidates_, found);
    bool const zero_query = this->is_zero_query(row);
    if (this->has_neighbors(i))
      for (index_t const id : this->data_.zeros) this->data_.consider(wide, row, id, found);
    std::sort(found.begin(), found.end());
    out_.deliver(this->data_.params.metric, row, found);

    bool const complete = count < candidates_ || candidates_ == this->columns();
    if (this->data_.params.precision == knn_precision::fast && !zero_query) return;
    double used = 0;
    for (index_t part = 0; part < parts; ++part)
      used = std::max(
          used, static_cast<double>(
                    used_[static_cast<std::size_t>(part * this->panels_ + i / this->size().rows)]));
    used += this->pair_error(i, reach);
    if (zero_query || !(complete || proved(i, found, last, used, reach, wide)))
      failed_[static_cast<std::size_t>(this->first_ + i)] = 1;
  }

  /// Whether nothing that was left out can be among the first k: scores of what was left out are at
  /// most `last`, as computed.
  bool proved(index_t i, std::vector<ranked> const& found, double last, double used, double reach,
              double const* wide) const {
    if (this->data_.exact_scores) return true;  // and equal scores were selected by index
    auto const k = static_cast<std::size_t>(k_);
    if (found.size() < k) return false;
    auto const d = static_cast<double>(this->dimensions());
    double const farthest = found[k - 1].distance;
    double const norm = this->row_norm_[static_cast<std::size_t>(i)];
    if (this->data_.by_product()) {
      double const error = 1.25 * this->k_unit * (d + 8) * norm * reach + used + d * this->k_tiny +
                           4 * (d + 16) * this->k_exact_unit * norm * (reach + this->shift_norm());
      return -farthest - this->taken_by_shift(wide) > last + error;
    }
    // As squared distances: of what was left out, by products and by differences.
    double const limit = -2 * last;
    double const products =
        used > 0 ? limit - 2 * used - d * this->k_tiny : std::numeric_limits<double>::infinity();
    double const rounded = 1.25 * this->k_unit * (norm + reach);  // of the packed elements
    double const root =
        std::sqrt(std::max(limit * (1 - 1.25 * this->k_unit * (d + 4)) - d * this->k_tiny, 0.0));
    double const differences = std::max(root - rounded, 0.0);
    double const beyond = std::min(products, differences * differences);
    double const nearest = this->data_.cosine() ? 2 * farthest : farthest;
    double const defined = 4 * (d + 16) * this->k_exact_unit * (this->data_.cosine() ? 2 : nearest);
    if (nearest + defined < beyond) return true;
    // Rows that are equal have differences of zero, and were selected by index.
    return used == 0 && limit == 0 && farthest == 0;
  }

  bool only_;
  knn_output out_;
  index_t k_, candidates_, side_ = 0;  // side: rows of a block, run_with
  std::optional<workspace<entry_type>> buffers_;
  std::vector<selector> best_;
  std::vector<P> least_;  // of every row's state, run_with
  std::vector<P> used_;   // greatest error of a score by products, per part and panel of rows
  std::vector<char> failed_;
};

}  // namespace subspan::detail
