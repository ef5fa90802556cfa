#pragma once

#include <numeric>

#include "detail/kernel_sums.hpp"

/// What the loops of kernel_sums.hpp sum up: K v, and the gradient of it in x.

namespace subspan::detail {

inline constexpr index_t k_difference_depth = 8;  // beyond, products are faster
inline constexpr index_t k_alone = 3;             // right-hand sides that go one by one

/// Both sides, and how their scores are made.
template <class T>
class kernel_job {
 public:
  kernel_job(context const& ctx, kernel_kernels<T> const& table, rows_view<T> x, rows_view<T> y,
             strided_view<double const, 1> bandwidth, kernel_params const& how)
      : kernels(table), x_{x}, y_{y}, how_(how), system_(ctx, y, bandwidth, how) {}

  kernel_kernels<T> const& kernels;

  index_t rows() const { return x_.all.shape[0]; }
  index_t columns() const { return y_.all.shape[0]; }
  index_t depth() const { return x_.all.shape[1]; }
  /// Scaled distance beyond which pairs may be left out.
  double reach() const { return std::numeric_limits<double>::infinity(); }
  score_form form() const {
    return !is_radial(how_.function)       ? score_form::products
           : depth() <= k_difference_depth ? score_form::differences
                                           : score_form::expanded;
  }
  void pack_row(index_t first, index_t count, T* out, T* norms) const {
    pack_points(x_, system().centre_x, system().scale_x, first, count, kernels.size.width, out,
                norms);
  }
  void pack_column(index_t first, index_t count, T* out, T* norms) const {
    pack_points(y_, system().centre_y, system().scale_y, first, count, kernels.size.rows, out,
                norms);
  }
  coordinates const& system() const { return *system_; }

 protected:
  static void add_to(double* sums, T const* made, index_t count) {
#pragma omp simd
    for (index_t i = 0; i < count; ++i) sums[i] += static_cast<double>(made[i]);
  }

  ordered_rows<T> x_, y_;
  kernel_params how_;

 private:
  coordinate_system<T> system_;
};

/// K v. Softmax has one right-hand side more, of ones, and the greatest score of every row.
template <class T>
class kernel_product : public kernel_job<T> {
 public:
  kernel_product(context const& ctx, kernel_kernels<T> const& table, rows_view<T> x, rows_view<T> y,
                 rows_view<T> v, strided_view<double const, 1> bandwidth, kernel_params const& how)
      : kernel_job<T>(ctx, table, x, y, bandwidth, how),
        v_(v),
        reach_(reach_of(how)),
        order_(ctx, sorted() ? x.shape[0] + y.shape[0] : 0) {
    if (!sorted()) return;
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
  index_t row_elements() const { return 0; }
  index_t column_elements() const { return divide_up(sums(), together()) * together(); }

  void pack_more_of_row(index_t, index_t, T*) const {}
  void pack_more_of_column(index_t first, index_t count, T* out) const {
    index_t const e = v_.shape[1], side = together();
    std::fill_n(out, k_run * column_elements(), T{0});
    for (index_t j = 0; j < count; ++j)
      for (index_t k = 0; k < sums(); ++k)
        out[(k / side * k_run + j) * side + k % side] = k < e ? v_(this->y_[first + j], k) : T{1};
  }

  bool add_points(row_group<T>& group, index_t panel, score_task<T> const& task, T const* v) const {
    index_t const d = this->depth(), width = this->kernels.size.width;
    if (d < 1 || d > k_few || this->form() != score_form::differences || sums() != 1) return false;
    alignas(64) T made[1024 / sizeof(T)];
    this->kernels.weigh_points(this->how_, task, v, made);
    this->add_to(group.sums + panel * width, made, width);
    return true;
  }
  void add(row_group<T>& group, index_t panel, T* tile, index_t count, T const* v) const {
    index_t const width = this->kernels.size.width, side = together();
    alignas(64) T made[1024 / sizeof(T)];
    double* const sums = group.sums + panel * this->sums() * width;
    if (has_greatest()) {
      this->kernels.apply_below(tile, count, group.greatest + panel * width, made);
      for (index_t k = 0; k < this->sums(); ++k)
        for (index_t i = 0; i < width; ++i) sums[k * width + i] *= static_cast<double>(made[i]);
    } else if (this->sums() == 1 && this->how_.function != kernel_function::polynomial) {
      // Not the polynomial: its loop keeps the product and the sum from being fused.
      this->kernels.weigh(this->how_, tile, count, v, made);
      return this->add_to(sums, made, width);
    } else {
      this->kernels.apply(this->how_, tile, count);
    }
    for (index_t k = 0; k < this->sums(); k += side, v += k_run * side) {
      (side == 1 ? this->kernels.sum : this->kernels.sums)(tile, count, v, made);
      this->add_to(sums + k * width, made, std::min(side, this->sums() - k) * width);
    }
  }

 private:
  /// Right-hand sides that are multiplied at a time.
  index_t together() const { return sums() <= k_alone ? 1 : this->kernels.size.rows; }

  rows_view<T> v_;
  double reach_;
  workspace<index_t> order_;
};

/// For every x_i and coordinate the sum over j of slope_ij <g_i, v_j> (x_i - y_j), of kernels of
/// products that of slope_ij <g_i, v_j> y_j.
template <class T>
class kernel_gradient : public kernel_job<T> {
 public:
  kernel_gradient(context const& ctx, kernel_kernels<T> const& table, rows_view<T> x,
                  rows_view<T> y, rows_view<T> v, rows_view<T> g,
                  strided_view<double const, 1> bandwidth, kernel_params const& how)
      : kernel_job<T>(ctx, table, x, y, bandwidth, how), v_(v), g_(g), unit_(ctx, 2 * v.shape[1]) {
    std::fill_n(unit_.data(), v.shape[1], 0.0);
    std::fill_n(unit_.data() + v.shape[1], v.shape[1], 1.0);
  }

