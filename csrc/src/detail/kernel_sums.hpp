#pragma once

#include <algorithm>
#include <limits>

#include "detail/kernel_boxes.hpp"

/// Sums over all y_j for every x_i: the loops of kernel_matvec and of its gradient.
///
///   block    of y: 16 MiB packed, by all threads and for all of them
///   task     up to 8 panels of x that one thread packs for itself; where there are few of them,
///            segments of y are tasks of their own
///   segment  1024 points y, added to the total in double, in order: THE order of the sums
///   run      128 points y, added to the segment's sums in double, and in T among themselves
///
/// What a run is, what a segment, depends on m alone. So do the bits.

namespace subspan::detail {

inline constexpr index_t k_segment = 1024;
inline constexpr index_t k_group_panels = 8;
inline constexpr index_t k_group_bytes = 512 << 10;  // of x, half of the second cache

/// The rows of x that a thread works on, and what it sums up for them.
template <class T>
struct row_group {
  index_t first, panels;  // panels of x
  T *x, *norms, *more;    // packed; `more`: what the job packs besides
  T* boxes;               // of the panels, where there is a reach
  double* sums;           // [panels][job.sums()][width]
  T* greatest;            // [panels][width], of softmax the greatest score so far
};

/// A job (kernel_jobs.hpp) has
///
///   kernels, rows(), columns(), depth(), form()     the level, n, m, and how scores are made
///   sums(), has_greatest()                          what a row of x has
///   reach()                                         beyond which pairs may be left out
///   row_elements(), column_elements()               what is packed besides coordinates
///   pack_row(first, count, out, norms), pack_more_of_row(first, count, out)
///   pack_column(first, count, out, norms), pack_more_of_column(first, count, out)   one run
///   add_points(group, panel, task, more)            a run of points; false: the job wants scores
///   add(group, panel, tile, count, more)            the scores of a run, which it may overwrite
template <class T, class Job>
class kernel_loop {
 public:
  kernel_loop(context const& ctx, Job& job)
      : ctx_(ctx),
        job_(job),
        width_(job.kernels.size.width),
        panels_(divide_up(job.rows(), width_)),
        group_panels_(group_of(ctx, job, panels_)),
        block_(block_of(job)),
        totals_(ctx, panels_ * width_ * job.sums()),
        greatest_(ctx, job.has_greatest() ? panels_ * width_ : 0),
        y_(ctx, block_ * job.depth()),
        norms_(ctx, block_),
        more_(ctx, block_ * job.column_elements()),
        boxes_(ctx, sorted() ? block_ / k_run * 2 * job.depth() : 0) {}

  void run() {
    std::fill_n(totals_.data(), panels_ * state_size(), 0.0);
    if (job_.has_greatest())
      std::fill_n(greatest_.data(), panels_ * width_, -std::numeric_limits<T>::infinity());
    for (index_t first = 0; first < job_.columns(); first += block_)
      add_block(first, std::min(block_, job_.columns() - first));
  }

  /// The sums of row i: sum k lies at result[k * pitch()].
  double const* operator[](index_t i) const {
    return totals_.data() + i / width_ * state_size() + i % width_;
  }
  index_t pitch() const { return width_; }
  T greatest(index_t i) const { return greatest_[i]; }

 private:
  index_t state_size() const { return job_.sums() * width_; }
  bool sorted() const { return job_.reach() < std::numeric_limits<double>::infinity(); }

  static index_t group_of(context const& ctx, Job const& job, index_t panels) {
    index_t const bytes = std::max<index_t>(
        job.kernels.size.width * (job.depth() + job.row_elements()) * index_t{sizeof(T)}, 1);
    index_t const few = divide_up(panels, index_t{4} * thread_count(ctx));
    return std::clamp<index_t>(std::min(few, k_group_bytes / bytes), 1, k_group_panels);
  }
  static index_t block_of(Job const& job) {
    index_t const bytes =
        std::max<index_t>((job.depth() + job.column_elements()) * index_t{sizeof(T)}, 1);
    index_t const whole = divide_up(job.columns(), k_segment) * k_segment;
    return std::clamp<index_t>(k_shared_bytes / bytes / k_segment * k_segment, k_segment,
                               std::max(whole, k_segment));
  }

