#pragma once

#include <algorithm>

#include "detail/parallel.hpp"
#include "detail/workspace.hpp"
#include "subspan/view.hpp"

/// THE tile engine: every row of X against every column of Y, product by product, and nothing of the
/// size rows x columns is ever stored. A *tile* of products comes to life in registers and is handed
/// to an *epilogue* at once, which selects, sums or counts and forgets it.
///
///   csrc/src/foo.cpp, once per level (detail/foreach_level.hpp):
///     #include "detail/tile_engine.inl.hpp"
///     struct my_epilogue {
///       // the sums of rows row0.. and columns column0..; those of padding are of no meaning
///       template <bool Differences>
///       void take(typename tile_shape<P>::sums& sum, index_t row0, index_t column0);
///       // optional: whether this tile shall be sums of (x - y)^2 in place of x y
///       bool by_differences(index_t row0, index_t column0);
///     };
///     void block(tile_block<P> const& b, ...) { my_epilogue e{...}; multiply_tiles<P>(b, e); }
///   once:
///     a *job*, see `run_tiles`, that packs both sides and passes blocks to the table of the level.
///
/// Rows and columns are packed into panels (product_tile.hpp), rounded to P once, after an optional
/// shift. A sum runs over the depth in order, by fused multiply-adds where the CPU has them: the
/// bits of a product depend on its row and its column alone, not on tile, block, thread or batch.

namespace subspan::detail {

/// Vectors to be packed: vector i has its elements r at data[i * step + r * stride].
template <class T>
struct vector_set {
  T const* data;
  index_t count, depth, step, stride;
  index_t const* ids = nullptr;  // vector i lies at ids[i] * step

  T const* operator[](index_t i) const { return data + (ids != nullptr ? ids[i] : i) * step; }
};

/// v scale_i - shift is packed in place of vector i, rounded to P once; in double where there is a
/// scale. Null: 1 and 0.
template <class P>
struct packing {
  P const* shift = nullptr;       // [depth]
  double const* scale = nullptr;  // [count]
};

/// Panels of rows against panels of columns.
template <class P>
struct tile_block {
  P const* left;
  index_t row_panels;  // up to k_rows_of_task rows
  P const* right;
  index_t column_panels;
  index_t depth;
  index_t row0, column0;  // of the first panels: in the strip, and in all
};

/// Rows and columns of a tile: the widths of the panels on the two sides.
struct tile_size {
  index_t rows, width;
};

inline constexpr index_t k_tile_depth = 1024;          // multiplied in one go: stays in cache
inline constexpr index_t k_rows_of_task = 128;         // a multiple of all tiles' rows
inline constexpr index_t k_shared_bytes = 16 << 20;    // packed columns that all threads use
inline constexpr index_t k_private_bytes = 384 << 10;  // and that a thread packs for itself

constexpr index_t divide_up(index_t n, index_t unit) { return (n + unit - 1) / unit; }

/// Runs a job: strips of rows, for each of them blocks of columns, for each of them tasks.
///
///   index_t rows(), columns(), depth();
///   tile_size size();
///   index_t strip();                            rows whose states may be alive together
///   void begin(first, last, parts)              a strip begins; every row has a state per part
///   void pack_rows(first, count, P* out)        one panel: rows first.., at most size().rows
///   void pack_columns(first, count, P* out)     any number of panels, the last one may be short
///   void multiply(tile_block<P>, part)          on any thread; no other one has these states
///   void end(first, last, parts)
///
/// Parts of the columns keep all threads busy where there are few rows. What a job makes of them
/// must not depend on their number.
template <class P, class Job>
void run_tiles(context const& ctx, Job& job) {
  auto const [tile_rows, width] = job.size();
  index_t const rows = job.rows(), depth = job.depth();
  index_t const column_panels = divide_up(job.columns(), width);
  if (rows == 0) return;
  index_t const strip =
      std::min(divide_up(std::max(job.strip(), index_t{1}), tile_rows) * tile_rows,
               divide_up(rows, tile_rows) * tile_rows);
  index_t const group = k_rows_of_task / tile_rows, groups = divide_up(strip, k_rows_of_task);
  index_t const threads = thread_count(ctx);
  index_t const parts =
      groups >= 2 * threads
          ? 1
          : std::clamp<index_t>(4 * threads / groups, 1, std::max<index_t>(column_panels, 1));
  auto const panel_bytes = std::max<index_t>(depth * width * static_cast<index_t>(sizeof(P)), 1);
  // Packing for all pays on many rows; for few, every part packs what it is about to multiply.
  bool const shared = groups > 1;
  index_t const held =
      std::clamp<index_t>((shared ? k_shared_bytes : k_private_bytes) / panel_bytes,
                          shared ? parts : 1, std::max<index_t>(column_panels, 1));

  workspace<P> left(ctx, strip * depth);
  workspace<P> right(ctx, shared ? held * width * depth : 0);
  auto const pack_columns = [&](index_t begin, index_t end, P* out) {
    job.pack_columns(begin * width, std::min(end * width, job.columns()) - begin * width, out);
  };

  for (index_t first = 0; first < rows; first += strip) {
    index_t const last = std::min(first + strip, rows),
                  row_panels = divide_up(last - first, tile_rows);
    job.begin(first, last, parts);
    parallel_for(ctx, row_panels, group, [&](index_t begin, index_t end) {
      for (index_t p = begin; p < end; ++p)
        job.pack_rows(first + p * tile_rows, std::min(tile_rows, last - first - p * tile_rows),
                      left.data() + p * tile_rows * depth);
    });
    auto const multiply = [&](index_t row_panel, index_t begin, index_t end, P const* packed,
                              index_t part) {
      if (begin < end)
        job.multiply(tile_block<P>{left.data() + row_panel * tile_rows * depth,
                                   std::min(group, row_panels - row_panel), packed, end - begin,
                                   depth, row_panel * tile_rows, begin * width},
                     part);
    };
    if (shared) {
      for (index_t c = 0; c < column_panels; c += held) {
        index_t const count = std::min(held, column_panels - c), each = divide_up(count, parts);
        parallel_for(ctx, count, 4, [&](index_t begin, index_t end) {
          pack_columns(c + begin, c + end, right.data() + begin * width * depth);
        });
        parallel_for(ctx, divide_up(row_panels, group) * parts, 1, [&](index_t task, index_t) {
          index_t const part = task % parts;
          multiply(task / parts * group, c + part * each, c + std::min((part + 1) * each, count),
                   right.data() + part * each * width * depth, part);
        });
      }
    } else {
      index_t const each = divide_up(column_panels, parts);
      parallel_for(ctx, parts, 1, [&](index_t part, index_t) {
        workspace<P> own(ctx, held * width * depth);
        index_t const end = std::min((part + 1) * each, column_panels);
        for (index_t c = part * each; c < end; c += held) {
          index_t const until = std::min(c + held, end);
          pack_columns(c, until, own.data());
          multiply(0, c, until, own.data(), part);
        }
      });
    }
    job.end(first, last, parts);
  }
}

}  // namespace subspan::detail
