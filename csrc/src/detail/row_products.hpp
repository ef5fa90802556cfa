#pragma once

/// sum w (x - mean_x)(y - mean_y)^T over rows, in one pass: what Moments are made of.

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

#include "detail/contract.hpp"
#include "detail/parallel.hpp"
#include "detail/product_tile.hpp"
#include "detail/workspace.hpp"
#include "subspan/view.hpp"

namespace subspan::detail {

/// The kernels of one instruction-set level that reading rows of T takes.
template <class T>
struct row_kernels {
  product_kernels<float> single;
  product_kernels<double> exact;
  /// One strided row to a contiguous one.
  void (*widen_single)(T const* in, index_t stride, index_t n, float* out);
  void (*widen_double)(T const* in, index_t stride, index_t n, double* out);

  template <class P>
  auto widen() const {
    if constexpr (std::is_same_v<P, float>)
      return widen_single;
    else
      return widen_double;
  }
};

inline constexpr index_t k_slice = 256;  // rows whose products are summed in P
inline constexpr index_t k_block_bytes = 6
                                         << 20;  // packed rows of a block; two blocks are in flight
inline constexpr index_t k_group = 4;            // panels on each side of one task
inline constexpr index_t k_records = 64;         // blocks between two corrections

inline index_t round_up(index_t n, index_t unit) { return (n + unit - 1) / unit * unit; }
inline index_t slices_of(index_t rows) { return (rows + k_slice - 1) / k_slice; }

/// The rows' weights, checked, and what they sum to.
struct row_weights {
  std::optional<strided_view<double const, 1>> view;
  index_t count = 0;
  double sum = 0, square_sum = 0;

  row_weights(char const* function, std::optional<strided_view<double const, 1>> weights, index_t n)
      : view(weights) {
    if (!view) {
      count = n;
      sum = square_sum = static_cast<double>(n);
      return;
    }
    for (index_t i = 0; i < n; ++i) {
      double const w = (*view)(i);
      expects(w >= 0 && w <= std::numeric_limits<double>::max(), function,
              "weights must be finite and >= 0, got ", w, " in row ", i);
      count += w > 0;
      sum += w;
      square_sum += w * w;
    }
    expects(std::isfinite(square_sum), function,
            "weights must have squares whose sum float64 can hold, got a sum of weights of ", sum);
  }
  double operator[](index_t i) const { return view ? (*view)(i) : 1.0; }
};

/// One factor of the product: rows of a matrix, packed block by block around a shift.
template <class T>
class operand {
 public:
  operand(context const& ctx, row_kernels<T> const& kernels, strided_view<T const, 2> rows,
          index_t padded, index_t slices)
      : rows(rows),
        d(rows.shape[1]),
        padded(padded),
        shift(ctx, d),
        offset(ctx, d),
        sums_(ctx, slices * d),
        squares_(ctx, slices * d),
        rounded_(ctx, d),
        kernels_(kernels),
        ctx_(ctx) {}

  /// A first guess of the mean, from up to 64 rows spread over the first block.
  void guess_shift(row_weights const& weights, index_t block_rows) {
    index_t const n = std::min(rows.shape[0], block_rows), step = std::max<index_t>(1, n / 64);
    workspace<double> row(ctx_, d);
    std::fill_n(shift.data(), d, 0.0);
    double total = 0;
    for (index_t i = 0; i < n; i += step) {
      if (weights[i] == 0) continue;
      kernels_.widen_double(&rows(i, 0), rows.strides[1], d, row.data());
      total += 1;
      for (index_t j = 0; j < d; ++j) shift[j] += (row[j] - shift[j]) / total;
    }
    // A non-finite guess would poison every row; what is wrong is found where rows are packed.
    for (index_t j = 0; j < d; ++j)
      if (!std::isfinite(shift[j])) shift[j] = 0;
  }

  /// Packing of one block: begin, every slice (on any thread), end.
  template <class P>
  void begin_pack() {
    for (index_t j = 0; j < d; ++j) {
      rounded<P>()[j] = static_cast<P>(shift[j]);
      shift[j] = static_cast<double>(rounded<P>()[j]);  // so that x - shift is rounded once
    }
  }

