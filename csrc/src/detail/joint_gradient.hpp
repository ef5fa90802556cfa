#pragma once

#include "detail/joint_job.hpp"

/// The gradient of joint_kernel_sums in x: for every x_i and coordinate the sum over j of
/// slope_ij (x_i - y_j) times the weight (g_i + g_j) L_ij + (h_i + h_j), with g and h of either side.

namespace subspan::detail {

template <class T>
class joint_gradient : public coordinate_job<T> {
 public:
  joint_gradient(context const& ctx, joint_kernels<T> const& table, rows_view<T> x, rows_view<T> y,
                 rows_view<T> z, rows_view<T> w, rows_view<double> of_rows,
                 rows_view<double> of_columns, strided_view<double const, 1> bandwidth_x,
                 strided_view<double const, 1> bandwidth_z, kernel_params const& of_x,
                 kernel_params const& of_z)
      : coordinate_job<T>(ctx, table.tiles, {x, y, bandwidth_x, of_x, nullptr}, 3 + z.shape[1]),
        table_(table),
        of_z_(of_z),
        of_rows_(of_rows),
        of_columns_(of_columns),
        second_(ctx, table.tiles, {z, w, bandwidth_z, of_z, nullptr}) {}

  /// g and h; z and its squares; x.
  void pack_more_of_row(index_t first, index_t n, T* out) const {
    index_t const width = this->kernels.size.width, lanes = divide_up(n, width) * width;
    std::fill_n(out, 2 * lanes, T{0});
    for (index_t i = 0; i < n; ++i)
      for (index_t k = 0; k < 2; ++k)
        out[(2 * (i / width) + k) * width + i % width] = static_cast<T>(of_rows_(first + i, k));
    T* const z = out + 2 * lanes;
    second_.pack_row(first, n, z, z + lanes * second_.depth());
    this->pack_coordinates_of_row(first, n, out);
  }
  /// The same of y and w.
  void pack_more_of_column(index_t first, index_t const* ids, index_t n, T* out) const {
    auto const points = this->columns_from(first, ids);
    std::fill_n(out, 2 * k_run, T{0});
    for (index_t j = 0; j < n; ++j)
      for (index_t k = 0; k < 2; ++k) out[2 * j + k] = static_cast<T>(of_columns_(points[j], k));
    T* const w = out + 2 * k_run;
    second_.pack_column(first, ids, n, w, w + k_run * second_.depth());
    this->pack_coordinates_of_column(points, n, out);
  }

  void add(row_group<T>& group, index_t panel, T* tile, index_t n, T const* of_columns) const {
    index_t const width = this->kernels.size.width;
    index_t const lanes = group.panels * width, q = second_.depth();
    alignas(64) T weights[k_run * k_widest<T>];
    T const *const z = group.more + 2 * lanes, *const w = of_columns + 2 * k_run;
    this->kernels.scores(
        second_.form(),
        {z + panel * width * q, w, z + lanes * q + panel * width, w + k_run * q, q, n}, weights);
    make_values<T>(table_, of_z_, weights, n);
    table_.weigh_both(weights, n, group.more + 2 * panel * width, of_columns);
    if (is_power(this->how_))
      table_.raise_slopes(tile, weights, n, static_cast<T>(this->how_.alpha / 2));
    else
      this->kernels.apply_slopes(this->how_, tile, weights, n);
    this->add_weights(group, panel, tile, n, of_columns);
  }

 private:
  joint_kernels<T> const& table_;
  kernel_params of_z_;
  rows_view<double> of_rows_, of_columns_;
  kernel_job<T> second_;
};

}  // namespace subspan::detail
