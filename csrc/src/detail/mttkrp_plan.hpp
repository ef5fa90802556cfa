#pragma once

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "subspan/types.hpp"

/// How a tensor is walked for one mode. Everything here follows from shape and strides alone, so
/// that bits depend neither on the number of columns nor on the threads.

namespace subspan::detail {

/// Adjacent axes that one stride leads through, of which the index runs over [0, extent).
struct mttkrp_group {
  std::vector<int> modes;
  index_t extent = 1, stride = 0;
};

/// Equal pieces of [0, extent) of at most `most` each.
struct mttkrp_pieces {
  mttkrp_pieces(index_t all, index_t most)
      : extent(all),
        count(std::max<index_t>((all + most - 1) / most, 1)),
        size((all + count - 1) / count) {}
  index_t begin(index_t i) const { return std::min(i * size, extent); }
  index_t length(index_t i) const { return begin(i + 1) - begin(i); }
  index_t extent, count, size;
};

class mttkrp_plan {
 public:
  /// Where the mode of the result is: among the axes that are walked one by one, or one of the two
  /// inner groups, rows and columns of the matrices ("slabs") that tiles multiply.
  enum class place { outer, rows, columns };

  static constexpr index_t k_short = 64, k_table = 4096, k_tasks = 32;
  static constexpr index_t k_rows = 128, k_depth = 2048, k_wide = 512;
  static constexpr index_t k_task_elements = 1 << 15, k_copies = 1 << 20;

  mttkrp_plan(std::vector<index_t> const& shape, std::vector<index_t> const& strides, int mode)
      : mode_(mode) {
    std::vector<int> order(shape.size());
    for (std::size_t n = 0; n < order.size(); ++n) order[n] = static_cast<int>(n);
    auto const key = [&](int n) { return shape[n] == 1 ? -1 : std::abs(strides[n]); };
    // As they lie in memory; axes of one element, whose strides mean nothing, come first.
    std::sort(order.begin(), order.end(), [&](int a, int b) {
      auto const of_a = static_cast<std::size_t>(key(a)), of_b = static_cast<std::size_t>(key(b));
      return of_a > of_b || (of_a == of_b && a < b);
    });
    auto const take = [&](mttkrp_group& group) {
      group.modes = {order.back()};
      group.extent = shape[order.back()];
      group.stride = strides[order.back()];
      order.pop_back();
      while (group.modes.front() != mode && group.extent < k_short && !order.empty()) {
        int const next = order.back();
        bool const fits = group.extent * shape[next] <= k_table;
        if (next == mode || !fits || strides[next] != group.extent * group.stride) break;
        group.modes.insert(group.modes.begin(), next);
        group.extent *= shape[next];
        order.pop_back();
      }
    };
    take(columns);
    take(rows);
    at = columns.modes.back() == mode ? place::columns
         : rows.modes.back() == mode  ? place::rows
                                      : place::outer;
    for (int n : order) {
      outer.push_back({{n}, shape[n], strides[n]});
      if (n != mode) steps_ *= shape[n];
    }
    for (index_t extent : shape) elements *= extent;
    row_pieces = mttkrp_pieces(rows.extent, at == place::columns ? k_rows / 4 : k_rows);
    column_pieces = mttkrp_pieces(columns.extent, at == place::columns ? k_wide : k_depth);
    targets = at == place::rows      ? row_pieces.count
              : at == place::columns ? column_pieces.count
                                     : shape[mode];
    items = steps_ * (at == place::rows ? 1 : row_pieces.count) *
            (at == place::columns ? 1 : column_pieces.count);
    index_t const wanted = (k_tasks + targets - 1) / std::max<index_t>(targets, 1);
    index_t const worth = elements / k_task_elements,
                  room = k_copies / std::max<index_t>(shape[mode], 1);
    parts = std::max<index_t>(std::min({wanted, worth, room, items, k_tasks}), 1);
  }

  /// What one item of work reads.
  struct slab {
    index_t offset = 0;  // elements
    index_t first_row = 0, rows = 0, first_column = 0, columns = 0;
    std::vector<index_t> index;  // along the outer axes
  };

  /// Item `item` of what counts for target `target`.
  void locate(index_t target, index_t item, slab& to) const {
    index_t row = target, column = target;
    if (at != place::columns) {
      column = item % column_pieces.count;
      item /= column_pieces.count;
    }
    if (at != place::rows) {
      row = item % row_pieces.count;
      item /= row_pieces.count;
    }
    to.first_row = row_pieces.begin(row);
    to.rows = row_pieces.length(row);
    to.first_column = column_pieces.begin(column);
    to.columns = column_pieces.length(column);
    to.offset = to.first_row * rows.stride + to.first_column * columns.stride;
    to.index.resize(outer.size());
    for (std::size_t n = outer.size(); n-- > 0;) {
      bool const own = outer[n].modes.front() == mode_;
      to.index[n] = own ? target : item % outer[n].extent;
      if (!own) item /= outer[n].extent;
      to.offset += to.index[n] * outer[n].stride;
    }
  }

  /// The rows of the result that a target writes.
  index_t first(index_t target) const {
    return at == place::rows      ? row_pieces.begin(target)
           : at == place::columns ? column_pieces.begin(target)
                                  : target;
  }

  place at;
  mttkrp_group rows, columns;
  std::vector<mttkrp_group> outer;
  mttkrp_pieces row_pieces{0, 1}, column_pieces{0, 1};
  /// Disjoint pieces of the result; items of work for each; parts into which these are cut, whose
  /// sums are added up in order.
  index_t targets = 0, items = 0, parts = 1;
  index_t elements = 1;  // of the tensor

 private:
  int mode_;
  index_t steps_ = 1;
};

}  // namespace subspan::detail
