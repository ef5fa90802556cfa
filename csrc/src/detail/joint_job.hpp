#pragma once

#include <deque>

#include "detail/joint_tiles.hpp"
#include "detail/kernel_jobs.hpp"

/// What the loops of kernel_sums.hpp sum up for joint_kernel_sums: K alone, and for every second kernel
/// L its products with K and L alone. Both sides of L are packed besides those of K.

namespace subspan::detail {

/// Whether a kernel is a power of the distance, which kernel_matvec does not know.
inline bool is_power(kernel_params const& how) {
  return how.function == kernel_function::distance && how.alpha != 1;
}

/// Turns scores into values.
template <class T>
void make_values(joint_kernels<T> const& table, kernel_params const& how, T* tile, index_t n) {
  if (is_power(how))
    table.raise(tile, n, static_cast<T>(how.alpha / 2));
  else
    table.tiles.apply(how, tile, n);
}

template <class T>
class joint_job : public kernel_job<T> {
 public:
  joint_job(context const& ctx, joint_kernels<T> const& table, rows_view<T> x, rows_view<T> y,
            strided_view<T const, 3> z, strided_view<T const, 3> w,
            strided_view<double const, 1> bandwidth_x, strided_view<double const, 1> bandwidth_z,
            kernel_params const& of_x, kernel_params const& of_z)
      : kernel_job<T>(ctx, table.tiles, {x, y, bandwidth_x, of_x, nullptr}),
        table_(table),
        of_z_(of_z) {
    for (index_t s = 0; s < z.shape[0]; ++s)
      seconds_.emplace_back(
          ctx, table.tiles,
          kernel_problem<T>{matrix_of(z, s), matrix_of(w, s), bandwidth_z, of_z, nullptr});
  }

  bool has_greatest() const { return false; }
  index_t sums() const { return 1 + 2 * count(); }
  index_t row_elements() const { return count() * elements(); }
  index_t column_elements() const { return count() * elements(); }

  void pack_more_of_row(index_t first, index_t n, T* out) const {
    index_t const lanes = divide_up(n, this->kernels.size.width) * this->kernels.size.width;
    for (auto const& second : seconds_) {
      second.pack_row(first, n, out, out + lanes * second.depth());
      out += lanes * elements();
    }
  }
  void pack_more_of_column(index_t first, index_t const* ids, index_t n, T* out) const {
    for (auto const& second : seconds_) {
      second.pack_column(first, ids, n, out, out + k_run * second.depth());
      out += k_run * elements();
    }
  }

  void add(row_group<T>& group, index_t panel, T* tile, index_t n, T const* of_columns) const {
    index_t const width = this->kernels.size.width, lanes = group.panels * width;
    alignas(64) T other[k_run * k_widest<T>], made[2 * k_widest<T>];
    double* sums = group.sums + panel * this->sums() * width;
    make_values<T>(table_, this->how_, tile, n);
    table_.sum(tile, n, made);
    this->kernels.add(made, width, sums);
    sums += width;
    T const* of_rows = group.more;
    for (auto const& second : seconds_) {
      index_t const q = second.depth();
      this->kernels.scores(second.form(),
                           {of_rows + panel * width * q, of_columns,
                            of_rows + lanes * q + panel * width, of_columns + k_run * q, q, n},
                           other);
      make_values<T>(table_, of_z_, other, n);
      table_.sum_both(tile, other, n, made);
      this->kernels.add(made, 2 * width, sums);
      sums += 2 * width;
      of_rows += lanes * elements();
      of_columns += k_run * elements();
    }
  }

 private:
  index_t count() const { return static_cast<index_t>(seconds_.size()); }
  /// Of a point of L: its coordinates and their square.
  index_t elements() const { return seconds_.front().depth() + 1; }

  joint_kernels<T> const& table_;
  kernel_params of_z_;
  std::deque<kernel_job<T>> seconds_;
};

}  // namespace subspan::detail
