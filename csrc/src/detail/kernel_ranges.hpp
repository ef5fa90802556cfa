#pragma once

#include <algorithm>

#include "detail/contract.hpp"
#include "subspan/kernel_matvec.hpp"

namespace subspan::detail {

/// Refuses what is no pattern of n rows and m columns.
inline void check_ranges(char const* function, kernel_ranges const& ranges, index_t n, index_t m) {
  auto const check_bounds = [&](char const* name, strided_view<index_t const, 1> bounds,
                                index_t last, bool empty) {
    index_t const count = bounds.shape[0];
    expects(count >= 1, function, "ranges.", name, " must begin with 0 and end with ", last,
            ", got 0 elements");
    expects(bounds(0) == 0 && bounds(count - 1) == last, function, "ranges.", name,
            " must begin with 0 and end with ", last, ", got ", count, " elements from ", bounds(0),
            " to ", bounds(count - 1));
    for (index_t i = 1; i < count; ++i)
      expects(bounds(i) > bounds(i - 1) || (empty && bounds(i) == bounds(i - 1)), function,
              "ranges.", name, " must ascend, got ", bounds(i), " after ", bounds(i - 1));
  };
  check_bounds("rows", ranges.rows, n, false);
  check_bounds("columns", ranges.columns, m, false);
  check_bounds("offsets", ranges.offsets, ranges.tiles.shape[0], true);
  expects(ranges.offsets.shape[0] == ranges.rows.shape[0], function, "ranges.offsets must have ",
          ranges.rows.shape[0], " elements like ranges.rows, got ", ranges.offsets.shape[0]);
  index_t const tiles = ranges.columns.shape[0] - 1;
  for (index_t r = 0; r + 1 < ranges.offsets.shape[0]; ++r)
    for (index_t k = ranges.offsets(r); k < ranges.offsets(r + 1); ++k) {
      index_t const tile = ranges.tiles(k);
      expects(tile >= 0 && tile < tiles, function, "ranges.tiles must be in [0, ", tiles, "), got ",
              tile);
      expects(k == ranges.offsets(r) || tile > ranges.tiles(k - 1), function,
              "ranges.tiles must ascend within a tile of rows, got ", tile, " after ",
              k == ranges.offsets(r) ? 0 : ranges.tiles(k - 1));
    }
}

/// The columns among at.. (`count` of them) that the rows of a tile meet, and how many; in order.
inline index_t columns_of(kernel_ranges const& ranges, index_t tile, index_t at, index_t count,
                          index_t* ids) {
  index_t low = ranges.offsets(tile), high = ranges.offsets(tile + 1);
  index_t const last = high;
  while (low < high) {  // the first tile of columns that ends beyond `at`
    index_t const middle = low + (high - low) / 2;
    if (ranges.columns(ranges.tiles(middle) + 1) > at)
      high = middle;
    else
      low = middle + 1;
  }
  index_t found = 0;
  for (; low < last && ranges.columns(ranges.tiles(low)) < at + count; ++low) {
    index_t const begin = std::max(ranges.columns(ranges.tiles(low)), at),
                  end = std::min(ranges.columns(ranges.tiles(low) + 1), at + count);
    for (index_t j = begin; j < end; ++j) ids[found++] = j;
  }
  return found;
}

}  // namespace subspan::detail
