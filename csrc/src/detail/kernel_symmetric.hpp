#pragma once

#include "detail/kernel_jobs.hpp"

/// K v of x with itself: every value is made once, and serves its row and its column.
///
///   block   16384 columns: packed as ever
///   slot    every 32nd group of rows, one task: what its values add to the columns goes into sums of
///           the slot, in double, which are added to the totals in order when the block is through
///
/// Rows meet the columns from themselves on. A run of columns keeps its sums over the rows lane by
/// lane, in T, for the panels of one group. Blocks, slots and groups depend on n and d alone.

namespace subspan::detail {

inline constexpr index_t k_symmetric_rows = 512;  // fewer are quicker one way
inline constexpr index_t k_symmetric_columns = 16384;
inline constexpr index_t k_slots = 32;

template <class T>
class symmetric_loop : public kernel_loop<T, kernel_product<T>> {
 public:
  using job_type = kernel_product<T>;
  using base = kernel_loop<T, job_type>;

  symmetric_loop(context const& ctx, job_type& job)
      : base(ctx, job, group_of(job),
             std::min(k_symmetric_columns, k_shared_bytes / bytes_of_column<T>(job))),
        slots_(std::min(k_slots, this->groups_)),
        columns_(ctx, slots_ * job.sums() * this->block_) {}

  void run() {
    this->clear();
    for (index_t first = 0; first < this->job_.columns(); first += this->block_)
      add_block(first, std::min(this->block_, this->job_.columns() - first));
  }

 private:
  static index_t group_of(job_type const& job) {
    index_t const width = job.kernels.size.width, panels = divide_up(job.rows(), width);
    index_t const most = std::min(k_group_bytes / (width * bytes_of_row<T>(job)), index_t{12});
    return std::clamp<index_t>(panels / k_slots / 2 * 2, 2, std::max<index_t>(most, 2));
  }

  void add_block(index_t first, index_t count) {
    auto& job = this->job_;
    this->pack_block(first, count);
    parallel_for(this->ctx_, slots_, 1, [&](index_t slot, index_t) {
      double* const columns = columns_.data() + slot * job.sums() * this->block_;
      std::fill_n(columns, job.sums() * this->block_, 0.0);
      workspace<T> lanes(this->ctx_, job.sums() * k_run * job.kernels.lanes);
      for (index_t g = slot; g < this->groups_ && this->span_of(g).row < first + count; g += slots_)
        this->with_group(g, [&](row_group<T>& group) {
          for (index_t at = 0; at < count; at += k_segment)
            add_segment(group, first, at, std::min(k_segment, count - at), lanes.data(), columns);
        });
    });
    parallel_for(this->ctx_, count, 512, [&](index_t begin, index_t end) {
      for (index_t slot = 0; slot < slots_; ++slot)
        for (index_t k = 0; k < job.sums(); ++k) {
          double const* const of_slot = columns_.data() + (slot * job.sums() + k) * this->block_;
          for (index_t j = begin; j < end; ++j)
            this->total_of(first + j)[k * this->width_] += of_slot[j];
        }
    });
  }

  void add_segment(row_group<T>& group, index_t first, index_t at, index_t count, T* lanes,
                   double* columns) {
    if (first + at + count <= group.span.row) return;
    auto& job = this->job_;
    index_t const pitch = k_run * job.kernels.lanes;
    this->clear(group);
    for (index_t end = at + count; at < end; at += k_run) {
      index_t const n = std::min(k_run, end - at);
      if (first + at + n <= group.span.row) continue;
      std::fill_n(lanes, job.sums() * pitch, T{0});
      add_run(group, this->run_of(at, n), first + at, lanes);
      for (index_t k = 0; k < job.sums(); ++k)
        job.kernels.add_lanes(lanes + k * pitch, n, columns + k * this->block_ + at);
    }
    this->merge(group.span.panel, group.panels, group.sums, nullptr);
  }

  void add_run(row_group<T>& group, column_run<T> const& run, index_t first, T* lanes) {
    for (index_t p = 0; p < group.panels;) {
      index_t const row = group.span.row + p * this->width_;
      if (row >= first + run.count) return;  // they have met
      p +=
          this->job_.add_both(group, p, this->task_of(group, p, run), run.more, first - row, lanes);
    }
  }

  index_t slots_;
  workspace<double> columns_;  // [slots][sums][block]
};

}  // namespace subspan::detail
