#pragma once

#include <cmath>
#include <type_traits>

#include "detail/device_storage.hpp"

/// The bodies of the kernels in pca.cu: weights, column sums, products of rows, their total. What
/// they add up is added in an order that the shapes alone decide, so that bits are fixed.

namespace subspan::gpu {

SUBSPAN_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
SUBSPAN_DEVICE bool is_finite(double v) { return v - v == 0; }

/// Where a thread that is to load the pack at `column` of a row does so. `Aligned`: rows start at
/// multiples of 16 bytes and hold whole packs, so a pack beyond the last column has the last instead.
template <bool Aligned, class T>
SUBSPAN_DEVICE int pack_column(int column, int columns) {
  return Aligned ? smaller(column, columns - pack<T>::width) : column;
}

/// The pack at `at`, of which `left` elements are in the row; the others have no meaning.
template <bool Aligned, class T>
SUBSPAN_DEVICE pack<T> load_pack(T const* at, int left) {
  if constexpr (Aligned) {
    return *reinterpret_cast<pack<T> const*>(at);
  } else {
    pack<T> out = {};
    SUBSPAN_UNROLL
    for (int e = 0; e < pack<T>::width; ++e)
      if (e < left) out.at[e] = at[e];
    return out;
  }
}

/// The sum over c < count of value(c) by `parts` warps, in an order that depends on count and parts
/// only. Lane l of warps p, p + 1, ..., p + parts - 1 (p a multiple of parts) hand in the same; the
/// first of these warps returns the sum. `memory`: one double per thread.
template <class Lanes, class Value>
SUBSPAN_DEVICE double sum_in_parts(Lanes const& lanes, double* memory, index_t count, int parts,
                                   Value const& value) {
  double sum = 0;
  int const part = lanes.warp() % parts;
  for (index_t c = part; c < count; c += parts) sum += value(c);
  memory[lanes.rank()] = sum;
  lanes.sync();
  for (int p = 1; part == 0 && p < parts; ++p) sum += memory[lanes.rank() + p * k_warp];
  return sum;
}

/// Rows first, first + pace, ...: scale = sqrt(w), report(row) for a bad weight, and into sums the
/// number of weights > 0, their sum, the sum of their squares. `memory`: 32 doubles.
template <class P, class Lanes, class Report>
SUBSPAN_DEVICE void weigh_rows(Lanes const& lanes, double* memory, double const* weights, index_t n,
                               index_t first, index_t pace, P* scale, double* sums,
                               Report const& report) {
  double part[3] = {};
  for (index_t i = first; i < n; i += pace) {
    double const w = weights[i];
    if (!(w >= 0) || !is_finite(w)) report(i);
    scale[i] = static_cast<P>(std::sqrt(w));
    part[0] += w > 0;
    part[1] += w;
    part[2] += w * w;
  }
  block_team const team(lanes, memory);
  for (int s = 0; s < 3; ++s) {
    double const sum = team.sum(part[s]);
    if (lanes.rank() == 0) sums[s] = sum;
  }
}

/// sums[j] = sum w x[., j] over rows begin..end for one strip of `across` packs (a power of two, at
/// most 32); report(row, column) for the first non-finite element of a column that each thread
/// meets in a row of positive weight. `memory`: one pack<T>::width of doubles per thread.
template <bool Aligned, class T, class Lanes, class Report>
SUBSPAN_DEVICE void sum_columns(Lanes const& lanes, double* memory, row_view<T> const& x,
                                double const* weights, int across, int strip, index_t begin,
                                index_t end, double* sums, Report const& report) {
  constexpr int width = pack<T>::width, ahead = 4;  // loads in flight
  int const columns = static_cast<int>(x.columns), strip_begin = strip * across * width;
  int const column = strip_begin + lanes.rank() % across * width;
  int const pace = lanes.size() / across;
  index_t const first = begin + lanes.rank() / across;
  T const* const from = x.data + pack_column<Aligned, T>(column, columns);
  double sum[width] = {};
  for (index_t r = first; r < end; r += ahead * pace) {
    pack<T> part[ahead];
    double w[ahead];
    SUBSPAN_UNROLL
    for (int a = 0; a < ahead; ++a) {
      index_t const row = r + a * pace < end ? r + a * pace : r;
      part[a] = load_pack<Aligned>(from + row * x.stride, columns - column);
      w[a] = weights ? weights[row] : 1.0;
      if (row != r + a * pace) w[a] = 0;
    }
    SUBSPAN_UNROLL
    for (int a = 0; a < ahead; ++a) {
      if (w[a] == 0) part[a] = {};
      SUBSPAN_UNROLL
      for (int e = 0; e < width; ++e)
        sum[e] += w[a] * static_cast<double>(storage<T>::widen(part[a].at[e]));
    }
  }
  SUBSPAN_UNROLL
  for (int e = 0; e < width; ++e) {
    memory[lanes.rank() * width + e] = sum[e];
    if (is_finite(sum[e]) || column + e >= columns) continue;
    for (index_t r = first; r < end; r += pace) {
      double const v = static_cast<double>(storage<T>::widen(x.data[r * x.stride + column + e]));
      if (is_finite(v) || (weights && weights[r] == 0)) continue;
      report(r, column + e);
      break;
    }
  }
  lanes.sync();
  int const j = lanes.rank();
  if (j < across * width && strip_begin + j < columns) {
    double total = 0;
    for (int p = 0; p < pace; ++p) total += memory[p * across * width + j];
    sums[strip_begin + j] = total;
  }
}

/// A block's tile of the products, side x side. A warp is 4 x 8 threads, a thread has Rows x Columns
/// products, in packs; `blocks` of them share a multiprocessor.
template <class Product, int Side, int Rows, int Columns, int Blocks>
struct tile_shape {
  using P = Product;
  static constexpr int side = Side, rows = Rows, columns = Columns, blocks = Blocks;
  static constexpr int warp_rows = 4 * Rows, warp_columns = 8 * Columns;
  static constexpr int threads = k_warp * (Side / warp_rows) * (Side / warp_columns);
  static constexpr int depth = 16;            // rows in a stage
  static constexpr int stages = 256 / depth;  // whose products are summed in P alone
  static constexpr bool compensated = !std::is_same_v<P, double>;
  static constexpr int planes = compensated ? 2 : 1;  // of a tile in global memory
};
using large_tile = tile_shape<float, 128, 8, 8, 2>;
using small_tile = tile_shape<float, 64, 8, 8, 6>;
using double_tile = tile_shape<double, 64, 8, 4, 3>;

/// Shared memory of a block: two stages of both operands, and the sums so far.
template <class Shape>
struct tile_memory {
  using P = typename Shape::P;
  static constexpr int packs = Shape::rows * Shape::columns / pack<P>::width;
  pack<P> stage[2][2][Shape::depth][Shape::side / pack<P>::width];
  pack<P> shift[2][Shape::side / pack<P>::width];
  pack<P> high[Shape::compensated ? packs * Shape::threads : 1];
};

/// Tiles of the upper triangle in a row, column of tiles by column.
struct tile_place {
  int row, column;
};
SUBSPAN_DEVICE tile_place place_of_tile(int tile) {
  int column = 0;
  for (; tile > column; ++column) tile -= column + 1;
  return {tile, column};
}
SUBSPAN_DEVICE index_t tile_of_place(tile_place at) {
  return static_cast<index_t>(at.column) * (at.column + 1) / 2 + at.row;
}

/// One thread's share of a tile over rows begin..end. For each stage: the next stage's rows come
/// from global memory to registers, the products of this one are added, the next goes, shifted and
/// scaled, to shared memory. Columns beyond the last and rows of scale 0 do no harm, even as NaN.
template <class Shape, bool Aligned, class T, class Lanes>
class tile_products {
  using P = typename Shape::P;
  static constexpr int width = pack<T>::width, lot = pack<P>::width;
  static constexpr int across = Shape::side / width, step = Shape::threads / across;
  // A stage passes through the registers in up to two turns, which takes half the registers.
  static constexpr int phases = Shape::depth / step > 2 ? 2 : 1;
  static constexpr int phase_depth = Shape::depth / phases, loads = phase_depth / step;
  static_assert(Shape::threads % across == 0 && Shape::depth % step == 0 && width % lot == 0);

