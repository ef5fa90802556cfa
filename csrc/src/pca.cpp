#include "subspan/pca.hpp"

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "detail/batched.hpp"
#include "detail/cuda_table.hpp"
#include "detail/dtypes.hpp"
#include "detail/product_tile.hpp"

#define SUBSPAN_FILE "pca.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
#include "detail/product_tile.inl.hpp"
#include "detail/widen.inl.hpp"
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace subspan {
namespace cpu {
namespace {

using detail::parallel_for;
using detail::workspace;

constexpr index_t k_slice = 256;              // rows whose products are summed in P
constexpr index_t k_block_bytes = 6 << 20;    // packed rows in flight: stay in the shared cache
constexpr index_t k_group = 4;                // panels on each side of one task
constexpr index_t k_records = 64;             // blocks between two corrections

index_t round_up(index_t n, index_t unit) { return (n + unit - 1) / unit * unit; }

/// The rows' weights, checked, and what they sum to.
struct row_weights {
  std::optional<strided_view<double const, 1>> view;
  index_t count = 0;
  double sum = 0, square_sum = 0;

  row_weights(char const* function, std::optional<strided_view<double const, 1>> weights,
              index_t n)
      : view(weights) {
    if (!view) {
      count = n;
      sum = square_sum = static_cast<double>(n);
      return;
    }
    for (index_t i = 0; i < n; ++i) {
      double const w = (*view)(i);
      detail::expects(w >= 0 && w <= std::numeric_limits<double>::max(), function,
                      "weights must be finite and >= 0, got ", w, " in row ", i);
      count += w > 0;
      sum += w;
      square_sum += w * w;
    }
  }
  double operator[](index_t i) const { return view ? (*view)(i) : 1.0; }
};

/// One factor of the product: rows of a matrix, packed block by block around a shift.
template <class T>
class operand {
 public:
  operand(context const& ctx, strided_view<T const, 2> rows, index_t padded, index_t slices)
      : rows(rows),
        d(rows.shape[1]),
        padded(padded),
        shift(ctx, d),
        offset(ctx, d),
        sums_(ctx, slices * d),
        squares_(ctx, slices * d),
        ctx_(ctx) {}

  /// A first guess of the mean, from up to 64 rows spread over the first block.
  void guess_shift(row_weights const& weights, index_t block_rows) {
    index_t const n = std::min(rows.shape[0], block_rows), step = std::max<index_t>(1, n / 64);
    workspace<double> row(ctx_, d);
    std::fill_n(shift.data(), d, 0.0);
    double total = 0;
    for (index_t i = 0; i < n; i += step) {
      if (weights[i] == 0) continue;
      SUBSPAN_PICK(widen<T, double>)(&rows(i, 0), rows.strides[1], d, row.data());
      total += 1;
      for (index_t j = 0; j < d; ++j) shift[j] += (row[j] - shift[j]) / total;
    }
    // A non-finite guess would poison every row; what is wrong is found where rows are packed.
    for (index_t j = 0; j < d; ++j)
      if (!std::isfinite(shift[j])) shift[j] = 0;
  }

  /// Packs rows begin..end into `panels` ([slice][panel][k_slice][width]); true if the block is fit
  /// for products in P around this shift.
  template <class P>
  bool pack(detail::product_kernels<P> const& kernels, row_weights const& weights, index_t begin,
            index_t end, P* panels) {
    workspace<P> shift_p(ctx_, d);
    for (index_t j = 0; j < d; ++j) {
      shift_p[j] = static_cast<P>(shift[j]);
      shift[j] = static_cast<double>(shift_p[j]);  // so that x - shift is rounded once
    }
    index_t const slices = (end - begin + k_slice - 1) / k_slice;
    parallel_for(ctx_, slices, 1, [&](index_t s, index_t) {
      index_t const first = begin + s * k_slice;
      pack_slice(kernels, weights, first, std::min(first + k_slice, end), shift_p.data(),
                 panels + s * k_slice * padded, sums_.data() + s * d, squares_.data() + s * d);
    });
    for (index_t s = 1; s < slices; ++s)
      for (index_t j = 0; j < d; ++j) {
        sums_[j] += sums_[s * d + j];
        squares_[j] += squares_[s * d + j];
      }
    double weight = 0;
    for (index_t i = begin; i < end; ++i) weight += weights[i];
    block_weight = weight;
    return judge<P>();
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
  void pack_slice(detail::product_kernels<P> const& kernels, row_weights const& weights,
                  index_t begin, index_t end, P const* shift_p, P* panels, double* sum,
                  double* square) {
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
        detail::row_quad<P> quad{};
        for (int i = 0; i < count; ++i) {
          double const w = weights[r + i];
          T const* row = rows.data + (r + i) * rows.strides[0];
          quad.scale[i] = static_cast<P>(std::sqrt(w));
          quad.row[i] = shift_p;
          if (w == 0) continue;
          if constexpr (direct)
            if (!copy) quad.row[i] = row;
          if (copy) {
            SUBSPAN_PICK(widen<T, P>)(row, rows.strides[1], d, widened.data() + i * d);
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

  /// Products in float need |v| in a range whose squares neither overflow nor vanish, and a shift
  /// near the mean, or digits cancel in the correction by the mean.
  template <class P>
  bool judge() {
    constexpr double low = sizeof(P) == 4 ? 0x1p-80 : 0, high = sizeof(P) == 4 ? 0x1p80 : 0x1p1000;
    double largest = 0;
    bool finite = true;
    drifted = false;
    for (index_t j = 0; j < d; ++j) {
      offset[j] = block_weight > 0 ? sums_[j] / block_weight : 0;
      double const power = block_weight > 0 ? squares_[j] / block_weight : 0;
      finite &= std::isfinite(offset[j]) && std::isfinite(power);
      largest = std::max(largest, power);
      drifted |= offset[j] * offset[j] > 0.8 * power;  // mean^2 > 4 variance
    }
    out_of_range = !finite || !(largest >= low && largest <= high);
    return !drifted && !out_of_range;
  }

  workspace<double> sums_, squares_;  // [slices, d]
  context const& ctx_;
};

/// sum w (x - mean_x)(y - mean_y)^T over the rows of a call, in row lanes that are combined in
/// order, so that neither the threads nor their timing show in the bits.
template <class T>
class accumulator {
 public:
  accumulator(context const& ctx, char const* function, strided_view<T const, 2> x,
              std::optional<strided_view<T const, 2>> y, row_weights const& weights,
              moments_precision precision)
      : ctx_(ctx),
        function_(function),
        weights_(weights),
        n_(x.shape[0]),
        symmetric_(!y),
        in_double_(sizeof(T) == 8 || precision == moments_precision::float64),
        unit_(SUBSPAN_PICK(product_table<float>).width),
        dx_(round_up(x.shape[1], unit_)),
        dy_(y ? round_up(y->shape[1], unit_) : dx_),
        lanes_(lane_count()),
        slices_(slice_count()),
        x_(ctx, x, dx_, slices_),
        sums_(ctx, lanes_ * dx_ * dy_),
        record_weight_(ctx, k_records),
        record_x_(ctx, k_records * 2 * x_.d) {
    std::fill_n(sums_.data(), lanes_ * dx_ * dy_, 0.0);
    if (y) {
      y_.emplace(ctx, *y, dy_, slices_);
      record_y_.emplace(ctx, k_records * 2 * y_->d);
    }
  }

  /// Runs over all rows; `weight`, `mean_x`, `mean_y` start as the state's and end as those of the
  /// state with these rows. The sums then hold what is to be added to the state's matrix.
  void run(double& weight, double* mean_x, double* mean_y) {
    seed_shift(x_, weight, mean_x);
    if (y_) seed_shift(*y_, weight, mean_y);
    index_t const block = slices_ * k_slice;
    workspace<float> packed_x(ctx_, in_double_ ? 0 : block * dx_);
    workspace<float> packed_y(ctx_, in_double_ || symmetric_ ? 0 : block * dy_);
    clear_padding(packed_x.data(), x_);
    if (y_) clear_padding(packed_y.data(), *y_);
    for (index_t begin = 0; begin < n_; begin += block) {
      index_t const end = std::min(begin + block, n_);
      bool done = false;
      if (!in_double_)
        done = add_block<float>(SUBSPAN_PICK(product_table<float>), begin, end, packed_x.data(),
                                packed_y.data());
      if (!done) {
        // float64 input and precision; blocks whose range float products would leave.
        workspace<double> wide_x(ctx_, block * dx_), wide_y(ctx_, symmetric_ ? 0 : block * dy_);
        clear_padding(wide_x.data(), x_);
        if (y_) clear_padding(wide_y.data(), *y_);
        if (!add_block<double>(SUBSPAN_PICK(product_table<double>), begin, end, wide_x.data(),
                               wide_y.data()))
          report_nonfinite(begin, end);
      }
      record();
      if (records_ == k_records) fold(weight, mean_x, mean_y);
    }
    fold(weight, mean_x, mean_y);
    reduce_lanes();
  }

  /// Adds the sums to the state's matrix; throws before it touches it if they are not finite.
  void add_to(strided_view<double, 2> out) {
    index_t const rows = out.shape[0], columns = out.shape[1];
    bool finite = true;
    for (index_t i = 0; i < rows; ++i)
      for (index_t j = symmetric_ ? i : 0; j < columns; ++j)
        finite &= std::isfinite(sums_[i * dy_ + j]);
    detail::expects(finite, function_,
                    "x must have squares that float64 can hold (|x| < 1e150), got larger values. "
                    "Scale the data");
    // In square tiles, so that the mirrored half is read in runs, too.
    constexpr index_t k_tile = 64;
    parallel_for(ctx_, rows, k_tile, [&](index_t begin, index_t end) {
      for (index_t j0 = 0; j0 < columns; j0 += k_tile)
        for (index_t i = begin; i < end; ++i)
          for (index_t j = j0; j < std::min(j0 + k_tile, columns); ++j)
            out(i, j) += sums_[symmetric_ && j < i ? j * dy_ + i : i * dy_ + j];
    });
  }

 private:
  index_t groups(index_t padded) const { return (padded / unit_ + k_group - 1) / k_group; }

  index_t task_count() const {
    index_t const gx = groups(dx_), gy = groups(dy_);
    return symmetric_ ? gx * (gx + 1) / 2 : gx * gy;
  }

  /// Few columns give few tiles: then rows are dealt to several lanes, too, so that many cores find
  /// work. A function of the shapes only, never of the threads; the sums stay under 32 MiB.
  index_t lane_count() const {
    index_t const tasks = task_count(), fit = (index_t{32} << 20) / (8 * dx_ * dy_);
    return std::clamp<index_t>(24 / tasks, 1, std::max<index_t>(fit, 1));
  }

  index_t slice_count() const {
    index_t const bytes = k_slice * (symmetric_ ? dx_ : dx_ + dy_) * (in_double_ ? 8 : 4);
    index_t const slices = std::clamp<index_t>(k_block_bytes / bytes, 1, 256);
    index_t const whole = std::max<index_t>(1, (n_ + k_slice - 1) / k_slice);
    return std::min(round_up(slices, lanes_), whole);
  }

  void seed_shift(operand<T>& side, double weight, double const* mean) {
    if (weight > 0)
      std::copy_n(mean, side.d, side.shift.data());
    else
      side.guess_shift(weights_, slices_ * k_slice);
  }

  /// Columns behind the last real one are never packed; they must read as zeros.
  template <class P>
  void clear_padding(P* panels, operand<T> const& side) {
    if (panels != nullptr && side.d != side.padded)
      std::fill_n(panels, slices_ * k_slice * side.padded, P(0));
  }

  /// False if the block does not fit products in P.
  template <class P>
  bool add_block(detail::product_kernels<P> const& kernels, index_t begin, index_t end, P* px,
                 P* py) {
    if (!pack_near_mean(x_, kernels, begin, end, px)) return false;
    if (y_ && !pack_near_mean(*y_, kernels, begin, end, py)) return false;
    multiply_block(kernels, end - begin, px, symmetric_ ? px : py, lanes_);
    return true;
  }

  template <class P>
  bool pack_near_mean(operand<T>& side, detail::product_kernels<P> const& kernels, index_t begin,
                      index_t end, P* panels) {
    if (side.pack(kernels, weights_, begin, end, panels)) return true;
    if (side.out_of_range) return false;
    side.move_shift();
    side.pack(kernels, weights_, begin, end, panels);
    return !side.out_of_range;
  }

  template <class P>
  void multiply_block(detail::product_kernels<P> const& kernels, index_t rows, P const* px,
                      P const* py, index_t lanes) {
    index_t const gx = groups(dx_), gy = groups(dy_), slices = (rows + k_slice - 1) / k_slice;
    index_t const per_unit = unit_ / kernels.width;  // panels of P in a panel of float
    parallel_for(ctx_, gx * gy * lanes, 1, [&](index_t task, index_t) {
      index_t const lane = task % lanes, ix = task / lanes / gy, iy = task / lanes % gy;
      if (symmetric_ && iy < ix) return;
      index_t const span = k_group * per_unit;
      index_t const x1 = std::min((ix + 1) * span, dx_ / kernels.width);
      index_t const y1 = std::min((iy + 1) * span, dy_ / kernels.width);
      double* const out = sums_.data() + lane * dx_ * dy_;
      for (index_t s = lane; s < slices; s += lanes) {
        index_t const depth = std::min(k_slice, rows - s * k_slice);
        for (index_t j = iy * span; j < y1; ++j)
          for (index_t i = ix * span; i < (symmetric_ ? std::min(x1, j + 1) : x1); ++i) {
            P const* const left = px + (s * dx_ + i * kernels.width) * k_slice;
            P const* const right = py + (s * dy_ + j * kernels.width) * k_slice;
            for (int part = 0; part < kernels.width; part += kernels.tile_rows)
              kernels.multiply(depth, left + part, right,
                               out + (i * kernels.width + part) * dy_ + j * kernels.width, dy_);
          }
      }
    });
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
    auto const& kernels = SUBSPAN_PICK(product_table<double>);
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
    multiply_block(kernels, depth, left.data(), right.data(), 1);
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
          SUBSPAN_PICK(widen<T, double>)(&side.rows(i, j), 1, 1, &value);
          detail::expects(std::isfinite(value), function_, name,
                          " must be finite, got ", std::isnan(value) ? "NaN" : "infinity",
                          " in row ", i, ", column ", j,
                          ". Drop the row, or give it weight 0");
        }
      }
    };
    look("x", x_);
    if (y_) look("y", *y_);
    detail::fail(error_kind::invalid_argument, function_,
                 "x must have squares that float64 can hold (|x| < 1e150), got larger values. "
                 "Scale the data");
  }

  context const& ctx_;
  char const* function_;
  row_weights const& weights_;
  index_t n_;
  bool symmetric_, in_double_;
  index_t unit_, dx_, dy_, lanes_, slices_;
  operand<T> x_;
  std::optional<operand<T>> y_;
  workspace<double> sums_;  // [lane, dx, dy]
  index_t records_ = 0;
  workspace<double> record_weight_, record_x_;  // [record], [record, 2, d]: offset, mean
  std::optional<workspace<double>> record_y_;
};

}  // namespace
}  // namespace cpu

namespace {

template <int Rank>
void check_state(char const* function, char const* name, strided_view<double, Rank> const& view,
                 std::array<index_t, Rank> shape) {
  detail::expects(view.shape == shape && view.device.kind == device_kind::cpu, function, name,
                  " must be a float64 array on the CPU of the documented shape");
}

void check_weights(char const* function, std::optional<strided_view<double const, 1>> const& weights,
                   index_t n, device where) {
  if (!weights) return;
  detail::expects(weights->shape[0] == n, function, "weights must have one entry per row of x (", n,
                  "), got ", weights->shape[0]);
  detail::expects(weights->device == where, function, "weights must be on the device of x");
}

void check_moments(char const* function, moments_view const& state, index_t d) {
  check_state<1>(function, "state.mean", state.mean, {d});
  check_state<2>(function, "state.m2", state.m2, {d, d});
}

std::vector<double> copy_of(strided_view<double, 1> const& view) {
  std::vector<double> out(static_cast<std::size_t>(view.shape[0]));
  for (index_t i = 0; i < view.shape[0]; ++i) out[static_cast<std::size_t>(i)] = view(i);
  return out;
}

void copy_to(std::vector<double> const& in, strided_view<double, 1> const& out) {
  for (index_t i = 0; i < out.shape[0]; ++i) out(i) = in[static_cast<std::size_t>(i)];
}

/// a += b and the term that the distance of the means adds (Chan, Golub, LeVeque 1983).
void chan(context const& ctx, double weight_a, double weight_b, strided_view<double, 1> mean_x,
          strided_view<double, 1> mean_y, strided_view<double, 2> out,
          strided_view<double, 1> other_x, strided_view<double, 1> other_y,
          strided_view<double, 2> other) {
  double const share = weight_b / (weight_a + weight_b), factor = weight_a * share;
  detail::parallel_for(ctx, out.shape[0], 64, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      double const di = (other_x(i) - mean_x(i)) * factor;
      for (index_t j = 0; j < out.shape[1]; ++j)
        out(i, j) += other(i, j) + di * (other_y(j) - mean_y(j));
    }
  });
}

void move_mean(double share, strided_view<double, 1> mean, strided_view<double, 1> other) {
  for (index_t j = 0; j < mean.shape[0]; ++j) mean(j) += (other(j) - mean(j)) * share;
}

template <class T>
constexpr std::int32_t cuda_dtype() {
  if constexpr (std::is_same_v<T, half>) return subspan_cuda_half;
  if constexpr (std::is_same_v<T, bfloat16>) return subspan_cuda_bfloat16;
  if constexpr (std::is_same_v<T, float>) return subspan_cuda_float;
  return subspan_cuda_double;
}

/// The device hands back the moments of the batch; they merge on the host.
template <class T>
void moments_on_cuda(context const& ctx, subspan_cuda_table const& cuda,
                     strided_view<T const, 2> x,
                     std::optional<strided_view<double const, 1>> weights, moments_view state,
                     moments_precision precision) {
  index_t const n = x.shape[0], d = x.shape[1];
  detail::expects(x.inner_contiguous() && (!weights || weights->is_row_major()), "moments_update",
                  "x and weights on CUDA must be contiguous in their last axis. Copy them first");
  detail::workspace<double> mean(ctx, d), m2(ctx, d * d);
  double totals[3] = {};
  std::int64_t bad[2] = {-1, -1};
  subspan_cuda_moments_call const call{x.data,
                                       cuda_dtype<T>(),
                                       x.device.index,
                                       n,
                                       d,
                                       x.strides[0],
                                       weights ? weights->data : nullptr,
                                       precision == moments_precision::float64,
                                       ctx.stream,
                                       mean.data(),
                                       m2.data(),
                                       totals,
                                       bad};
  char message[256] = {};
  if (cuda.moments(&call, message, sizeof message) != 0)
    detail::fail(error_kind::device, "moments_update", message);
  detail::expects(bad[0] < 0 || bad[1] >= 0, "moments_update",
                  "weights must be finite and >= 0, got another value in row ", bad[0]);
  detail::expects(bad[0] < 0, "moments_update", "x must be finite, got NaN or infinity in row ",
                  bad[0], ", column ", bad[1], ". Drop the row, or give it weight 0");
  index_t count = static_cast<index_t>(totals[0]);
  moments_merge(ctx, state,
                {&count, &totals[1], &totals[2], make_view<1>(mean.data(), {d}),
                 make_view<2>(m2.data(), {d, d})});
}

}  // namespace

