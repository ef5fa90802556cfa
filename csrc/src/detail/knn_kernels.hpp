#pragma once

#include <cmath>
#include <vector>

#include "detail/row_selector.hpp"
#include "detail/tile_engine.hpp"

/// What knn.cpp compiles once per level.
///
/// The *score* of a pair, greater is better, is <x, y> - |x|^2/2 - |y|^2/2 = -|x - y|^2 / 2, of
/// vectors that a common shift has brought near the origin; with the halves left out it is the inner
/// product.

namespace subspan::detail {

/// One strip of queries against all columns: what the epilogues read.
template <class P>
struct neighbor_strip {
  P const* row_half;          // |x|^2 / 2; NaN: padding, and rows that have no neighbours
  P const* column_half;       // |y|^2 / 2, of all columns; NaN: padding, and what is no neighbour
  P const* row_reach;         // of every panel of rows: the greatest norm
  P const* column_reach;      // and of all panels of columns
  index_t* difference_tiles;  // of every panel of rows: how many tiles were made of differences
  P error;           // a score by products is off by this times the square of the sum of the
                     // two reaches, at most
  bool differences;  // whether tiles may be made of them
  // Which pairs count; null: all. Row i of the strip and column j: at [ids[i] * step + j * stride].
  std::uint8_t const* mask = nullptr;
  index_t const* mask_ids = nullptr;
  index_t mask_step = 0, mask_stride = 0;

  bool allows(index_t row, index_t column) const {
    return mask[mask_ids[row] * mask_step + column * mask_stride] != 0;
  }
};

/// States of all rows of one side, where tiles serve both.
template <class P>
struct searched_rows {
  row_selector<P>* best;
  P* least;  // of every state, in one array
  P* used;   // as select has it, per panel of rows
};

/// A pair of the strip that may be near enough.
struct near_pair {
  std::uint32_t row, column;
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
  /// The best of every row, padding too. `used`, per panel of rows, is raised to the greatest error of
  /// a score by products. only_differences: of all tiles.
  void (*select)(tile_block<P> const& block, neighbor_strip<P> const& strip, row_selector<P>* best,
                 P* used, bool only_differences);
  /// The same for all rows of both sides: a tile serves its rows and its columns.
  void (*select_both)(tile_block<P> const& block, neighbor_strip<P> const& strip,
                      searched_rows<P> const& rows, searched_rows<P> const& columns);
  /// All pairs whose exact score may be >= bar of their row, -limit at least.
  void (*within)(tile_block<P> const& block, neighbor_strip<P> const& strip, P const* bars, P limit,
                 std::vector<near_pair>& found);
};

/// A first pass by dot products of bfloat16 pairs, where the CPU has them; null elsewhere. A pair of
/// elements that follow each other in depth takes the place of one float in a panel.
struct pair_kernels {
  /// [depth][width] floats to [(depth + 1) / 2][width] pairs; residuals: what the rounding took from
  /// each vector, squared.
  void (*pack)(float const* panel, index_t depth, index_t width, float* out, double* residuals);
  void (*select)(tile_block<float> const& block, neighbor_strip<float> const& strip,
                 row_selector<float>* best, float* used, bool only_differences);
  void (*select_both)(tile_block<float> const& block, neighbor_strip<float> const& strip,
                      searched_rows<float> const& rows, searched_rows<float> const& columns);
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