  void add_block(index_t first, index_t count) {
    parallel_for(ctx_, divide_up(count, k_run), 1, [&](index_t run, index_t) {
      index_t const at = run * k_run, n = std::min(k_run, count - at);
      job_.pack_column(first + at, n, y_.data() + at * job_.depth(), norms_.data() + at);
      job_.pack_more_of_column(first + at, n, more_.data() + at * job_.column_elements());
      if (sorted()) box_of_run(run, n);
    });
    index_t const groups = divide_up(panels_, group_panels_);
    index_t const segments = divide_up(count, k_segment);
    if (groups >= 2 * thread_count(ctx_) || segments == 1) {
      parallel_for(ctx_, groups, 1, [&](index_t g, index_t) {
        with_group(g, [&](row_group<T>& group) {
          for (index_t s = 0; s < segments; ++s) {
            add_segment(group, s, count);
            merge(group.first, group.panels, group.sums, group.greatest);
          }
        });
      });
      return;
    }
    index_t const size = panels_ * state_size(), lanes = panels_ * width_;
    workspace<double> sums(ctx_, segments * size);
    workspace<T> greatest(ctx_, job_.has_greatest() ? segments * lanes : 0);
    parallel_for(ctx_, groups * segments, 1, [&](index_t task, index_t) {
      index_t const s = task % segments;
      with_group(task / segments, [&](row_group<T>& group) {
        add_segment(group, s, count);
        std::copy_n(group.sums, group.panels * state_size(),
                    sums.data() + s * size + group.first * state_size());
        if (job_.has_greatest())
          std::copy_n(group.greatest, group.panels * width_,
                      greatest.data() + s * lanes + group.first * width_);
      });
    });
    for (index_t s = 0; s < segments; ++s)
      merge(0, panels_, sums.data() + s * size,
            job_.has_greatest() ? greatest.data() + s * lanes : nullptr);
  }

  /// The box of a run, from those of its panels.
  void box_of_run(index_t run, index_t count) {
    index_t const d = job_.depth(), side = job_.kernels.size.rows;
    workspace<T> panel(ctx_, 2 * d);
    T* const box = boxes_.data() + run * 2 * d;
    T const* const y = y_.data() + run * k_run * d;
    for (index_t j = 0; j < count; j += side) {
      box_of(y + j * d, d, side, std::min(side, count - j), j == 0 ? box : panel.data());
      if (j > 0) join_boxes(box, panel.data(), d);
    }
  }

  template <class Use>
  void with_group(index_t g, Use&& use) {
    index_t const first = g * group_panels_, panels = std::min(group_panels_, panels_ - first);
    index_t const row = first * width_, count = std::min(panels * width_, job_.rows() - row);
    index_t const lanes = panels * width_;
    workspace<T> packed(ctx_, lanes * (job_.depth() + job_.row_elements() + 2));
    workspace<T> boxes(ctx_, sorted() ? panels * 2 * job_.depth() : 0);
    workspace<double> sums(ctx_, panels * state_size());
    T* const x = packed.data();
    T* const norms = x + lanes * job_.depth();
    row_group<T> group{first,       panels,       x, norms, norms + 2 * lanes, boxes.data(),
                       sums.data(), norms + lanes};
    job_.pack_row(row, count, group.x, group.norms);
    job_.pack_more_of_row(row, count, group.more);
    if (sorted())
      for (index_t p = 0; p < panels; ++p)
        box_of(group.x + p * width_ * job_.depth(), job_.depth(), width_,
               std::min(width_, count - p * width_), group.boxes + p * 2 * job_.depth());
    use(group);
  }

  void add_segment(row_group<T>& group, index_t s, index_t columns) {
    alignas(64) T tile[k_run * tile_width_limit];
    std::fill_n(group.sums, group.panels * state_size(), 0.0);
    if (job_.has_greatest())
      std::fill_n(group.greatest, group.panels * width_, -std::numeric_limits<T>::infinity());
    index_t const end = std::min((s + 1) * k_segment, columns);
    for (index_t at = s * k_segment; at < end; at += k_run) {
      index_t const count = std::min(k_run, end - at);
      for (index_t p = 0; p < group.panels; ++p) {
        index_t const box = 2 * job_.depth();
        if (sorted() && !can_meet(group.boxes + p * box, boxes_.data() + at / k_run * box,
                                  job_.depth(), job_.reach()))
          continue;
        score_task<T> const task{group.x + p * width_ * job_.depth(),
                                 y_.data() + at * job_.depth(),
                                 group.norms + p * width_,
                                 norms_.data() + at,
                                 job_.depth(),
                                 count};
        T const* const more = more_.data() + at * job_.column_elements();
        if (job_.add_points(group, p, task, more)) continue;
        job_.kernels.scores(job_.form(), task, tile);
        job_.add(group, p, tile, count, more);
      }
    }
  }

  /// Adds the sums of panels first.. to the totals.
  void merge(index_t first, index_t panels, double const* sums, T const* greatest) {
    index_t const size = state_size();
    double* const total = totals_.data() + first * size;
    if (!job_.has_greatest()) {
      for (index_t i = 0; i < panels * size; ++i) total[i] += sums[i];
      return;
    }
    T* const most = greatest_.data() + first * width_;
    for (index_t i = 0; i < panels * width_; ++i) {
      T const both = std::max(most[i], greatest[i]);
      double const old = job_.kernels.exp2(most[i] - both),
                   now = job_.kernels.exp2(greatest[i] - both);
      for (index_t k = 0; k < job_.sums(); ++k) {
        index_t const at = (i / width_ * job_.sums() + k) * width_ + i % width_;
        total[at] = total[at] * old + sums[at] * now;
      }
      most[i] = both;
    }
  }

  static constexpr index_t tile_width_limit = 128 / index_t{sizeof(T)};

  context const& ctx_;
  Job& job_;
  index_t width_, panels_, group_panels_, block_;
  workspace<double> totals_;
  workspace<T> greatest_;
  workspace<T> y_, norms_, more_, boxes_;
};

}  // namespace subspan::detail