inline namespace v0 {

template <class T>
void moments_update(context const& ctx, strided_view<T const, 2> x,
                    std::optional<strided_view<double const, 1>> weights, moments_view state,
                    moments_precision precision) {
  constexpr char const* function = "moments_update";
  check_moments(function, state, x.shape[1]);
  check_weights(function, weights, x.shape[0], x.device);
  if (x.size() == 0) return;
  detail::route(
      function, x.device,
      [&] {
        cpu::row_weights const checked(function, weights, x.shape[0]);
        if (checked.count == 0) return;
        cpu::accumulator<T> sums(ctx, function, x, std::nullopt, checked, precision);
        std::vector<double> mean = copy_of(state.mean);
        double weight = *state.weight_sum;
        sums.run(weight, mean.data(), nullptr);
        sums.add_to(state.m2);
        copy_to(mean, state.mean);
        *state.weight_sum = weight;
        *state.count += checked.count;
        *state.weight_sq_sum += checked.square_sum;
      },
      [&](subspan_cuda_table const& cuda) {
        moments_on_cuda(ctx, cuda, x, weights, state, precision);
      });
}

template <class T>
void cross_moments_update(context const& ctx, strided_view<T const, 2> x,
                          strided_view<T const, 2> y,
                          std::optional<strided_view<double const, 1>> weights,
                          cross_moments_view state, moments_precision precision) {
  constexpr char const* function = "cross_moments_update";
  detail::require_cpu(function, x.device);
  detail::expects(y.shape[0] == x.shape[0] && y.device == x.device, function,
                  "y must have the rows of x (", x.shape[0], ") and be on its device, got ",
                  y.shape[0], " rows");
  check_state<1>(function, "state.mean_x", state.mean_x, {x.shape[1]});
  check_state<1>(function, "state.mean_y", state.mean_y, {y.shape[1]});
  check_state<2>(function, "state.cross", state.cross, {x.shape[1], y.shape[1]});
  check_weights(function, weights, x.shape[0], x.device);
  if (x.size() == 0 || y.size() == 0) return;
  cpu::row_weights const checked(function, weights, x.shape[0]);
  if (checked.count == 0) return;
  cpu::accumulator<T> sums(ctx, function, x, y, checked, precision);
  std::vector<double> mean_x = copy_of(state.mean_x), mean_y = copy_of(state.mean_y);
  double weight = *state.weight_sum;
  sums.run(weight, mean_x.data(), mean_y.data());
  sums.add_to(state.cross);
  copy_to(mean_x, state.mean_x);
  copy_to(mean_y, state.mean_y);
  *state.weight_sum = weight;
}

void moments_merge(context const& ctx, moments_view state, moments_view other) {
  check_moments("moments_merge", other, state.mean.shape[0]);
  check_moments("moments_merge", state, state.mean.shape[0]);
  if (*other.weight_sum == 0) return;
  chan(ctx, *state.weight_sum, *other.weight_sum, state.mean, state.mean, state.m2, other.mean,
       other.mean, other.m2);
  move_mean(*other.weight_sum / (*state.weight_sum + *other.weight_sum), state.mean, other.mean);
  *state.weight_sum += *other.weight_sum;
  *state.weight_sq_sum += *other.weight_sq_sum;
  *state.count += *other.count;
}

void cross_moments_merge(context const& ctx, cross_moments_view state, cross_moments_view other) {
  constexpr char const* function = "cross_moments_merge";
  check_state<1>(function, "other.mean_x", other.mean_x, state.mean_x.shape);
  check_state<1>(function, "other.mean_y", other.mean_y, state.mean_y.shape);
  check_state<2>(function, "other.cross", other.cross, state.cross.shape);
  if (*other.weight_sum == 0) return;
  chan(ctx, *state.weight_sum, *other.weight_sum, state.mean_x, state.mean_y, state.cross,
       other.mean_x, other.mean_y, other.cross);
  double const share = *other.weight_sum / (*state.weight_sum + *other.weight_sum);
  move_mean(share, state.mean_x, other.mean_x);
  move_mean(share, state.mean_y, other.mean_y);
  *state.weight_sum += *other.weight_sum;
}

template <class T>
void group_sums(context const& ctx, strided_view<T const, 2> x,
                std::optional<strided_view<double const, 1>> weights,
                strided_view<index_t const, 1> ids, strided_view<double, 2> sums) {
  constexpr char const* function = "group_sums";
  index_t const n = x.shape[0], d = x.shape[1], groups = sums.shape[0];
  detail::require_cpu(function, x.device);
  check_state<2>(function, "sums", sums, {groups, d});
  check_weights(function, weights, n, x.device);
  detail::expects(ids.shape[0] == n, function, "ids must have one entry per row of x (", n,
                  "), got ", ids.shape[0]);
  for (index_t i = 0; i < n; ++i)
    detail::expects(ids(i) >= 0 && ids(i) < groups, function, "ids must be in 0..", groups - 1,
                    ", got ", ids(i), " in row ", i);
  // Threads share columns, not rows: each sum is taken in row order by one thread.
  detail::parallel_for(ctx, d, 128, [&](index_t begin, index_t end) {
    detail::workspace<double> row(ctx, end - begin);
    for (index_t i = 0; i < n; ++i) {
      double const w = weights ? (*weights)(i) : 1.0;
      if (w == 0) continue;
      SUBSPAN_PICK(widen<T, double>)(&x(i, begin), x.strides[1], end - begin, row.data());
      for (index_t j = begin; j < end; ++j) sums(ids(i), j) += w * row[j - begin];
    }
  });
}

void principal_axes(context const& ctx, strided_view<double const, 2> m2, double denominator,
                    strided_view<double, 2> components, strided_view<double, 1> variances) {
  constexpr char const* function = "principal_axes";
  index_t const d = m2.shape[0], k = components.shape[0];
  detail::require_cpu(function, m2.device);
  detail::expects(m2.shape[1] == d && d > 0 && d <= 2147483647, function,
                  "m2 must be square and not empty, got ", d, " x ", m2.shape[1]);
  detail::expects(denominator > 0, function, "denominator must be > 0, got ", denominator);
  detail::expects(k >= 1 && k <= d, function, "k must be in 1..", d, ", got ", k);
  check_state<2>(function, "components", components, {k, d});
  check_state<1>(function, "variances", variances, {k});

  int const n = static_cast<int>(d), wanted = static_cast<int>(k);
  detail::workspace<double> matrix(ctx, d * d), values(ctx, d), vectors(ctx, k * d);
  detail::workspace<int> support(ctx, 2 * d);
  for (index_t i = 0; i < d; ++i)
    for (index_t j = 0; j < d; ++j) matrix[i * d + j] = m2(i, j) / denominator;
  double work_size = 0;
  int iwork_size = 0, info = 0;
  auto const solve = [&](double* work, int lwork, int* iwork, int liwork) {
    detail::syevr('V', 'L', n, matrix.data(), n, n - wanted + 1, n, values.data(), vectors.data(),
                  n, support.data(), work, lwork, iwork, liwork, info);
  };
  detail::blas_scope const scope(d >= detail::k_large_matrix ? detail::thread_count(ctx) : 1);
  solve(&work_size, -1, &iwork_size, -1);
  int const lwork = detail::workspace_size(work_size);
  detail::workspace<double> work(ctx, lwork);
  detail::workspace<int> iwork(ctx, iwork_size);
  solve(work.data(), lwork, iwork.data(), iwork_size);
  if (info != 0)
    detail::fail(error_kind::no_convergence, function, "the eigenvalues of m2 did not converge (",
                 info, "); is it finite?");

  double const floor = -100.0 * static_cast<double>(d) *
                       std::numeric_limits<double>::epsilon() * std::abs(values[k - 1]);
  for (index_t c = 0; c < k; ++c) {
    double const value = values[k - 1 - c];  // LAPACK's order is ascending
    detail::expects(value >= floor, function,
                    "m2 must be positive semidefinite, got an eigenvalue of ", value);
    variances(c) = std::max(value, 0.0);
    double const* const vector = vectors.data() + (k - 1 - c) * d;
    index_t top = 0;
    for (index_t j = 1; j < d; ++j)
      if (std::abs(vector[j]) > std::abs(vector[top])) top = j;
    double const sign = vector[top] < 0 ? -1.0 : 1.0;
    for (index_t j = 0; j < d; ++j) components(c, j) = sign * vector[j];
  }
}

#define SUBSPAN_INSTANTIATE(T)                                                                     \
  template void moments_update<T>(context const&, strided_view<T const, 2>,                        \
                                  std::optional<strided_view<double const, 1>>, moments_view,      \
                                  moments_precision);                                              \
  template void cross_moments_update<T>(                                                           \
      context const&, strided_view<T const, 2>, strided_view<T const, 2>,                          \
      std::optional<strided_view<double const, 1>>, cross_moments_view, moments_precision);        \
  template void group_sums<T>(context const&, strided_view<T const, 2>,                            \
                              std::optional<strided_view<double const, 1>>,                        \
                              strided_view<index_t const, 1>, strided_view<double, 2>);
SUBSPAN_FOREACH_STORAGE(SUBSPAN_INSTANTIATE)
#undef SUBSPAN_INSTANTIATE

}  // namespace v0
}  // namespace subspan

#endif  // SUBSPAN_ONCE