  /// Packs slice s of rows begin..end into `panels` ([slice][panel][k_slice][width]).
  template <class P>
  void pack(product_kernels<P> const& kernels, row_weights const& weights, index_t begin,
            index_t end, index_t s, P* panels) {
    index_t const first = begin + s * k_slice;
    pack_slice(kernels, weights, first, std::min(first + k_slice, end),
               panels + s * k_slice * padded, sums_.data() + s * d, squares_.data() + s * d);
  }

  /// True if the block is fit for products in P around this shift.
  template <class P>
  bool end_pack(product_kernels<P> const& kernels, row_weights const& weights, index_t begin,
                index_t end, P const* panels) {
    for (index_t s = 1; s < slices_of(end - begin); ++s)
      for (index_t j = 0; j < d; ++j) {
        sums_[j] += sums_[s * d + j];
        squares_[j] += squares_[s * d + j];
      }
    block_weight = 0;
    for (index_t i = begin; i < end; ++i) block_weight += weights[i];
    return judge(kernels, end - begin, panels);
  }

  /// The sums say that this block's mean is `offset` away from the shift.
  void move_shift() {
    for (index_t j = 0; j < d; ++j) shift[j] += offset[j];
  }

  strided_view<T const, 2> rows;
  index_t d, padded;
  workspace<double> shift;   // [d] the packed rows are x - shift
  workspace<double> offset;  // [d] mean of the block minus shift
  double block_weight = 0;
  bool drifted = false, out_of_range = false;

 private:
  template <class P>
  void pack_slice(product_kernels<P> const& kernels, row_weights const& weights, index_t begin,
                  index_t end, P* panels, double* sum, double* square) {
    P const* const shift_p = rounded<P>();
    constexpr index_t k_rows = 32;  // rows whose sums are taken in P
    constexpr bool direct = std::is_same_v<T, P>;
    bool const copy = !direct || rows.strides[1] != 1;
    workspace<P> widened(ctx_, copy ? 4 * d : 0);
    workspace<P> partial(ctx_, 2 * d);
    std::fill_n(sum, d, 0.0);
    std::fill_n(square, d, 0.0);
    for (index_t r0 = begin; r0 < end; r0 += k_rows) {
      std::fill_n(partial.data(), 2 * d, P(0));
      index_t const r1 = std::min(r0 + k_rows, end);
      for (index_t r = r0; r < r1; r += 4) {
        int const count = static_cast<int>(std::min<index_t>(4, r1 - r));
        row_quad<P> quad{};
        for (int i = 0; i < count; ++i) {
          double const w = weights[r + i];
          T const* row = rows.data + (r + i) * rows.strides[0];
          quad.scale[i] = static_cast<P>(std::sqrt(w));
          quad.row[i] = shift_p;
          if (w == 0) continue;
          if constexpr (direct)
            if (!copy) quad.row[i] = row;
          if (copy) {
            kernels_.template widen<P>()(row, rows.strides[1], d, widened.data() + i * d);
            quad.row[i] = widened.data() + i * d;
          }
        }
        kernels.pack(quad, count, d, shift_p, panels, k_slice * kernels.width, r - begin,
                     partial.data(), partial.data() + d);
      }
      for (index_t j = 0; j < d; ++j) {
        sum[j] += static_cast<double>(partial[j]);
        square[j] += static_cast<double>(partial[d + j]);
      }
    }
  }

  /// Products in float need every column in a range whose squares neither overflow nor vanish, and
  /// a shift near the mean, or digits cancel in the correction by the mean.
  template <class P>
  bool judge(product_kernels<P> const& kernels, index_t count, P const* panels) {
    constexpr double low = sizeof(P) == 4 ? 0x1p-80 : 0, high = sizeof(P) == 4 ? 0x1p80 : 0x1p1000;
    drifted = out_of_range = false;
    for (index_t j = 0; j < d; ++j) {
      double const square = squares_[j] / static_cast<double>(count);
      offset[j] = block_weight > 0 ? sums_[j] / block_weight : 0;
      double const power = block_weight > 0 ? squares_[j] / block_weight : 0;
      drifted |= offset[j] * offset[j] > 0.8 * power;  // mean^2 > 4 variance
      bool const fits = square >= low && square <= high && std::isfinite(offset[j]);
      // All zeros is fine; squares that have vanished are not.
      if (!fits && !(square == 0 && is_zero(kernels, count, panels, j))) out_of_range = true;
    }
    return !drifted && !out_of_range;
  }