 public:
  SUBSPAN_DEVICE tile_products(Lanes const& lanes, tile_memory<Shape>& memory, row_view<T> const& x,
                               P const* scale, P const* shift, int tile, index_t begin, index_t end)
      : lanes_(lanes),
        memory_(memory),
        stride_(x.stride),
        columns_(static_cast<int>(x.columns)),
        rows_(static_cast<int>(end - begin)),
        scale_(scale ? scale + begin : nullptr) {
    tile_place const at = place_of_tile(tile);
    i0_ = at.row * Shape::side;
    j0_ = at.column * Shape::side;
    int const from = pack_column<Aligned, T>(i0_ + load_column(), columns_);
    for (int l = 0; l < phases * loads; ++l)
      at_[l] = x.data + (begin + smaller(load_row() + l * step, rows_ - 1)) * stride_ + from;
    apart_ = pack_column<Aligned, T>(j0_ + load_column(), columns_) - from;
    // Lanes that differ in bit 0 share rows, in bit 1 columns: 16-byte loads of the operands then
    // take half as many turns.
    constexpr int down = Shape::side / Shape::warp_rows;
    int const top = lanes.warp() % down * Shape::warp_rows;
    int const left = lanes.warp() / down * Shape::warp_columns, lane = lanes.lane();
    row_ = top + ((lane >> 1 & 1) | (lane >> 3 & 2)) * lot;
    column_ = left + ((lane & 1) | (lane >> 1 & 6)) * lot;
    live_ = i0_ + top < columns_ && j0_ + left < columns_ &&
            i0_ + top < j0_ + left + Shape::warp_columns;
    for (int e = lanes.rank(); e < 2 * Shape::side; e += Shape::threads) {
      int const side = e / Shape::side, c = e % Shape::side;
      memory.shift[side][c / lot].at[c % lot] =
          shift[smaller((side ? j0_ : i0_) + c, columns_ - 1)];
    }
    if constexpr (Shape::compensated)
      for (int v = 0; v < tile_memory<Shape>::packs; ++v) high(v) = {};
    lanes.sync();
  }

