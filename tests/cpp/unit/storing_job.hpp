#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <vector>

#include "detail/tile_engine.hpp"

/// A job for the tile engine that stores all products, and sees to what the engine promises.

namespace storing {

using subspan::index_t;
using subspan::detail::divide_up;
using subspan::detail::k_rows_of_task;
using subspan::detail::packing;
using subspan::detail::tile_block;
using subspan::detail::tile_size;
using subspan::detail::vector_set;

constexpr std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// The dense matrix, and how often every tile was asked for its form and taken.
template <class P>
class tile_store {
 public:
  tile_store(tile_size size, index_t rows, index_t columns, bool mixed)
      : rows(rows),
        columns(columns),
        mixed(mixed),
        out(at(rows * columns), P(-77)),
        size_(size),
        across_(divide_up(columns, size.width)),
        asked_(at(divide_up(rows, size.rows) * across_), 0),
        taken_(asked_.size(), 0) {}

  bool differs(index_t row, index_t column) const {
    return mixed && (row / size_.rows + column / size_.width) % 3 == 1;
  }
  bool ask(index_t row, index_t column) {
    ++asked_[at(tile(row, column))];
    return differs(row, column);
  }
  void take(index_t row, index_t column, P const* sums, bool differences) {
    taken_[at(tile(row, column))] += differences == differs(row, column) ? 1 : 100;
    for (index_t i = 0; i < std::min(size_.rows, rows - row); ++i)
      std::copy_n(sums + i * size_.width, std::min(size_.width, columns - column),
                  out.data() + (row + i) * columns + column);
  }
  bool complete() const {
    auto const all = [](std::vector<int> const& counts, int wanted) {
      return std::count(counts.begin(), counts.end(), wanted) == std::ssize(counts);
    };
    return all(taken_, 1) && all(asked_, mixed ? 1 : 0);
  }

  index_t rows, columns;
  bool mixed;
  std::vector<P> out;

 private:
  index_t tile(index_t row, index_t column) const {
    return row / size_.rows * across_ + column / size_.width;
  }
  tile_size size_;
  index_t across_;
  std::vector<int> asked_, taken_;
};

template <class P>
struct engine_kernels {
  tile_size size;
  void (*pack)(vector_set<P> const&, packing<P> const&, index_t, index_t, index_t, P*);
  void (*multiply)(tile_block<P> const& block, index_t first_row, tile_store<P>& to);
};

/// Counts its calls; `fine` while they are what run_tiles says.
template <class P>
class storing_job {
 public:
  storing_job(engine_kernels<P> const& kernels, vector_set<P> x, vector_set<P> y, index_t strip,
              tile_store<P>& to)
      : kernels_(kernels), x_(x), y_(y), strip_(strip), to_(to) {}

  index_t rows() const { return x_.count; }
  index_t columns() const { return y_.count; }
  index_t depth() const { return x_.depth; }
  tile_size size() const { return kernels_.size; }
  index_t strip() const { return strip_; }
  void begin(index_t first, index_t last, index_t parts) {
    ++begun;
    fine = fine && first == last_ && first < last && parts >= 1;
    first_ = first, last_ = last, parts_ = parts;
    next_column_.assign(at(divide_up(last - first, k_rows_of_task) * parts), 0);
  }
  void pack_rows(index_t first, index_t count, P* out) const {
    kernels_.pack(x_, {}, first, count, size().rows, out);
  }
  void pack_columns(index_t first, index_t count, P* out) const {
    kernels_.pack(y_, {}, first, count, size().width, out);
  }
  void multiply(tile_block<P> const& block, index_t part) {
    ++multiplied;
    // No other thread has these states, and they see the columns in order.
    auto& next = next_column_[at(block.row0 / k_rows_of_task * parts_ + part)];
    if (block.column0 < next || part >= parts_ || block.column_panels < 1 || block.row_panels < 1 ||
        block.row0 % k_rows_of_task != 0)
      fine = false;
    next = block.column0 + block.column_panels * size().width;
    kernels_.multiply(block, first_, to_);
  }
  void end(index_t first, index_t last, index_t parts) {
    ++ended;
    fine = fine && first == first_ && last == last_ && parts == parts_;
  }

  int begun = 0, ended = 0;
  std::atomic<int> multiplied = 0;
  std::atomic<bool> fine = true;

 private:
  engine_kernels<P> const& kernels_;
  vector_set<P> x_, y_;
  index_t strip_;
  tile_store<P>& to_;
  index_t first_ = 0, last_ = 0, parts_ = 0;
  std::vector<index_t> next_column_;
};

}  // namespace storing