  template <class P>
  bool is_zero(product_kernels<P> const& kernels, index_t count, P const* panels, index_t j) const {
    for (index_t r = 0; r < count; ++r) {
      P const* const slice = panels + r / k_slice * k_slice * padded;
      index_t const width = kernels.width;
      if (slice[j / width * width * k_slice + r % k_slice * width + j % width] != 0) return false;
    }
    return true;
  }

  template <class P>
  P* rounded() const {
    return reinterpret_cast<P*>(rounded_.data());
  }

  workspace<double> sums_, squares_;  // [slices, d]
  workspace<double> rounded_;         // [d] of P: the shift as the kernels take it
  row_kernels<T> const& kernels_;
  context const& ctx_;
};

/// sum w (x - mean_x)(y - mean_y)^T over the rows of a call, in row lanes that are combined in
/// order, so that neither the threads nor their timing show in the bits.
template <class T>
class row_products {
 public:
  row_products(context const& ctx, row_kernels<T> const& kernels, char const* function,
               strided_view<T const, 2> x, std::optional<strided_view<T const, 2>> y,
               row_weights const& weights, bool in_double)
      : ctx_(ctx),
        kernels_(kernels),
        function_(function),
        weights_(weights),
        n_(x.shape[0]),
        symmetric_(!y),
        in_double_(in_double),
        unit_(kernels_.single.width),
        dx_(round_up(x.shape[1], unit_)),
        dy_(y ? round_up(y->shape[1], unit_) : dx_),
        tiles_(make_tiles()),
        lanes_(lane_count()),
        slices_(slice_count()),
        x_(ctx, kernels, x, dx_, slices_),
        sums_(ctx, lanes_ * dx_ * dy_),
        record_weight_(ctx, k_records),
        record_x_(ctx, k_records * 2 * x_.d) {
    std::fill_n(sums_.data(), lanes_ * dx_ * dy_, 0.0);
    if (y) {
      y_.emplace(ctx, kernels, *y, dy_, slices_);
      record_y_.emplace(ctx, k_records * 2 * y_->d);
    }
  }

  /// Runs over all rows; `weight`, `mean_x`, `mean_y` start as the state's and end as those of the
  /// state with these rows. The sums then hold what is to be added to the state's matrix.
  void run(double& weight, double* mean_x, double* mean_y) {
    x_.guess_shift(weights_, slices_ * k_slice);
    if (y_) y_->guess_shift(weights_, slices_ * k_slice);
    auto const keep = [&] {
      record();
      if (records_ == k_records) fold(weight, mean_x, mean_y);
    };
    if (in_double_)
      run_blocks(kernels_.exact, keep);
    else
      run_blocks(kernels_.single, keep);
    fold(weight, mean_x, mean_y);
    reduce_lanes();
  }

  /// Adds the sums to the state's matrix; throws before it touches it if they are not finite.
  void add_to(strided_view<double, 2> out) {
    index_t const rows = out.shape[0], columns = out.shape[1];
    bool finite = true;
    for (index_t i = 0; i < rows; ++i) {
      double const* const row = sums_.data() + i * dy_;
      double sum = 0;  // not finite if one of them is not; an overflow of the sum is as bad
#pragma omp simd reduction(+ : sum)
      for (index_t j = symmetric_ ? i : 0; j < columns; ++j) sum += std::abs(row[j]);
      finite &= std::isfinite(sum);
    }
    expects(finite, function_,
            "x must have squares that float64 can hold (|x| < 1e150), got larger values. "
            "Scale the data");
    // In square tiles, so that the lower half, which mirrors the upper one, is read in runs, too.
    constexpr index_t k_tile = 64;
    index_t const stride = out.strides[0];
    parallel_for(ctx_, rows, k_tile, [&](index_t i0, index_t i1) {
      for (index_t j0 = 0; j0 < columns; j0 += k_tile) {
        index_t const j1 = std::min(j0 + k_tile, columns);
        for (index_t i = i0; i < i1; ++i) {
          double* const target = out.data + i * stride;
          index_t const mirrored = symmetric_ ? std::clamp(i, j0, j1) : j0;
          for (index_t j = j0; j < mirrored; ++j) target[j] += sums_[j * dy_ + i];
          double const* const row = sums_.data() + i * dy_;
#pragma omp simd
          for (index_t j = mirrored; j < j1; ++j) target[j] += row[j];
        }
      }
    });
  }