  SUBSPAN_DEVICE void run() {
    int const stages = (rows_ + Shape::depth - 1) / Shape::depth;
    SUBSPAN_UNROLL
    for (int phase = 0; phase < phases; ++phase) {
      fetch(0, phase);
      deposit(0, phase);
    }
    lanes_.sync();
    SUBSPAN_NO_UNROLL
    for (int stage = 0; stage < stages;) {
      int const end = smaller(stage + Shape::stages, stages);
      SUBSPAN_NO_UNROLL
      for (; stage < end; ++stage) {
        SUBSPAN_UNROLL
        for (int phase = 0; phase < phases; ++phase) {
          fetch(stage + 1, phase);  // one too many: rows of scale 0
          if (live_) multiply(stage % 2, phase);
          deposit((stage + 1) % 2, phase);
        }
        lanes_.sync();
      }
      if constexpr (Shape::compensated) flush();
    }
  }

  /// To this tile's planes [side, side]: the sums and, where they are compensated, `high`.
  SUBSPAN_DEVICE void store(P* out) {
    if (!live_) return;
    SUBSPAN_UNROLL
    for (int v = 0; v < tile_memory<Shape>::packs; ++v) {
      int const r = v * lot / Shape::columns, c = v * lot % Shape::columns;
      int const row = row_ + r / lot * 4 * lot + r % lot, column = column_ + c * 8;
      P* const at = out + row * Shape::side + column;
      pack<P> low;
      SUBSPAN_UNROLL
      for (int e = 0; e < lot; ++e) low.at[e] = sum_[r][c + e];
      *reinterpret_cast<pack<P>*>(at) = low;
      if constexpr (Shape::compensated)
        *reinterpret_cast<pack<P>*>(at + Shape::side * Shape::side) = high(v);
    }
  }

 private:
  /// Of this thread alone.
  SUBSPAN_DEVICE pack<P>& high(int v) const {
    return memory_.high[v * Shape::threads + lanes_.rank()];
  }

  SUBSPAN_DEVICE bool diagonal() const { return i0_ == j0_; }
  SUBSPAN_DEVICE int load_column() const { return lanes_.rank() % across * width; }
  SUBSPAN_DEVICE int load_row() const { return lanes_.rank() / across; }

  SUBSPAN_DEVICE void fetch(int stage, int phase) {
    SUBSPAN_UNROLL
    for (int l = 0; l < loads; ++l) {
      int const row = stage * Shape::depth + phase * phase_depth + load_row() + l * step;
      T const*& at = at_[phase * loads + l];
      raw_[0][l] = load_pack<Aligned>(at, columns_ - i0_ - load_column());
      if (!diagonal()) raw_[1][l] = load_pack<Aligned>(at + apart_, columns_ - j0_ - load_column());
      if (row + Shape::depth < rows_) at += Shape::depth * stride_;
      P const scale = scale_ ? scale_[smaller(row, rows_ - 1)] : P(1);
      factor_[l] = row < rows_ ? scale : P(0);
    }
  }

  SUBSPAN_DEVICE void deposit(int buffer, int phase) {
    deposit_side(buffer, phase, 0);
    if (!diagonal()) deposit_side(buffer, phase, 1);
  }

