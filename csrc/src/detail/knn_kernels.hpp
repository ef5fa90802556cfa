#pragma once

#include <cmath>

#include "detail/row_selector.hpp"
#include "detail/tile_engine.hpp"

/// What knn.cpp compiles once per level.
///
/// The *score* of a pair, greater is better, is <x, y> - |x|^2/2 - |y|^2/2 = -|x - y|^2 / 2, of
/// vectors that a common shift has brought near the origin; with the halves left out it is the inner
/// product.

namespace subspan::detail {

/// One strip of queries against all columns: what the selecting epilogue reads and writes.
template <class P>
struct neighbor_strip {
  row_selector<P>* best;  // of every row, padding too
  P const* row_half;      // |x|^2 / 2; NaN: padding, and rows that have no neighbours
  P const* column_half;   // |y|^2 / 2, of all columns; NaN: padding, and what is no neighbour
  P const* row_reach;     // of every panel of rows: the greatest norm
  P const* column_reach;  // and of all panels of columns
  P* used;                // of every panel of rows: the greatest error of its scores by products
  index_t* difference_tiles;  // and how many of its tiles were made of differences
  P error;           // a score by products is off by this times the square of the sum of the
                     // two reaches, at most
  bool differences;  // whether tiles may be made of them
  bool only;         // and all are
  // Which pairs count; null: all. Row i of the strip and column j: at [ids[i] * step + j * stride].
  std::uint8_t const* mask = nullptr;
  index_t const* mask_ids = nullptr;
  index_t mask_step = 0, mask_stride = 0;

  bool allows(index_t row, index_t column) const {
    return mask[mask_ids[row] * mask_step + column * mask_stride] != 0;
  }
};

/// A score's error may be this share of the best that is still to be beaten, before differences are
/// taken.
inline constexpr double k_tolerated = 1.0 / 1024;

/// Element count to which rows in double are padded.
inline constexpr index_t k_exact_step = 16;

template <class T, class P>
struct knn_kernels {
  tile_size size;
  void (*pack)(vector_set<T> const& from, packing<P> const& how, index_t first, index_t count,
               index_t width, P* out);
  /// |v|^2 of the vectors of a panel, in double.
  void (*squares)(P const* panel, index_t depth, index_t width, double* out);
  void (*select)(tile_block<P> const& block, neighbor_strip<P> const& strip);
};

/// Distances as they are defined: in double, of rows as they are, by sums in one fixed order.
template <class T>
struct exact_kernels {
  /// A row in double, padded with zeros to a multiple of k_exact_step.
  void (*widen)(T const* row, index_t stride, index_t depth, double* out);
  double (*difference)(double const* x, T const* y, index_t stride, index_t depth);  // |x - y|^2
  double (*product)(double const* x, T const* y, index_t stride, index_t depth);     // <x, y>
};

}  // namespace subspan::detail
