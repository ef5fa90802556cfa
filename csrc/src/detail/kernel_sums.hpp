#pragma once

#include <algorithm>
#include <limits>

#include "detail/kernel_boxes.hpp"
#include "detail/kernel_ranges.hpp"

/// Sums over all y_j for every x_i: the loops of kernel_matvec and of its gradient.
///
///   block    of y: 16 MiB packed, by all threads and for all of them
///   task     up to 8 panels of x that one thread packs for itself; where there are few of them,
///            segments of y are tasks of their own
///   segment  1024 points y, added to the total in double, in order: THE order of the sums
///   run      128 points y, added to the segment's sums in double, and in T among themselves
///
/// What a run is, what a segment, depends on m alone. So do the bits. Of a pattern (kernel_ranges) a
/// run has those of its points that the rows meet.

namespace subspan::detail {

inline constexpr index_t k_segment = 1024;
inline constexpr index_t k_group_panels = 8;
inline constexpr index_t k_group_bytes = 512 << 10;  // of x, half of the second cache

/// Rows of x that are packed together: of one tile of a pattern.
struct row_span {
  index_t row, count, panel, tile;  // panel: the first one, of all
};

/// The rows of x that a thread works on, and what it sums up for them.
template <class T>
struct row_group {
  row_span span;
  index_t panels;
  T *x, *norms, *more;  // packed; `more`: what the job packs besides
  T* boxes;             // of the panels, where there is a reach
  double* sums;         // [panels][job.sums()][width]
  T* greatest;          // [panels][width], of softmax the greatest score so far
};

/// Points of a run, packed.
template <class T>
struct column_run {
  T const *y, *norms, *more;
  index_t count;
};

/// Bytes of all that a job packs of a point.
template <class T, class Job>
index_t bytes_of_row(Job const& job) {
  return std::max<index_t>((job.depth() + job.row_elements()) * index_t{sizeof(T)}, 1);
}
template <class T, class Job>
index_t bytes_of_column(Job const& job) {
  return std::max<index_t>((job.depth() + job.column_elements()) * index_t{sizeof(T)}, 1);
}

/// A job (kernel_jobs.hpp) has
///
///   kernels, rows(), columns(), depth(), form()     the level, n, m, and how scores are made
///   sums(), has_greatest()                          what a row of x has
///   reach()                                         beyond which pairs may be left out
///   ranges()                                        the pattern; null: all pairs
///   row_elements(), column_elements()               what is packed besides coordinates
///   pack_row(first, count, out, norms), pack_more_of_row(first, count, out)
///   pack_column(first, ids, count, out, norms)      one run: from `first` on, or those of ids
///   pack_more_of_column(first, ids, count, out)
///   add_points(group, panel, task, more)            a run of points with the panels from one on, and
///                                                   how many; 0: the job wants scores
///   add(group, panel, tile, count, more)            the scores of a run, which it may overwrite
template <class T, class Job>
class kernel_loop {
 public:
  kernel_loop(context const& ctx, Job& job)
      : kernel_loop(ctx, job, group_of(ctx, job), k_shared_bytes / bytes_of_column<T>(job)) {}

  void run() {
    clear();
    for (index_t first = 0; first < job_.columns(); first += block_)
      add_block(first, std::min(block_, job_.columns() - first));
  }

  /// The sums of row i: sum k lies at result[k * pitch()].
  double const* operator[](index_t i) const { return total_of(lane_of(i)); }
  index_t pitch() const { return width_; }
  T greatest(index_t i) const { return greatest_[lane_of(i)]; }

 protected:
  kernel_loop(context const& ctx, Job& job, index_t group_panels, index_t block)
      : ctx_(ctx),
        job_(job),
        width_(job.kernels.size.width),
        group_panels_(group_panels),
        block_(std::clamp<index_t>(
            block / k_segment * k_segment, k_segment,
            divide_up(std::max<index_t>(job.columns(), 1), k_segment) * k_segment)),
        groups_(count_groups()),
        spans_(ctx, job.ranges() != nullptr ? groups_ : 0),
        lanes_(ctx, job.ranges() != nullptr ? job.rows() : 0),
        panels_(lay_out()),
        totals_(ctx, panels_ * state_size()),
        greatest_(ctx, job.has_greatest() ? panels_ * width_ : 0),
        y_(ctx, block_ * job.depth()),
        norms_(ctx, block_),
        more_(ctx, block_ * job.column_elements()),
        boxes_(ctx, sorted() ? block_ / k_run * 2 * job.depth() : 0) {}

  void clear() {
    std::fill_n(totals_.data(), panels_ * state_size(), 0.0);
    if (job_.has_greatest())
      std::fill_n(greatest_.data(), panels_ * width_, -std::numeric_limits<T>::infinity());
  }