 private:
  index_t groups(index_t padded) const { return (padded / unit_ + k_group - 1) / k_group; }

  /// A group of panels of x and one of y; in the symmetric case the upper triangle, its diagonal
  /// last: those are the small ones, and they even out the threads.
  struct tile {
    index_t x, y;
  };

  std::vector<tile> make_tiles() const {
    std::vector<tile> tiles;
    for (bool const diagonal : {false, true})
      for (index_t x = 0; x < groups(dx_); ++x)
        for (index_t y = symmetric_ ? x : 0; y < groups(dy_); ++y)
          if (diagonal == (symmetric_ && x == y)) tiles.push_back({x, y});
    return tiles;
  }

  /// Few columns give few tiles: then rows are dealt to several lanes, too, so that many cores find
  /// work. A function of the shapes only, never of the threads; the sums stay under 32 MiB.
  index_t lane_count() const {
    index_t const tasks = static_cast<index_t>(tiles_.size()),
                  fit = (index_t{32} << 20) / (8 * dx_ * dy_);
    index_t const most = std::max<index_t>(1, std::min(fit, slices_of(n_)));
    return std::clamp<index_t>(24 / tasks, 1, most);
  }

  index_t slice_count() const {
    index_t const bytes = k_slice * (symmetric_ ? dx_ : dx_ + dy_) * (in_double_ ? 8 : 4);
    index_t const slices = std::clamp<index_t>(k_block_bytes / bytes, 1, 256);
    index_t const whole = std::max<index_t>(1, slices_of(n_));
    return std::min(round_up(slices, lanes_), whole);
  }

  /// Packed rows of one block of both factors.
  template <class P>
  struct packed {
    packed(row_products const& self, index_t slices)
        : x(self.ctx_, slices * k_slice * self.dx_),
          y(self.ctx_, self.symmetric_ ? 0 : slices * k_slice * self.dy_) {
      // Columns behind the last real one are never packed; they must read as zeros.
      if (self.x_.d != self.dx_) std::fill_n(x.data(), slices * k_slice * self.dx_, P(0));
      if (self.y_ && self.y_->d != self.dy_)
        std::fill_n(y.data(), slices * k_slice * self.dy_, P(0));
    }
    P const* right() const { return y.data() != nullptr ? y.data() : x.data(); }
    workspace<P> x, y;
  };

  /// While one block is multiplied the next one is packed, so that no thread waits for the other
  /// kind of work: packing is bound by memory, multiplying by arithmetic.
  template <class P, class Keep>
  void run_blocks(product_kernels<P> const& kernels, Keep&& keep) {
    index_t const step = slices_ * k_slice;
    bool const single = n_ <= step;
    packed<P> blocks[2] = {packed<P>(*this, slices_), packed<P>(*this, single ? 0 : slices_)};
    std::optional<packed<double>> wide;  // for blocks whose range products in float would leave
    bool fit = multiply_and_pack(kernels, nullptr, 0, 0, blocks[0], 0, std::min(step, n_));
    for (index_t begin = 0, b = 0; begin < n_; begin += step, b ^= 1) {
      index_t const end = std::min(begin + step, n_), next = std::min(end + step, n_);
      if (!fit) {
        if (std::is_same_v<P, double>) report_nonfinite(begin, end);
        auto const& exact = kernels_.exact;
        if (!wide) wide.emplace(*this, slices_);
        if (!multiply_and_pack(exact, nullptr, 0, 0, *wide, begin, end))
          report_nonfinite(begin, end);
        keep();
        multiply_and_pack(exact, &*wide, begin, end, *wide, end, end);
        fit = multiply_and_pack(kernels, nullptr, 0, 0, blocks[b ^ 1], end, next);
        continue;
      }
      keep();
      fit = multiply_and_pack(kernels, &blocks[b], begin, end, blocks[b ^ 1], end, next);
    }
  }