  bool has_greatest() const { return false; }
  index_t sums() const { return this->depth(); }
  index_t row_elements() const { return v_.shape[1] + padded(); }
  index_t column_elements() const { return v_.shape[1] + padded(); }

  /// g, and x once more, with its coordinates filled up to whole panels of the other side.
  void pack_more_of_row(index_t first, index_t count, T* out) const {
    index_t const width = this->kernels.size.width, panels = divide_up(count, width);
    pack_weights(g_, first, count, width, out);
    out += panels * width * v_.shape[1];
    for (index_t p = 0; p < panels; ++p, out += width * padded()) {
      index_t const n = std::min(width, count - p * width);
      pack_points(this->x_, this->system().centre_x, this->system().scale_x, first + p * width, n,
                  width, out, static_cast<T*>(nullptr));
      std::fill(out + width * this->depth(), out + width * padded(), T{0});
    }
  }
  /// v, and y with its coordinates side by side.
  void pack_more_of_column(index_t first, index_t count, T* out) const {
    index_t const side = this->kernels.size.rows, d = this->depth();
    pack_weights(v_, first, count, side, out);
    out += k_run * v_.shape[1];
    std::fill_n(out, k_run * padded(), T{0});
    auto const& [cx, centre, sx, scale] = this->system();
    for (index_t j = 0; j < count; ++j)
      for (index_t c = 0; c < d; ++c)
        out[(c / side * k_run + j) * side + c % side] = static_cast<T>(
            (static_cast<double>(this->y_.all(first + j, c)) - centre[c]) * scale[c]);
  }

  bool add_points(row_group<T>&, index_t, score_task<T> const&, T const*) const { return false; }
  void add(row_group<T>& group, index_t panel, T* tile, index_t count, T const* more) const {
    auto const [side, width] = this->kernels.size;
    index_t const e = v_.shape[1], lanes = group.panels * width;
    alignas(64) T weights[k_run * 128 / sizeof(T)], made[1024 / sizeof(T)];
    T const* const g = group.more + panel * width * e;
    T const* const x = group.more + lanes * e + panel * width * padded();
    this->kernels.scores(score_form::products, {g, more, nullptr, nullptr, e, count}, weights);
    this->kernels.apply_slopes(this->how_, tile, weights, count);
    double* const sums = group.sums + panel * this->sums() * width;
    T const* y = more + k_run * e;
    for (index_t c = 0; c < this->sums(); c += side, y += k_run * side) {
      if (is_radial(this->how_.function))
        this->kernels.sums_of_differences(tile, count, x + c * width, y, made);
      else
        this->kernels.sums(tile, count, y, made);
      this->add_to(sums + c * width, made, std::min(side, this->sums() - c) * width);
    }
  }

 private:
  index_t padded() const {
    index_t const side = this->kernels.size.rows;
    return divide_up(this->depth(), side) * side;
  }
  void pack_weights(rows_view<T> const& from, index_t first, index_t count, index_t width,
                    T* out) const {
    pack_points(ordered_rows<T>{from}, unit_.data(), unit_.data() + v_.shape[1], first, count,
                width, out, static_cast<T*>(nullptr));
  }

  rows_view<T> v_, g_;
  workspace<double> unit_;
};

}  // namespace subspan::detail
