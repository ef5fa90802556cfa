#pragma once

#include "detail/kernel_segments.hpp"

/// What comes before the sums of kernel_matvec.cu, and after: centres, panels, results. Bodies of one
/// thread, but for the sums of columns.

namespace subspan::gpu {

/// An argument of the call: [batch, rows, columns], strides in elements.
template <class T>
struct kernel_array {
  T const* data;
  index_t strides[3];
  index_t rows;
  int columns;

  SUBSPAN_DEVICE T operator()(index_t b, index_t i, int c) const {
    return data[b * strides[0] + i * strides[1] + c * strides[2]];
  }
};

/// Sums and counts of what is finite in `across` columns from `column` on of rows [begin, end), to
/// sums[c] and sums[columns + c]. `memory`: two doubles per thread; `across` divides their number.
template <class T, class Lanes>
SUBSPAN_DEVICE void sum_finite(Lanes const& lanes, double* memory, kernel_array<T> const& a,
                               index_t matrix, int column, int across, index_t begin, index_t end,
                               double* sums) {
  int const c = column + lanes.rank() % across, pace = lanes.size() / across;
  double sum = 0, count = 0;
  if (c < a.columns)
    for (index_t i = begin + lanes.rank() / across; i < end; i += pace) {
      auto const v = static_cast<double>(a(matrix, i, c));
      bool const finite = std::abs(v) <= std::numeric_limits<double>::max();
      sum += finite ? v : 0;
      count += finite ? 1 : 0;
    }
  memory[lanes.rank()] = sum;
  memory[lanes.size() + lanes.rank()] = count;
  lanes.sync();
  if (lanes.rank() >= across || c >= a.columns) return;
  for (int p = 1; p < pace; ++p) {
    sum += memory[p * across + lanes.rank()];
    count += memory[lanes.size() + p * across + lanes.rank()];
  }
  sums[c] = sum;
  sums[a.columns + c] = count;
}

/// The mean of column c, from the sums [parts][2][columns] of parts of the rows.
SUBSPAN_DEVICE double mean_of_parts(double const* sums, index_t parts, int columns, int c) {
  double sum = 0, count = 0;
  for (index_t p = 0; p < parts; ++p, sums += 2 * columns) {
    sum += sums[c];
    count += sums[columns + c];
  }
  return sum / (count > 1 ? count : 1);
}

/// (row - centre) scale, rounded once, in panels [depth][rows], zeros beyond; what is not finite
/// becomes NaN. Point i counts over the tiles of all matrices.
template <class T>
SUBSPAN_DEVICE void pack_point(kernel_array<T> const& a, index_t tiles, index_t i,
                               double const* centre, double const* scale, int depth, T* panels,
                               T* norms) {
  constexpr int rows = kernel_shape<T>::rows;
  index_t const matrix = i / (tiles * rows), row = i % (tiles * rows);
  T* const out = panels + i / rows * depth * rows + i % rows;
  double square = 0;
  for (int c = 0; c < depth; ++c) {
    T kept = 0;
    if (row < a.rows && c < a.columns) {
      double const moved = static_cast<double>(a(matrix, row, c)) - centre[matrix * a.columns + c];
      T const v = static_cast<T>(moved * scale[c]);
      kept = std::abs(v) <= std::numeric_limits<T>::max() ? v : std::numeric_limits<T>::quiet_NaN();
    }
    out[c * rows] = kept;
    square += static_cast<double>(kept) * static_cast<double>(kept);
  }
  norms[i] = static_cast<T>(square);
}

/// Columns of an array, and of ones behind them.
template <class T>
struct kernel_columns {
  kernel_array<T> from;
  bool ones;
  SUBSPAN_DEVICE T operator()(index_t matrix, index_t i, int k) const {
    return k < from.columns ? from(matrix, i, k) : T(ones && k == from.columns);
  }
};
/// The logarithms of one column, to base 2.
template <class T>
struct kernel_logs {
  kernel_array<T> from;
  int column;
  SUBSPAN_DEVICE T operator()(index_t matrix, index_t i, int) const {
    return static_cast<T>(std::log2(static_cast<double>(from(matrix, i, column))));
  }
};
/// Exponents and factors.
template <class T>
struct kernel_terms {
  kernel_array<double> from;
  SUBSPAN_DEVICE T operator()(index_t matrix, index_t i, int k) const {
    return static_cast<T>(from(matrix, i, k));
  }
};

/// What points have besides coordinates, in panels [size][rows], zeros beyond.
template <class T, class Source>
SUBSPAN_DEVICE void pack_more(Source const& source, index_t tiles, index_t i, int size, T* panels) {
  constexpr int rows = kernel_shape<T>::rows;
  index_t const matrix = i / (tiles * rows), row = i % (tiles * rows);
  T* const out = panels + i / rows * size * rows + i % rows;
  for (int k = 0; k < size; ++k)
    out[k * rows] = row < source.from.rows ? source(matrix, row, k) : T(0);
}

/// Where results go, and what sums are multiplied by.
template <class T>
struct kernel_results {
  kernel_array<T> x;
  T* out;         // [batch, n, columns]
  int columns;    // of out
  int column;     // of logs: which one it is
  double* more;   // product: log of the mass [batch, n]; logs: parts [batch, n, 2 columns]; or null
  double factor;  // of gradients
  double const *centre_y, *scale_x;
};

/// The row of a tile, from its total.
template <kernel_task Task, class T>
SUBSPAN_DEVICE void finish_row(kernel_job<T> const& job, kernel_results<T> const& to, index_t tile,
                               int row) {
  constexpr int pitch = kernel_shape<T>::rows;
  constexpr double log_2 = 0.6931471805599453;
  index_t const matrix = tile / job.x_tiles, i = tile % job.x_tiles * pitch + row;
  if (i >= to.x.rows) return;
  index_t const at = matrix * to.x.rows + i;
  double const* const sums = job.sums_of(tile, 0) + row;
  T* const out = to.out + at * to.columns;
  if constexpr (Task == kernel_task::logs) {
    constexpr T lowest = sizeof(T) == 4 ? T(-0x1p120) : T(-0x1p1000);
    T const most = job.greatest_of(tile, 0)[row];
    double const mass = *sums;
    bool const nothing = most <= lowest && mass == mass;
    out[to.column] = nothing ? -std::numeric_limits<T>::infinity()
                             : static_cast<T>(static_cast<double>(most) * log_2 + std::log(mass));
    if (to.more == nullptr) return;
    to.more[at * 2 * to.columns + to.column] = nothing ? 0 : static_cast<double>(most);
    to.more[(at * 2 + 1) * to.columns + to.column] = nothing ? 0 : mass;
  } else if constexpr (Task == kernel_task::softmax) {
    double const mass = sums[to.columns * pitch];
    for (int k = 0; k < to.columns; ++k)
      out[k] = static_cast<T>(mass == 0 ? 0 : sums[k * pitch] / mass);
    if (to.more == nullptr) return;
    // Scores were those of y - centre, in powers of two.
    auto score = static_cast<double>(job.greatest_of(tile, 0)[row]);
    for (int c = 0; c < to.x.columns; ++c)
      score += static_cast<double>(to.x(matrix, i, c)) * to.scale_x[c] *
               to.centre_y[matrix * to.x.columns + c];
    to.more[at] = score * log_2 + std::log(mass);
  } else {
    constexpr bool slopes = Task == kernel_task::gradient || Task == kernel_task::term_gradient;
    for (int k = 0; k < to.columns; ++k)
      out[k] =
          static_cast<T>(slopes ? sums[k * pitch] * to.factor * to.scale_x[k] : sums[k * pitch]);
  }
}

}  // namespace subspan::gpu
