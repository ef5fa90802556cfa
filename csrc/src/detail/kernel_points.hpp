#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "detail/kernel_tiles.hpp"

namespace subspan::detail {

template <class T>
using rows_view = strided_view<T const, 2>;

/// Rows of a matrix in an order of their own.
template <class T>
struct ordered_rows {
  rows_view<T> all;
  index_t const* ids = nullptr;  // null: as they are
  index_t first = 0;

  index_t operator[](index_t i) const { return ids != nullptr ? ids[first + i] : first + i; }
};

/// Row b of a batch.
template <class T>
strided_view<T, 2> matrix_of(strided_view<T, 3> const& all, index_t b) {
  return {all.data + b * all.strides[0],
          {all.shape[1], all.shape[2]},
          {all.strides[1], all.strides[2]},
          all.device};
}

template <class T>
bool is_finite_row(rows_view<T> const& a, index_t i) {
  for (index_t c = 0; c < a.shape[1]; ++c)
    if (!std::isfinite(a(i, c))) return false;
  return true;
}
template <class T>
bool is_finite(rows_view<T> const& a) {
  for (index_t i = 0; i < a.shape[0]; ++i)
    if (!is_finite_row(a, i)) return false;
  return true;
}

/// The arguments that all jobs have.
template <class T>
struct kernel_problem {
  rows_view<T> x, y;
  strided_view<double const, 1> bandwidth;
  kernel_params const& how;
  kernel_ranges const* ranges;  // null: all pairs
  bool exchanged = false;       // x is the y of another, whose scores are wanted to the last bit
};

/// The mean of what is finite in every column.
template <class T>
void mean_of(rows_view<T> const& a, double* mean, double* count) {
  index_t const d = a.shape[1];
  std::fill_n(mean, d, 0.0);
  std::fill_n(count, d, 0.0);
  for (index_t i = 0; i < a.shape[0]; ++i)
    for (index_t c = 0; c < d; ++c) {
      double const v = static_cast<double>(a(i, c));
      bool const finite = std::abs(v) <= std::numeric_limits<double>::max();
      mean[c] += finite ? v : 0;
      count[c] += finite ? 1 : 0;
    }
  for (index_t c = 0; c < d; ++c) mean[c] /= std::max(count[c], 1.0);
}

/// (row - centre) scale, rounded once, in panels: out[c * width + i]. Beyond `count` zeros. What is
/// not finite becomes the NaN without a payload. norms, if wanted: the squares of the rows.
template <class T>
void pack_points(ordered_rows<T> const& from, double const* centre, double const* scale,
                 index_t count, index_t width, T* out, T* norms) {
  index_t const d = from.all.shape[1];
  for (index_t i0 = 0; i0 < count; i0 += width, out += width * d) {
    index_t const n = std::min(width, count - i0);
    if (n < width) std::fill_n(out, width * d, T{0});
    for (index_t i = 0; i < n; ++i) {
      T const* const row = from.all.data + from[i0 + i] * from.all.strides[0];
      double square = 0;
      for (index_t c = 0; c < d; ++c) {
        double const moved = static_cast<double>(row[c * from.all.strides[1]]) - centre[c];
        T const v = static_cast<T>(moved * scale[c]);
        T const kept =
            std::abs(v) <= std::numeric_limits<T>::max() ? v : std::numeric_limits<T>::quiet_NaN();
        out[c * width + i] = kept;
        square += static_cast<double>(kept) * static_cast<double>(kept);
      }
      if (norms != nullptr) norms[i0 + i] = static_cast<T>(square);
    }
    if (norms != nullptr) std::fill(norms + i0 + n, norms + i0 + width, T{0});
  }
}

/// Where coordinates are taken from and by what they are multiplied, for both sides.
struct coordinates {
  double *centre_x, *centre_y, *scale_x, *scale_y;
};

template <class T>
class coordinate_system {
 public:
  coordinate_system(context const& ctx, kernel_problem<T> const& problem)
      : memory_(ctx, 5 * problem.x.shape[1]) {
    auto const& [x, y, bandwidth, how, ranges, exchanged] = problem;
    index_t const d = x.shape[1];
    double* const at = memory_.data();
    all_ = {at, at + d, at + 2 * d, at + 3 * d};
    bool const radial = is_radial(how.function);
    // Weights that sum to one do not see what all of y share.
    if (radial || how.function == kernel_function::softmax)
      mean_of(exchanged ? x : y, all_.centre_y, at + 4 * d);
    else
      std::fill_n(all_.centre_y, d, 0.0);
    for (index_t c = 0; c < d; ++c) {
      all_.centre_x[c] = radial ? all_.centre_y[c] : 0;
      all_.scale_x[c] = scale_of(how) / bandwidth(c);
      all_.scale_y[c] = radial ? all_.scale_x[c] : 1;
    }
    if (exchanged) {
      std::swap(all_.centre_x, all_.centre_y);
      std::swap(all_.scale_x, all_.scale_y);
    }
  }
  coordinates const& operator*() const { return all_; }

 private:
  workspace<double> memory_;
  coordinates all_{};
};

}  // namespace subspan::detail
