#pragma once

#include "detail/kernel_jobs.hpp"

/// What the loops of kernel_sums.hpp sum up for log(sum over j of K_ij v_j) and its gradients. Values
/// are never made alone: the logarithm of K to base 2 is a function of the score that does not
/// underflow, those of the weights are added to it, and the greatest of a row is taken away before
/// there are powers.

namespace subspan::detail {

template <class T>
class kernel_log_job : public kernel_job<T> {
 public:
  /// logs [m]: of the weights, to base 2.
  kernel_log_job(context const& ctx, kernel_kernels<T> const& table,
                 kernel_problem<T> const& problem, double const* logs)
      : kernel_job<T>(ctx, table, problem), logs_(logs) {
    std::fill_n(ones_, k_run, T{1});
  }

  bool has_greatest() const { return true; }
  index_t sums() const { return 1; }
  index_t row_elements() const { return 0; }
  index_t column_elements() const { return 1; }

  void pack_more_of_row(index_t, index_t, T*) const {}
  void pack_more_of_column(index_t first, index_t const* ids, index_t count, T* out) const {
    auto const points = this->columns_from(first, ids);
    for (index_t j = 0; j < count; ++j) out[j] = static_cast<T>(logs_[points[j]]);
  }

  void add(row_group<T>& group, index_t panel, T* tile, index_t count, T const* logs) const {
    index_t const width = this->kernels.size.width;
    alignas(64) T made[k_widest<T>];
    double* const sums = group.sums + panel * width;
    this->kernels.apply_logs(this->how_, tile, count, logs);
    this->kernels.apply_below(tile, count, group.greatest + panel * width, made);
    for (index_t i = 0; i < width; ++i) sums[i] *= static_cast<double>(made[i]);
    this->kernels.sum(tile, count, ones_, made);
    this->kernels.add(made, width, sums);
  }

 private:
  double const* logs_;
  alignas(64) T ones_[k_run];
};

/// An exponent to base 2 and a factor for each point: [count, 2].
using point_terms = strided_view<double const, 2>;

template <class T>
void pack_terms(point_terms terms, ordered_rows<T> const& points, index_t count, index_t filled,
                T* out) {
  for (index_t k = 0; k < 2; ++k, out += filled) {
    for (index_t i = 0; i < count; ++i) out[i] = static_cast<T>(terms(points[i], k));
    std::fill(out + count, out + filled, T{0});
  }
}

/// out_i = sum over j of 2^(a_i + b_j) p_i q_j K_ij.
template <class T>
class kernel_term_job : public kernel_job<T> {
 public:
  kernel_term_job(context const& ctx, kernel_kernels<T> const& table,
                  kernel_problem<T> const& problem, point_terms of_x, point_terms of_y,
                  bool exchanged)
      : kernel_job<T>(ctx, table, problem), of_x_(of_x), of_y_(of_y), exchanged_(exchanged) {
    std::fill_n(ones_, k_run, T{1});
  }

  bool has_greatest() const { return false; }
  index_t sums() const { return 1; }
  index_t row_elements() const { return 2; }
  index_t column_elements() const { return 2; }

  void pack_more_of_row(index_t first, index_t count, T* out) const {
    index_t const lanes = divide_up(count, this->kernels.size.width) * this->kernels.size.width;
    pack_terms(of_x_, this->rows_from(first), count, lanes, out);
  }
  void pack_more_of_column(index_t first, index_t const* ids, index_t count, T* out) const {
    pack_terms(of_y_, this->columns_from(first, ids), count, k_run, out);
  }

  void add(row_group<T>& group, index_t panel, T* tile, index_t count, T const* more) const {
    index_t const width = this->kernels.size.width;
    T const* const mine = group.more + panel * width;
    alignas(64) T made[k_widest<T>];
    this->kernels.apply_terms(this->how_, tile, count,
                              {mine, more, mine + group.panels * width, more + k_run, exchanged_},
                              false);
    this->kernels.sum(tile, count, ones_, made);
    this->kernels.add(made, width, group.sums + panel * width);
  }

 private:
  point_terms of_x_, of_y_;
  bool exchanged_;
  alignas(64) T ones_[k_run];
};

/// The same with slopes in place of K, times differences of coordinates: the gradient in x.
template <class T>
class kernel_term_gradient : public coordinate_job<T> {
 public:
  kernel_term_gradient(context const& ctx, kernel_kernels<T> const& table,
                       kernel_problem<T> const& problem, point_terms of_x, point_terms of_y,
                       bool exchanged)
      : coordinate_job<T>(ctx, table, problem, 2),
        of_x_(of_x),
        of_y_(of_y),
        exchanged_(exchanged) {}

  void pack_more_of_row(index_t first, index_t count, T* out) const {
    index_t const lanes = divide_up(count, this->kernels.size.width) * this->kernels.size.width;
    pack_terms(of_x_, this->rows_from(first), count, lanes, out);
    this->pack_coordinates_of_row(first, count, out);
  }
  void pack_more_of_column(index_t first, index_t const* ids, index_t count, T* out) const {
    auto const points = this->columns_from(first, ids);
    pack_terms(of_y_, points, count, k_run, out);
    this->pack_coordinates_of_column(points, count, out);
  }

  void add(row_group<T>& group, index_t panel, T* tile, index_t count, T const* more) const {
    index_t const width = this->kernels.size.width;
    T const* const mine = group.more + panel * width;
    this->kernels.apply_terms(this->how_, tile, count,
                              {mine, more, mine + group.panels * width, more + k_run, exchanged_},
                              true);
    this->add_weights(group, panel, tile, count, more);
  }

 private:
  point_terms of_x_, of_y_;
  bool exchanged_;
};

}  // namespace subspan::detail