  /// Adds the products of a packed block (if any) and packs rows next_begin..next_end (if any);
  /// false if these do not fit products in P.
  template <class P>
  bool multiply_and_pack(product_kernels<P> const& kernels,
                         std::type_identity_t<packed<P>> const* ready, index_t begin, index_t end,
                         packed<P>& next, index_t next_begin, index_t next_end) {
    index_t const tasks = ready != nullptr ? static_cast<index_t>(tiles_.size()) * lanes_ : 0;
    index_t const slices = slices_of(next_end - next_begin);
    x_.template begin_pack<P>();
    if (y_) y_->template begin_pack<P>();
    parallel_for(ctx_, tasks + slices, 1, [&](index_t at, index_t) {
      if (at < tasks) {
        multiply_tile(kernels, end - begin, ready->x.data(), ready->right(),
                      tiles_[static_cast<std::size_t>(at / lanes_)], at % lanes_, lanes_);
        return;
      }
      x_.pack(kernels, weights_, next_begin, next_end, at - tasks, next.x.data());
      if (y_) y_->pack(kernels, weights_, next_begin, next_end, at - tasks, next.y.data());
    });
    if (slices == 0) return true;
    return settle(x_, kernels, next_begin, next_end, next.x.data()) &&
           (!y_ || settle(*y_, kernels, next_begin, next_end, next.y.data()));
  }

  /// Judges a packed block, and packs it again around its own mean if that has moved.
  template <class P>
  bool settle(operand<T>& side, product_kernels<P> const& kernels, index_t begin, index_t end,
              P* panels) {
    if (side.end_pack(kernels, weights_, begin, end, panels)) return true;
    if (side.out_of_range) return false;
    side.move_shift();
    side.template begin_pack<P>();
    parallel_for(ctx_, slices_of(end - begin), 1,
                 [&](index_t s, index_t) { side.pack(kernels, weights_, begin, end, s, panels); });
    side.end_pack(kernels, weights_, begin, end, panels);
    return !side.out_of_range;
  }

  /// The products of one group of panels with another, over the slices of one lane.
  template <class P>
  void multiply_tile(product_kernels<P> const& kernels, index_t rows, P const* px, P const* py,
                     tile const& where, index_t lane, index_t lanes) {
    index_t const span = k_group * (unit_ / kernels.width);  // panels of P in a group
    index_t const x1 = std::min((where.x + 1) * span, dx_ / kernels.width);
    index_t const y1 = std::min((where.y + 1) * span, dy_ / kernels.width);
    double* const out = sums_.data() + lane * dx_ * dy_;
    for (index_t s = lane; s < slices_of(rows); s += lanes) {
      index_t const depth = std::min(k_slice, rows - s * k_slice);
      for (index_t j = where.y * span; j < y1; ++j)
        for (index_t i = where.x * span; i < (symmetric_ ? std::min(x1, j + 1) : x1); ++i) {
          P const* const left = px + (s * dx_ + i * kernels.width) * k_slice;
          P const* const right = py + (s * dy_ + j * kernels.width) * k_slice;
          for (int part = 0; part < kernels.width; part += kernels.tile_rows)
            kernels.multiply(depth, left + part, right,
                             out + (i * kernels.width + part) * dy_ + j * kernels.width, dy_);
        }
    }
  }

  /// Remembers weight, mean and offset of the block that was just added.
  void record() {
    if (x_.block_weight == 0) return;
    record_weight_[records_] = x_.block_weight;
    auto const keep = [&](operand<T>& side, workspace<double>& rows) {
      double* const row = rows.data() + records_ * 2 * side.d;
      for (index_t j = 0; j < side.d; ++j) {
        row[j] = side.offset[j];
        row[side.d + j] = side.shift[j] + side.offset[j];
      }
      // The next block is likely to have much the same mean.
      side.move_shift();
    };
    keep(x_, record_x_);
    if (y_) keep(*y_, *record_y_);
    ++records_;
  }

