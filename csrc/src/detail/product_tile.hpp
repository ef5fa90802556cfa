#pragma once

#include "subspan/types.hpp"

/// Packed panels and the register tile that multiplies them: the inner loop of everything that
/// needs products of many rows without storing them.
///
/// A *panel* holds `width` columns of `depth` rows: panel[r * width + c]. A matrix is packed as
/// panels one after the other, the last one padded with zero columns.

namespace subspan::detail {

/// Four rows of one packing step. A row of weight 0 points at `shift`, so that it packs as zeros.
template <class P>
struct row_quad {
  P const* row[4];
  P scale[4];  // square root of the weight
};

template <class P>
struct product_kernels {
  int width;      // columns of a panel
  int tile_rows;  // columns of the left panel that one multiply takes; divides width

  /// c[i * ldc + j] += sum over r < depth of a[r * width + i] * b[r * width + j] for i < tile_rows,
  /// j < width; the sum in P (fused where the CPU can), its addition to c in double.
  void (*multiply)(index_t depth, P const* a, P const* b, double* c, index_t ldc);

  /// Writes v = scale (row - shift) of `count` <= 4 rows into panels from their row r on, and adds
  /// to sum[c] the scale v, to square[c] the v^2 of column c.
  void (*pack)(row_quad<P> const& rows, int count, index_t columns, P const* shift, P* panels,
               index_t panel_stride, index_t r, P* sum, P* square);
};

}  // namespace subspan::detail
