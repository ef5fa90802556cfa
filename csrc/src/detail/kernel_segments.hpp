#pragma once

#include "detail/kernel_blocks.hpp"
#include "subspan/types.hpp"

/// Points of many matrices in panels, and the sums over them segment by segment. A segment depends on
/// the number of points y alone; its sums are added to the total in double, in order, whether one
/// block has all segments of a tile or each has its own. So do the bits.

namespace subspan::gpu {

/// Packed matrices, and where sums go: [tiles of x of all matrices][slots][sums][rows]. Slot 0 is the
/// total. There is one more, of the segment at work, or one for every segment.
template <class T>
struct kernel_job {
  using shape = kernel_shape<T>;

  kernel_sizes sizes;
  int x_more_size, y_more_size;  // elements per point
  index_t columns, x_tiles, y_tiles, segment_runs, segments;
  T const *x, *y, *x_norms, *y_norms, *x_more, *y_more;
  split_lot const *x_split, *y_split;  // null: products of panels
  float const *x_factors, *y_factors;  // of all points, where they are split
  index_t first_tile;                  // that `sums` begins with
  index_t slots;
  double* sums;
  T* greatest;

  /// Runs of a segment: of at least 1024 points, and so many that there are at most 64 segments.
  static constexpr index_t runs_of_segment(index_t y_tiles) {
    index_t const least = 1024 / shape::rows, wanted = (y_tiles + 63) / 64;
    return wanted > least ? wanted : least;
  }

  SUBSPAN_DEVICE bool in_parts() const { return slots > 2; }
  SUBSPAN_DEVICE double* sums_of(index_t tile, index_t slot) const {
    return sums + ((tile - first_tile) * slots + slot) * sizes.sums * shape::rows;
  }
  SUBSPAN_DEVICE T* greatest_of(index_t tile, index_t slot) const {
    return greatest + ((tile - first_tile) * slots + slot) * shape::rows;
  }
  SUBSPAN_DEVICE int count_of(index_t run) const {
    index_t const left = columns - run * shape::rows;
    return static_cast<int>(left < shape::rows ? left : shape::rows);
  }
  SUBSPAN_DEVICE index_t first_run(index_t segment) const { return segment * segment_runs; }
  SUBSPAN_DEVICE index_t last_run(index_t segment) const {
    index_t const last = (segment + 1) * segment_runs;
    return last < y_tiles ? last : y_tiles;
  }
  SUBSPAN_DEVICE kernel_run<T> run_of(index_t tile, index_t run) const {
    constexpr int rows = shape::rows;
    index_t const panel = tile / x_tiles * y_tiles + run;
    kernel_run<T> made{x + tile * sizes.depth * rows,
                       y + panel * sizes.depth * rows,
                       x_norms + tile * rows,
                       y_norms + panel * rows,
                       x_more + tile * x_more_size * rows,
                       y_more + panel * y_more_size * rows,
                       count_of(run),
                       {}};
    if constexpr (std::is_same_v<T, float>)
      if (x_split != nullptr) {
        index_t const size = index_t{split_steps(sizes.depth)} * k_split_lots;
        made.split = {x_split + tile * size,    y_split + panel * size, x_factors + tile * rows,
                      y_factors + panel * rows, made.x_norms,           made.y_norms};
      }
    return made;
  }
};

/// Adds the sums of a row in `slot` to its total.
template <kernel_task Task, class T>
SUBSPAN_DEVICE void merge_row(kernel_job<T> const& job, index_t tile, int row, index_t slot) {
  constexpr int pitch = kernel_shape<T>::rows;
  double* const total = job.sums_of(tile, 0) + row;
  double const* const part = job.sums_of(tile, slot) + row;
  int const sums = job.sizes.sums;
  double old = 1, now = 1;
  if constexpr (has_greatest(Task)) {
    constexpr T nothing = -std::numeric_limits<T>::infinity();
    T& most = job.greatest_of(tile, 0)[row];
    T const other = job.greatest_of(tile, slot)[row];
    if (other == nothing && part[(sums - 1) * pitch] == 0) return;  // met no one
    T const both = other > most ? other : most;
    old = most == nothing ? 0 : static_cast<double>(exp2_of(most - both));
    now = static_cast<double>(exp2_of(other - both));
    most = both;
  }
  for (int k = 0; k < sums; ++k) total[k * pitch] = total[k * pitch] * old + part[k * pitch] * now;
}

template <kernel_task Task, class T>
SUBSPAN_DEVICE void clear_row(kernel_job<T> const& job, index_t tile, int row) {
  constexpr int pitch = kernel_shape<T>::rows;
  for (int k = 0; k < job.sizes.sums; ++k) job.sums_of(tile, 0)[k * pitch + row] = 0;
  if constexpr (has_greatest(Task))
    job.greatest_of(tile, 0)[row] = -std::numeric_limits<T>::infinity();
}

/// A block: segments [first, last) of a tile.
template <kernel_task Task, class T, class Lanes>
SUBSPAN_DEVICE void sum_segments(Lanes const& lanes, kernel_memory<T>& memory,
                                 kernel_job<T> const& job, index_t tile, index_t first,
                                 index_t last) {
  bool const is_row = lanes.rank() < kernel_shape<T>::rows;
  if (!job.in_parts() && is_row) clear_row<Task>(job, tile, lanes.rank());
  SUBSPAN_NO_UNROLL
  for (index_t segment = first; segment < last; ++segment) {
    index_t const slot = job.in_parts() ? segment + 1 : 1;
    T* const greatest = has_greatest(Task) ? job.greatest_of(tile, slot) : nullptr;
    kernel_block<Task, T, Lanes> block(lanes, memory, job.sizes, job.sums_of(tile, slot), greatest);
    block.clear();
    SUBSPAN_NO_UNROLL
    for (index_t run = job.first_run(segment); run < job.last_run(segment); ++run)
      block.add(job.run_of(tile, run));
    block.store();
    lanes.sync();
    if (!job.in_parts() && is_row) merge_row<Task>(job, tile, lanes.rank(), slot);
    lanes.sync();
  }
}

/// Sums of distances between points of few coordinates, which stay in registers, like the sums. A
/// thread has Rows points x; it meets the points y of a run, with their weights, in shared memory.
template <class T, int Coordinates, int Sums>
struct few_shape {
  using tile = kernel_shape<T>;
  static constexpr int threads = 128;
  static constexpr int rows = (sizeof(T) == 4 ? 4 : 2) / (Sums > 1 ? 2 : 1);
  static constexpr int width = (Coordinates + Sums + tile::lot - 1) / tile::lot * tile::lot;
  static constexpr int block_rows = threads * rows;
  static constexpr int memory = tile::rows * width;  // elements