  index_t state_size() const { return job_.sums() * width_; }
  double* total_of(index_t lane) {
    return totals_.data() + lane / width_ * state_size() + lane % width_;
  }
  double const* total_of(index_t lane) const {
    return totals_.data() + lane / width_ * state_size() + lane % width_;
  }

  row_span span_of(index_t g) const {
    if (job_.ranges() != nullptr) return spans_[g];
    index_t const panel = g * group_panels_, row = panel * width_;
    return {row, std::min(group_panels_ * width_, job_.rows() - row), panel, 0};
  }

  void pack_block(index_t first, index_t count) {
    parallel_for(ctx_, divide_up(count, k_run), 1, [&](index_t run, index_t) {
      index_t const at = run * k_run, n = std::min(k_run, count - at);
      job_.pack_column(first + at, nullptr, n, y_.data() + at * job_.depth(), norms_.data() + at);
      job_.pack_more_of_column(first + at, nullptr, n, more_.data() + at * job_.column_elements());
      if (sorted()) box_of_run(run, n);
    });
  }

  /// `count` points of the block from `at` on.
  column_run<T> run_of(index_t at, index_t count) const {
    return {y_.data() + at * job_.depth(), norms_.data() + at,
            more_.data() + at * job_.column_elements(), count};
  }
  score_task<T> task_of(row_group<T> const& group, index_t panel, column_run<T> const& run) const {
    return {group.x + panel * width_ * job_.depth(),
            run.y,
            group.norms + panel * width_,
            run.norms,
            job_.depth(),
            run.count};
  }

  template <class Use>
  void with_group(index_t g, Use&& use) {
    row_span const span = span_of(g);
    index_t const panels = divide_up(span.count, width_), lanes = panels * width_;
    workspace<T> packed(ctx_, lanes * (job_.depth() + job_.row_elements() + 2));
    workspace<T> boxes(ctx_, sorted() ? panels * 2 * job_.depth() : 0);
    workspace<double> sums(ctx_, panels * state_size());
    T* const x = packed.data();
    T* const norms = x + lanes * job_.depth();
    row_group<T> group{span,        panels,       x, norms, norms + 2 * lanes, boxes.data(),
                       sums.data(), norms + lanes};
    job_.pack_row(span.row, span.count, group.x, group.norms);
    job_.pack_more_of_row(span.row, span.count, group.more);
    if (sorted())
      for (index_t p = 0; p < panels; ++p)
        box_of(group.x + p * width_ * job_.depth(), job_.depth(), width_,
               std::min(width_, span.count - p * width_), group.boxes + p * 2 * job_.depth());
    use(group);
  }

  void clear(row_group<T>& group) const {
    std::fill_n(group.sums, group.panels * state_size(), 0.0);
    if (job_.has_greatest())
      std::fill_n(group.greatest, group.panels * width_, -std::numeric_limits<T>::infinity());
  }

  /// Adds the sums of panels first.. to the totals.
  void merge(index_t first, index_t panels, double const* sums, T const* greatest) {
    index_t const size = state_size();
    double* const total = totals_.data() + first * size;
    if (!job_.has_greatest()) {
      for (index_t i = 0; i < panels * size; ++i) total[i] += sums[i];
      return;
    }
    constexpr T nothing = -std::numeric_limits<T>::infinity();
    T* const most = greatest_.data() + first * width_;
    for (index_t i = 0; i < panels * width_; ++i) {
      auto const at = [&](index_t k) {
        return (i / width_ * job_.sums() + k) * width_ + i % width_;
      };
      if (greatest[i] == nothing && sums[at(job_.sums() - 1)] == 0) continue;  // met no one
      T const both = std::max(most[i], greatest[i]);
      double const old = most[i] == nothing ? 0 : job_.kernels.exp2(most[i] - both),
                   now = job_.kernels.exp2(greatest[i] - both);
      for (index_t k = 0; k < job_.sums(); ++k)
        total[at(k)] = total[at(k)] * old + sums[at(k)] * now;
      most[i] = both;
    }
  }

  context const& ctx_;
  Job& job_;
  index_t width_, group_panels_, block_, groups_;

 private:
  bool sorted() const { return job_.reach() < std::numeric_limits<double>::infinity(); }
  index_t lane_of(index_t i) const { return job_.ranges() != nullptr ? lanes_[i] : i; }

  static index_t group_of(context const& ctx, Job const& job) {
    index_t const width = job.kernels.size.width,
                  few = divide_up(divide_up(job.rows(), width), index_t{4} * thread_count(ctx));
    return std::clamp<index_t>(std::min(few, k_group_bytes / (width * bytes_of_row<T>(job))), 1,
                               k_group_panels);
  }

