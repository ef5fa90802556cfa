#pragma once

#include <algorithm>
#include <vector>

#include "subspan/types.hpp"

/// How a symmetric matrix is cut into blocks of one triangle.

namespace subspan::detail {

/// Side of a block on the diagonal, of which both halves are made.
inline constexpr index_t k_symmetric_least = 64;

/// A block of symmetric matrices: on the diagonal, or one that counts for its mirror image too.
struct symmetric_block {
  index_t row, rows, column, columns;
  double weight;
};

/// Blocks of at most side x side for rows and columns [begin, end): halves of halves, so that little
/// is made twice.
inline void cover_symmetric(index_t begin, index_t end, index_t side,
                            std::vector<symmetric_block>& blocks) {
  constexpr index_t grain = 16;  // what register tiles like
  auto const rounded = [](index_t n) { return (n + grain - 1) / grain * grain; };
  index_t const size = end - begin, middle = begin + rounded(size / 2);
  if (size <= std::min(side, k_symmetric_least)) {
    blocks.push_back({begin, size, begin, size, 1.0});
    return;
  }
  cover_symmetric(begin, middle, side, blocks);
  cover_symmetric(middle, end, side, blocks);
  auto const step = [&](index_t n) { return rounded((n - 1) / ((n + side - 1) / side) + 1); };
  index_t const height = step(middle - begin), width = step(end - middle);
  for (index_t i = begin; i < middle; i += height)
    for (index_t j = middle; j < end; j += width)
      blocks.push_back({i, std::min(height, middle - i), j, std::min(width, end - j), 2.0});
}

}  // namespace subspan::detail
