#pragma once

#include <numeric>

#include "detail/kernel_sums.hpp"

/// What the loops of kernel_sums.hpp sum up: K v, and the gradient of it in x.

namespace subspan::detail {

inline constexpr index_t k_alone = 3;  // right-hand sides that go one by one

/// Both sides, and how their scores are made.
template <class T>
class kernel_job {
 public:
  kernel_job(context const& ctx, kernel_kernels<T> const& table, kernel_problem<T> const& problem)
      : kernels(table),
        x_{problem.x},
        y_{problem.y},
        how_(problem.how),
        ranges_(problem.ranges),
        system_(ctx, problem) {}

  kernel_kernels<T> const& kernels;

  index_t rows() const { return x_.all.shape[0]; }
  index_t columns() const { return y_.all.shape[0]; }
  index_t depth() const { return x_.all.shape[1]; }
  /// Scaled distance beyond which pairs may be left out.
  double reach() const { return std::numeric_limits<double>::infinity(); }
  kernel_ranges const* ranges() const { return ranges_; }
  score_form form() const {
    return !is_radial(how_.function)       ? score_form::products
           : depth() <= k_difference_depth ? score_form::differences
                                           : score_form::expanded;
  }
  void pack_row(index_t first, index_t count, T* out, T* norms) const {
    pack_points(rows_from(first), system().centre_x, system().scale_x, count, kernels.size.width,
                out, norms);
  }
  void pack_column(index_t first, index_t const* ids, index_t count, T* out, T* norms) const {
    pack_points(columns_from(first, ids), system().centre_y, system().scale_y, count,
                kernels.size.rows, out, norms);
  }
  index_t add_points(row_group<T>&, index_t, score_task<T> const&, T const*) const { return 0; }
  coordinates const& system() const { return *system_; }

 protected:
  ordered_rows<T> rows_from(index_t first) const { return {x_.all, x_.ids, first}; }
  /// The points y from `first` on, or those of ids.
  ordered_rows<T> columns_from(index_t first, index_t const* ids) const {
    return ids != nullptr ? ordered_rows<T>{y_.all, ids} : ordered_rows<T>{y_.all, y_.ids, first};
  }

  ordered_rows<T> x_, y_;
  kernel_params how_;

 private:
  kernel_ranges const* ranges_;
  coordinate_system<T> system_;
};

/// K v. Softmax has one right-hand side more, of ones, and the greatest score of every row. For
/// symmetric_loop, which has x on both sides, v is packed with its rows as well.
template <class T>
class kernel_product : public kernel_job<T> {
 public:
  kernel_product(context const& ctx, kernel_kernels<T> const& table,
                 kernel_problem<T> const& problem, rows_view<T> v, bool symmetric = false)
      : kernel_job<T>(ctx, table, problem),
        v_(v),
        symmetric_(symmetric),
        reach_(reach_of(problem.how)),
        order_(ctx, sorted() ? problem.x.shape[0] + problem.y.shape[0] : 0) {
    if (!sorted()) return;
    auto const &x = problem.x, &y = problem.y;
    index_t *const of_x = order_.data(), *const of_y = of_x + x.shape[0];
    std::iota(of_x, of_y, index_t{0});
    std::iota(of_y, of_y + y.shape[0], index_t{0});
    double const* const scale = this->system().scale_x;
    sort_in_space(x, scale, of_x, x.shape[0], this->kernels.size.width);
    sort_in_space(y, scale, of_y, y.shape[0], k_run);
    this->x_.ids = of_x;
    this->y_.ids = of_y;
  }

  double reach() const { return reach_; }
  bool sorted() const { return reach_ < std::numeric_limits<double>::infinity(); }
  /// The row of x whose sums are the i-th.
  index_t row(index_t i) const { return this->x_[i]; }

  bool has_greatest() const { return this->how_.function == kernel_function::softmax; }
  index_t sums() const { return v_.shape[1] + (has_greatest() ? 1 : 0); }
  index_t row_elements() const { return symmetric_ ? sums() : 0; }
  index_t column_elements() const { return divide_up(sums(), together()) * together(); }

  void pack_more_of_row(index_t first, index_t count, T* out) const {
    index_t const lanes = divide_up(count, this->kernels.size.width) * this->kernels.size.width;
    for (index_t k = 0; k < row_elements(); ++k, out += lanes) {
      for (index_t i = 0; i < count; ++i) out[i] = v_(first + i, k);
      std::fill(out + count, out + lanes, T{0});
    }
  }
  void pack_more_of_column(index_t first, index_t const* ids, index_t count, T* out) const {
    index_t const e = v_.shape[1], side = together();
    auto const points = this->columns_from(first, ids);
    std::fill_n(out, k_run * column_elements(), T{0});
    for (index_t j = 0; j < count; ++j)
      for (index_t k = 0; k < sums(); ++k)
        out[(k / side * k_run + j) * side + k % side] = k < e ? v_(points[j], k) : T{1};
  }