  /// use(row, count, tile) for every group.
  template <class Use>
  void for_each_group(Use&& use) const {
    index_t const most = group_panels_ * width_;
    kernel_ranges const* const ranges = job_.ranges();
    index_t const tiles = ranges != nullptr ? ranges->rows.shape[0] - 1 : 1;
    for (index_t t = 0; t < tiles; ++t) {
      index_t const last = ranges != nullptr ? ranges->rows(t + 1) : job_.rows();
      for (index_t row = ranges != nullptr ? ranges->rows(t) : 0; row < last; row += most)
        use(row, std::min(most, last - row), t);
    }
  }
  index_t count_groups() const {
    index_t count = 0;
    for_each_group([&](index_t, index_t, index_t) { ++count; });
    return count;
  }
  /// Where the rows of a pattern have their sums; returns the number of panels.
  index_t lay_out() {
    index_t g = 0, panels = 0;
    for_each_group([&](index_t row, index_t count, index_t tile) {
      if (job_.ranges() != nullptr) {
        spans_[g++] = {row, count, panels, tile};
        for (index_t i = 0; i < count; ++i) lanes_[row + i] = panels * width_ + i;
      }
      panels += divide_up(count, width_);
    });
    return panels;
  }

  void add_block(index_t first, index_t count) {
    pack_block(first, count);
    index_t const segments = divide_up(count, k_segment);
    if (groups_ >= 2 * thread_count(ctx_) || segments == 1) {
      parallel_for(ctx_, groups_, 1, [&](index_t g, index_t) {
        with_group(g, [&](row_group<T>& group) {
          for (index_t s = 0; s < segments; ++s) {
            add_segment(group, s, first, count);
            merge(group.span.panel, group.panels, group.sums, group.greatest);
          }
        });
      });
      return;
    }
    index_t const size = panels_ * state_size(), lanes = panels_ * width_;
    workspace<double> sums(ctx_, segments * size);
    workspace<T> greatest(ctx_, job_.has_greatest() ? segments * lanes : 0);
    parallel_for(ctx_, groups_ * segments, 1, [&](index_t task, index_t) {
      index_t const s = task % segments;
      with_group(task / segments, [&](row_group<T>& group) {
        add_segment(group, s, first, count);
        std::copy_n(group.sums, group.panels * state_size(),
                    sums.data() + s * size + group.span.panel * state_size());
        if (job_.has_greatest())
          std::copy_n(group.greatest, group.panels * width_,
                      greatest.data() + s * lanes + group.span.panel * width_);
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

  void add_segment(row_group<T>& group, index_t s, index_t first, index_t columns) {
    clear(group);
    index_t const end = std::min((s + 1) * k_segment, columns);
    for (index_t at = s * k_segment; at < end; at += k_run) {
      index_t const count = std::min(k_run, end - at);
      if (job_.ranges() == nullptr) {
        add_run(group, run_of(at, count), at / k_run);
        continue;
      }
      index_t ids[k_run];
      index_t const kept = columns_of(*job_.ranges(), group.span.tile, first + at, count, ids);
      if (kept == count)
        add_run(group, run_of(at, count), at / k_run);
      else if (kept > 0)
        add_some(group, ids, kept);
    }
  }

  /// Some points of a run, packed for this group alone.
  void add_some(row_group<T>& group, index_t const* ids, index_t count) {
    workspace<T> packed(ctx_, k_run * (job_.depth() + job_.column_elements() + 1));
    T* const norms = packed.data() + k_run * job_.depth();
    job_.pack_column(0, ids, count, packed.data(), norms);
    job_.pack_more_of_column(0, ids, count, norms + k_run);
    add_run(group, {packed.data(), norms, norms + k_run, count}, 0);
  }

  void add_run(row_group<T>& group, column_run<T> const& run, index_t number) {
    alignas(64) T tile[k_run * k_widest<T>];
    index_t const together = job_.kernels.point_panels;
    for (index_t p = 0; p < group.panels;) {
      index_t const taken = std::min(together, group.panels - p);
      if (sorted() && !can_meet_any(group, p, taken, number)) {
        p += taken;
        continue;
      }
      score_task<T> const task = task_of(group, p, run);
      index_t const done = job_.add_points(group, p, task, run.more);
      if (done == 0) {
        job_.kernels.scores(job_.form(), task, tile);
        job_.add(group, p, tile, run.count, run.more);
      }
      p += std::max<index_t>(done, 1);
    }
  }

  bool can_meet_any(row_group<T> const& group, index_t panel, index_t count, index_t run) const {
    index_t const box = 2 * job_.depth();
    for (index_t p = panel; p < panel + count; ++p)
      if (can_meet(group.boxes + p * box, boxes_.data() + run * box, job_.depth(), job_.reach()))
        return true;
    return false;
  }

  workspace<row_span> spans_;
  workspace<index_t> lanes_;
  index_t panels_;
  workspace<double> totals_;
  workspace<T> greatest_;
  workspace<T> y_, norms_, more_, boxes_;
};

}  // namespace subspan::detail