  static constexpr index_t blocks(index_t x_tiles) {
    return (x_tiles * tile::rows + block_rows - 1) / block_rows;
  }
};

/// A block: its points x in segments [first, last).
template <class T, int Coordinates, int Sums, class Lanes>
SUBSPAN_DEVICE void sum_few(Lanes const& lanes, T* memory, kernel_job<T> const& job, index_t block,
                            index_t first, index_t last) {
  using shape = few_shape<T, Coordinates, Sums>;
  using lot = lot_of<T>;
  constexpr int panel = kernel_shape<T>::rows;
  index_t const blocks = shape::blocks(job.x_tiles), matrix = block / blocks;
  index_t const begin = block % blocks * shape::block_rows + lanes.rank();
  index_t tile[shape::rows];
  int lane[shape::rows];
  T x[shape::rows][Coordinates];
  SUBSPAN_UNROLL
  for (int r = 0; r < shape::rows; ++r) {
    index_t const i = begin + r * shape::threads;
    bool const there = i / panel < job.x_tiles;
    tile[r] = there ? matrix * job.x_tiles + i / panel : -1;
    lane[r] = static_cast<int>(i % panel);
    SUBSPAN_UNROLL
    for (int c = 0; c < Coordinates; ++c)
      x[r][c] = there ? job.x[(tile[r] * Coordinates + c) * panel + lane[r]] : T(0);
  }
  double total[shape::rows][Sums] = {};
  SUBSPAN_NO_UNROLL
  for (index_t segment = first; segment < last; ++segment) {
    double sum[shape::rows][Sums] = {};
    SUBSPAN_NO_UNROLL
    for (index_t run = job.first_run(segment); run < job.last_run(segment); ++run) {
      index_t const at = matrix * job.y_tiles + run;
      T const* const y = job.y + at * Coordinates * panel;
      T const* const v = job.y_more + at * Sums * panel;
      lanes.sync();
      SUBSPAN_NO_UNROLL
      for (int e = lanes.rank(); e < panel * (Coordinates + Sums); e += shape::threads)
        memory[e % panel * shape::width + e / panel] =
            e < Coordinates * panel ? y[e] : v[e - Coordinates * panel];
      lanes.sync();
      int const count = job.count_of(run);
      T part[shape::rows][Sums] = {};
      with_function<T>(job.sizes.how, [&](auto f) {
        SUBSPAN_UNROLL_4
        for (int j = 0; j < count; ++j) {
          T point[shape::width];
          SUBSPAN_UNROLL
          for (int q = 0; q < shape::width; q += lot::size) {
            lot const four = *reinterpret_cast<lot const*>(memory + j * shape::width + q);
            SUBSPAN_UNROLL
            for (int p = 0; p < lot::size; ++p) point[q + p] = four.at[p];
          }
          SUBSPAN_UNROLL
          for (int r = 0; r < shape::rows; ++r) {
            T score = 0;
            SUBSPAN_UNROLL
            for (int c = 0; c < Coordinates; ++c) {
              T const apart = x[r][c] - point[c];
              score += apart * apart;
            }
            T const value = f.value(score);
            SUBSPAN_UNROLL
            for (int k = 0; k < Sums; ++k) part[r][k] += value * point[Coordinates + k];
          }
        }
      });
      SUBSPAN_UNROLL
      for (int r = 0; r < shape::rows; ++r) {
        SUBSPAN_UNROLL
        for (int k = 0; k < Sums; ++k) sum[r][k] += static_cast<double>(part[r][k]);
      }
    }
    SUBSPAN_UNROLL
    for (int r = 0; r < shape::rows; ++r) {
      SUBSPAN_UNROLL
      for (int k = 0; k < Sums; ++k) {
        total[r][k] += sum[r][k];
        if (job.in_parts() && tile[r] >= 0)
          job.sums_of(tile[r], segment + 1)[k * panel + lane[r]] = sum[r][k];
      }
    }
  }
  SUBSPAN_UNROLL
  for (int r = 0; r < shape::rows; ++r) {
    SUBSPAN_UNROLL
    for (int k = 0; k < Sums; ++k)
      if (!job.in_parts() && tile[r] >= 0)
        job.sums_of(tile[r], 0)[k * panel + lane[r]] = total[r][k];
  }
}

}  // namespace subspan::gpu