  index_t add_points(row_group<T>& group, index_t panel, score_task<T> const& task,
                     T const* v) const {
    if (!of_points(group, panel)) return 0;
    return add_made_of_points(group, panel, task, v, nullptr);
  }
  void add(row_group<T>& group, index_t panel, T* tile, index_t count, T const* v) const {
    index_t const width = this->kernels.size.width, side = together();
    alignas(64) T made[1024 / sizeof(T)];
    double* const sums = group.sums + panel * this->sums() * width;
    if (has_greatest()) {
      this->kernels.apply_below(tile, count, group.greatest + panel * width, made);
      for (index_t k = 0; k < this->sums(); ++k)
        for (index_t i = 0; i < width; ++i) sums[k * width + i] *= static_cast<double>(made[i]);
    } else if (weighed()) {
      this->kernels.weigh(this->how_, tile, count, v, nullptr, made);
      return this->kernels.add(made, width, sums);
    } else {
      this->kernels.apply(this->how_, tile, count);
    }
    for (index_t k = 0; k < this->sums(); k += side, v += k_run * side) {
      (side == 1 ? this->kernels.sum : this->kernels.sums)(tile, count, v, made);
      this->kernels.add(made, std::min(side, this->sums() - k) * width, sums + k * width);
    }
  }

  /// A run for both sides, of the points that meet (other_side::behind), to `lanes` [sums][k_run]
  /// [lanes] what columns have; returns the number of panels.
  index_t add_both(row_group<T>& group, index_t panel, score_task<T> const& task, T const* v,
                   index_t behind, T* lanes) const {
    index_t const width = this->kernels.size.width, all = group.panels * width;
    T const* const v_of_row = group.more + panel * width;
    other_side<T> other{v_of_row, lanes, behind};
    if (behind >= this->kernels.point_panels * width && of_points(group, panel))
      return add_made_of_points(group, panel, task, v, &other);
    alignas(64) T tile[k_run * k_widest<T>], made[k_widest<T>];
    double* const sums = group.sums + panel * this->sums() * width;
    this->kernels.scores(this->form(), task, tile);
    if (behind >= width && weighed()) {
      this->kernels.weigh(this->how_, tile, task.count, v, &other, made);
      this->kernels.add(made, width, sums);
      return 1;
    }
    this->kernels.apply(this->how_, tile, task.count);
    for (index_t k = 0; k < this->sums(); ++k) {
      this->kernels.sum_both(tile, task.count, v + k * k_run, other, made);
      this->kernels.add(made, width, sums + k * width);
      other.v += all;
      other.columns += k_run * this->kernels.lanes;
    }
    return 1;
  }

 private:
  /// Right-hand sides that are multiplied at a time.
  index_t together() const { return sums() <= k_alone ? 1 : this->kernels.size.rows; }
  /// Whether values and their sums are made in one go. Not of the polynomial: its loop keeps the
  /// product and the sum from being fused.
  bool weighed() const { return sums() == 1 && this->how_.function != kernel_function::polynomial; }
  bool of_points(row_group<T> const& group, index_t panel) const {
    return sums() == 1 && this->depth() >= 1 && this->form() == score_form::differences &&
           panel + this->kernels.point_panels <= group.panels;
  }
  index_t add_made_of_points(row_group<T>& group, index_t panel, score_task<T> const& task,
                             T const* v, other_side<T> const* other) const {
    index_t const width = this->kernels.size.width, panels = this->kernels.point_panels;
    alignas(64) T made[2 * k_widest<T>];
    this->kernels.weigh_points(this->how_, task, v, other, made);
    this->kernels.add(made, panels * width, group.sums + panel * width);
    return panels;
  }

  rows_view<T> v_;
  bool symmetric_;
  double reach_;
  workspace<index_t> order_;
};

/// For every x_i and coordinate sums over j of weight_ij (x_i - y_j), of kernels of products those of
/// weight_ij y_j. Both sides have `extra` elements besides, which a derived job packs and makes the
/// weights of.
template <class T>
class coordinate_job : public kernel_job<T> {
 public:
  coordinate_job(context const& ctx, kernel_kernels<T> const& table,
                 kernel_problem<T> const& problem, index_t extra)
      : kernel_job<T>(ctx, table, problem), extra_(extra) {}

