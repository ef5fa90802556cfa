#pragma once

#include "detail/joint_job.hpp"

/// The gradient of joint_kernel_sums in x: for every x_i and coordinate the sum over j of
/// slope_ij (x_i - y_j) times the weight (g_i + g_j) L_ij + (h_i + h_j), with g and h of either side.

namespace subspan::detail {

template <class T>
class joint_gradient : public kernel_job<T> {
 public:
  joint_gradient(context const& ctx, joint_kernels<T> const& table, rows_view<T> x, rows_view<T> y,
                 rows_view<T> z, rows_view<T> w, rows_view<double> of_rows,
                 rows_view<double> of_columns, strided_view<double const, 1> bandwidth_x,
                 strided_view<double const, 1> bandwidth_z, kernel_params const& of_x,
                 kernel_params const& of_z)
      : kernel_job<T>(ctx, table.tiles, x, y, bandwidth_x, of_x),
        table_(table),
        of_z_(of_z),
        of_rows_(of_rows),
        of_columns_(of_columns),
        second_(ctx, table.tiles, z, w, bandwidth_z, of_z) {}

  bool has_greatest() const { return false; }
  index_t sums() const { return this->depth(); }
  index_t row_elements() const { return padded() + 2 + second_.depth() + 1; }
  index_t column_elements() const { return row_elements(); }

  /// x once more, with its coordinates filled up to whole panels of the other side; g and h; z.
  void pack_more_of_row(index_t first, index_t n, T* out) const {
    index_t const width = this->kernels.size.width, panels = divide_up(n, width);
    T* const weights = out + panels * width * padded();
    T* const z = weights + 2 * panels * width;
    std::fill_n(weights, 2 * panels * width, T{0});
    for (index_t p = 0; p < panels; ++p, out += width * padded()) {
      index_t const count = std::min(width, n - p * width);
      pack_points(this->x_, this->system().centre_x, this->system().scale_x, first + p * width,
                  count, width, out, static_cast<T*>(nullptr));
      std::fill(out + width * this->depth(), out + width * padded(), T{0});
      for (index_t i = 0; i < count; ++i)
        for (index_t k = 0; k < 2; ++k)
          weights[(2 * p + k) * width + i] = static_cast<T>(of_rows_(first + p * width + i, k));
    }
    second_.pack_row(first, n, z, z + panels * width * second_.depth());
  }
  /// y with its coordinates side by side; g and h; w.
  void pack_more_of_column(index_t first, index_t n, T* out) const {
    index_t const side = this->kernels.size.rows, d = this->depth();
    std::fill_n(out, k_run * (padded() + 2), T{0});
    auto const& [cx, centre, sx, scale] = this->system();
    for (index_t j = 0; j < n; ++j) {
      for (index_t c = 0; c < d; ++c)
        out[(c / side * k_run + j) * side + c % side] = static_cast<T>(
            (static_cast<double>(this->y_.all(first + j, c)) - centre[c]) * scale[c]);
      for (index_t k = 0; k < 2; ++k)
        out[k_run * padded() + 2 * j + k] = static_cast<T>(of_columns_(first + j, k));
    }
    T* const w = out + k_run * (padded() + 2);
    second_.pack_column(first, n, w, w + k_run * second_.depth());
  }

  bool add_points(row_group<T>&, index_t, score_task<T> const&, T const*) const { return false; }
  void add(row_group<T>& group, index_t panel, T* tile, index_t n, T const* of_columns) const {
    auto const [side, width] = this->kernels.size;
    index_t const lanes = group.panels * width, q = second_.depth();
    alignas(64) T weights[k_run * 128 / sizeof(T)], made[1024 / sizeof(T)];
    T const* const x = group.more + panel * width * padded();
    T const* const of_rows = group.more + lanes * padded() + 2 * panel * width;
    T const* const z = group.more + lanes * (padded() + 2);
    T const* const w = of_columns + k_run * (padded() + 2);
    this->kernels.scores(
        second_.form(),
        {z + panel * width * q, w, z + lanes * q + panel * width, w + k_run * q, q, n}, weights);
    make_values<T>(table_, of_z_, weights, n);
    table_.weigh_both(weights, n, of_rows, of_columns + k_run * padded());
    if (is_power(this->how_))
      table_.raise_slopes(tile, weights, n, static_cast<T>(this->how_.alpha / 2));
    else
      this->kernels.apply_slopes(this->how_, tile, weights, n);
    double* const sums = group.sums + panel * this->sums() * width;
    T const* y = of_columns;
    for (index_t c = 0; c < this->sums(); c += side, y += k_run * side) {
      this->kernels.sums_of_differences(tile, n, x + c * width, y, made);
      this->add_to(sums + c * width, made, std::min(side, this->sums() - c) * width);
    }
  }

 private:
  index_t padded() const {
    index_t const side = this->kernels.size.rows;
    return divide_up(this->depth(), side) * side;
  }

  joint_kernels<T> const& table_;
  kernel_params of_z_;
  rows_view<double> of_rows_, of_columns_;
  kernel_job<T> second_;
};

}  // namespace subspan::detail