  SUBSPAN_DEVICE void deposit_side(int buffer, int phase, int side) {
    int const column = load_column(), row = phase * phase_depth + load_row();
    SUBSPAN_UNROLL
    for (int p = 0; p < width / lot; ++p) {
      pack<P> const shift = memory_.shift[side][column / lot + p];
      SUBSPAN_UNROLL
      for (int l = 0; l < loads; ++l) {
        pack<P> out;
        SUBSPAN_UNROLL
        for (int e = 0; e < lot; ++e) {
          P const v = static_cast<P>(storage<T>::widen(raw_[side][l].at[p * lot + e]));
          out.at[e] = factor_[l] == 0 ? P(0) : (v - shift.at[e]) * factor_[l];
        }
        memory_.stage[buffer][side][row + l * step][column / lot + p] = out;
      }
    }
  }

  SUBSPAN_DEVICE void multiply(int buffer, int phase) {
    auto const* const left = &memory_.stage[buffer][0][0][row_ / lot];
    auto const* const right = &memory_.stage[buffer][diagonal() ? 0 : 1][0][column_ / lot];
    SUBSPAN_UNROLL
    for (int k = phase * phase_depth; k < (phase + 1) * phase_depth; ++k) {
      pack<P> a[Shape::rows / lot], b[Shape::columns / lot];
      SUBSPAN_UNROLL
      for (int v = 0; v < Shape::rows / lot; ++v) a[v] = left[k * (Shape::side / lot) + v * 4];
      SUBSPAN_UNROLL
      for (int v = 0; v < Shape::columns / lot; ++v) b[v] = right[k * (Shape::side / lot) + v * 8];
      SUBSPAN_UNROLL
      for (int r = 0; r < Shape::rows; ++r) {
        SUBSPAN_UNROLL
        for (int c = 0; c < Shape::columns; ++c)
          sum_[r][c] += a[r / lot].at[r % lot] * b[c / lot].at[c % lot];
      }
    }
  }

  /// Moves the sums to `high` and goes on with what it could not hold (Dekker's fast two-sum), so
  /// the pair is as good as float64 and the sums stay as small as those of few rows.
  SUBSPAN_DEVICE void flush() {
    SUBSPAN_UNROLL
    for (int v = 0; v < tile_memory<Shape>::packs; ++v) {
      pack<P> held = high(v);
      SUBSPAN_UNROLL
      for (int e = 0; e < lot; ++e) {
        P& low = sum_[(v * lot + e) / Shape::columns][(v * lot + e) % Shape::columns];
        P const total = held.at[e] + low;
        low -= total - held.at[e];
        held.at[e] = total;
      }
      high(v) = held;
    }
  }

  Lanes const& lanes_;
  tile_memory<Shape>& memory_;
  index_t stride_;
  int columns_, rows_, i0_, j0_, apart_, row_, column_;
  bool live_;
  T const* at_[phases * loads];  // what the thread loads next, in the chunk's rows
  P const* scale_;
  pack<T> raw_[2][loads];
  P factor_[loads];
  P sum_[Shape::rows][Shape::columns] = {};
};

/// m2[i, j] = m2[j, i] = the chunks' products in order - W (mean - shift)(mean - shift)^T, for 32
/// columns and warps / parts rows. `memory`: one double per thread.
template <class Shape, class Lanes>
SUBSPAN_DEVICE void finish_products(Lanes const& lanes, double* memory,
                                    typename Shape::P const* partial, index_t chunks, int parts,
                                    index_t block, index_t strip, int d, double total,
                                    double const* mean, typename Shape::P const* shift,
                                    double* m2) {
  constexpr int side = Shape::side;
  index_t const rows = lanes.warps() / parts;
  if (strip * k_warp + k_warp <= block * rows) return;  // below the diagonal
  index_t const i = block * rows + lanes.warp() / parts, j = strip * k_warp + lanes.lane();
  bool const wanted = i <= j && j < d;
  constexpr index_t area = index_t{side} * side, size = Shape::planes * area;
  index_t const tile = tile_of_place({static_cast<int>(i / side), static_cast<int>(j / side)});
  index_t const chunk = tile_of_place({0, (d + side - 1) / side}) * size;
  auto const* const first = partial + tile * size + i % side * side + j % side;
  auto const value = [=](index_t c) {
    double sum = first[c * chunk];
    if constexpr (Shape::compensated) sum += static_cast<double>(first[c * chunk + area]);
    return sum;
  };
  double const sum = sum_in_parts(lanes, memory, wanted ? chunks : 0, parts, value);
  if (!wanted || lanes.warp() % parts != 0) return;
  double const di = mean[i] - static_cast<double>(shift[i]);
  double const dj = mean[j] - static_cast<double>(shift[j]);
  m2[i * d + j] = m2[j * d + i] = sum - total * di * dj;
}

}  // namespace subspan::gpu