  bool has_greatest() const { return false; }
  index_t sums() const { return this->depth(); }
  index_t row_elements() const { return extra_ + padded(); }
  index_t column_elements() const { return extra_ + padded(); }

 protected:
  /// x once more, with its coordinates filled up to whole panels of the other side.
  void pack_coordinates_of_row(index_t first, index_t count, T* out) const {
    index_t const width = this->kernels.size.width, panels = divide_up(count, width);
    out += panels * width * extra_;
    for (index_t p = 0; p < panels; ++p, out += width * padded()) {
      index_t const n = std::min(width, count - p * width);
      pack_points(this->rows_from(first + p * width), this->system().centre_x,
                  this->system().scale_x, n, width, out, static_cast<T*>(nullptr));
      std::fill(out + width * this->depth(), out + width * padded(), T{0});
    }
  }
  /// y with its coordinates side by side.
  void pack_coordinates_of_column(ordered_rows<T> const& points, index_t count, T* out) const {
    index_t const side = this->kernels.size.rows, d = this->depth();
    out += k_run * extra_;
    std::fill_n(out, k_run * padded(), T{0});
    auto const& [cx, centre, sx, scale] = this->system();
    for (index_t j = 0; j < count; ++j)
      for (index_t c = 0; c < d; ++c)
        out[(c / side * k_run + j) * side + c % side] =
            static_cast<T>((static_cast<double>(points.all(points[j], c)) - centre[c]) * scale[c]);
  }
  void add_weights(row_group<T>& group, index_t panel, T const* weights, index_t count,
                   T const* more) const {
    auto const [side, width] = this->kernels.size;
    alignas(64) T made[1024 / sizeof(T)];
    T const* const x = group.more + group.panels * width * extra_ + panel * width * padded();
    double* const sums = group.sums + panel * this->sums() * width;
    T const* y = more + k_run * extra_;
    for (index_t c = 0; c < this->sums(); c += side, y += k_run * side) {
      if (is_radial(this->how_.function))
        this->kernels.sums_of_differences(weights, count, x + c * width, y, made);
      else
        this->kernels.sums(weights, count, y, made);
      this->kernels.add(made, std::min(side, this->sums() - c) * width, sums + c * width);
    }
  }

 private:
  index_t padded() const {
    index_t const side = this->kernels.size.rows;
    return divide_up(this->depth(), side) * side;
  }

  index_t extra_;
};

/// The gradient of K v: weights are slopes times <g_i, v_j>.
template <class T>
class kernel_gradient : public coordinate_job<T> {
 public:
  kernel_gradient(context const& ctx, kernel_kernels<T> const& table,
                  kernel_problem<T> const& problem, rows_view<T> v, rows_view<T> g)
      : coordinate_job<T>(ctx, table, problem, v.shape[1]),
        v_(v),
        g_(g),
        unit_(ctx, 2 * v.shape[1]) {
    std::fill_n(unit_.data(), v.shape[1], 0.0);
    std::fill_n(unit_.data() + v.shape[1], v.shape[1], 1.0);
  }

  void pack_more_of_row(index_t first, index_t count, T* out) const {
    pack_weights({g_, nullptr, first}, count, this->kernels.size.width, out);
    this->pack_coordinates_of_row(first, count, out);
  }
  void pack_more_of_column(index_t first, index_t const* ids, index_t count, T* out) const {
    auto const points = this->columns_from(first, ids);
    pack_weights({v_, points.ids, points.first}, count, this->kernels.size.rows, out);
    this->pack_coordinates_of_column(points, count, out);
  }

  void add(row_group<T>& group, index_t panel, T* tile, index_t count, T const* more) const {
    index_t const e = v_.shape[1];
    alignas(64) T weights[k_run * k_widest<T>];
    T const* const g = group.more + panel * this->kernels.size.width * e;
    this->kernels.scores(score_form::products, {g, more, nullptr, nullptr, e, count}, weights);
    this->kernels.apply_slopes(this->how_, tile, weights, count);
    this->add_weights(group, panel, tile, count, more);
  }

 private:
  void pack_weights(ordered_rows<T> const& from, index_t count, index_t width, T* out) const {
    pack_points(from, unit_.data(), unit_.data() + v_.shape[1], count, width, out,
                static_cast<T*>(nullptr));
  }

  rows_view<T> v_, g_;
  workspace<double> unit_;
};

}  // namespace subspan::detail