  /// What the blocks' own shifts and means are owed, as one product of few rows in float64:
  /// - W_b off_b off_b^T turns products around the shift into products around the block's mean;
  /// + W_b (m_b - m)(m_b - m)^T for each block and for the state so far is Chan's merge.
  void fold(double& weight, double* mean_x, double* mean_y) {
    if (records_ == 0) return;
    double total = weight;
    for (index_t b = 0; b < records_; ++b) total += record_weight_[b];
    auto const& kernels = kernels_.exact;
    index_t const depth = 2 * records_ + 1;
    static_assert(2 * k_records + 1 <= k_slice);
    workspace<double> left(ctx_, k_slice * dx_), right(ctx_, k_slice * dy_);
    // Only the left factor carries the signed weights.
    fill_correction(x_, record_x_, weight, total, mean_x, kernels.width, left.data(), true);
    if (symmetric_)
      fill_correction(x_, record_x_, weight, total, mean_x, kernels.width, right.data(), false);
    else
      fill_correction(*y_, *record_y_, weight, total, mean_y, kernels.width, right.data(), false);
    update_mean(x_, record_x_, weight, total, mean_x);
    if (y_) update_mean(*y_, *record_y_, weight, total, mean_y);
    parallel_for(ctx_, static_cast<index_t>(tiles_.size()), 1, [&](index_t at, index_t) {
      multiply_tile(kernels, depth, left.data(), right.data(), tiles_[static_cast<std::size_t>(at)],
                    0, 1);
    });
    weight = total;
    records_ = 0;
  }

  /// Mean of state and records at column j, relative to the first of them that has weight.
  double merged_mean(operand<T> const& side, workspace<double> const& rows, double weight,
                     double total, double const* mean, index_t j) const {
    double const reference = weight > 0 ? mean[j] : rows[side.d + j];
    double moved = 0;
    for (index_t b = 0; b < records_; ++b)
      moved += record_weight_[b] * (rows[b * 2 * side.d + side.d + j] - reference);
    return reference + moved / total;
  }

  void update_mean(operand<T> const& side, workspace<double> const& rows, double weight,
                   double total, double* mean) const {
    for (index_t j = 0; j < side.d; ++j) mean[j] = merged_mean(side, rows, weight, total, mean, j);
  }

  void fill_correction(operand<T> const& side, workspace<double> const& rows, double weight,
                       double total, double const* mean, index_t width, double* panels,
                       bool weighted) const {
    std::fill_n(panels, k_slice * side.padded, 0.0);
    for (index_t j = 0; j < side.d; ++j) {
      double const m = merged_mean(side, rows, weight, total, mean, j);
      double* const column = panels + j / width * width * k_slice + j % width;
      for (index_t b = 0; b < records_; ++b) {
        double const w = weighted ? record_weight_[b] : 1;
        column[2 * b * width] = (weighted ? -w : w) * rows[b * 2 * side.d + j];
        column[(2 * b + 1) * width] = w * (rows[b * 2 * side.d + side.d + j] - m);
      }
      if (weight > 0) column[2 * records_ * width] = (weighted ? weight : 1) * (mean[j] - m);
    }
  }

  void reduce_lanes() {
    index_t const size = dx_ * dy_;
    parallel_for(ctx_, size, 1 << 15, [&](index_t begin, index_t end) {
      for (index_t lane = 1; lane < lanes_; ++lane)
        for (index_t i = begin; i < end; ++i) sums_[i] += sums_[lane * size + i];
    });
  }

  [[noreturn]] void report_nonfinite(index_t begin, index_t end) const {
    auto const look = [&](char const* name, operand<T> const& side) {
      for (index_t i = begin; i < end; ++i) {
        if (weights_[i] == 0) continue;
        for (index_t j = 0; j < side.d; ++j) {
          double value = 0;
          kernels_.widen_double(&side.rows(i, j), 1, 1, &value);
          expects(std::isfinite(value), function_, name, " must be finite, got ",
                  std::isnan(value) ? "NaN" : "infinity", " in row ", i, ", column ", j,
                  ". Drop the row, or give it weight 0");
        }
      }
    };
    look("x", x_);
    if (y_) look("y", *y_);
    fail(error_kind::invalid_argument, function_,
         "x must have squares that float64 can hold (|x| < 1e150), got larger values. "
         "Scale the data");
  }

  context const& ctx_;
  row_kernels<T> const& kernels_;
  char const* function_;
  row_weights const& weights_;
  index_t n_;
  bool symmetric_, in_double_;
  index_t unit_, dx_, dy_;
  std::vector<tile> tiles_;
  index_t lanes_, slices_;
  operand<T> x_;
  std::optional<operand<T>> y_;
  workspace<double> sums_;  // [lane, dx, dy]
  index_t records_ = 0;
  workspace<double> record_weight_, record_x_;  // [record], [record, 2, d]: offset, mean
  std::optional<workspace<double>> record_y_;
};

}  // namespace subspan::detail
