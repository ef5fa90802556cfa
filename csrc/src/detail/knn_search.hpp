#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <vector>

#include "detail/knn_kernels.hpp"
#include "subspan/knn.hpp"

/// The search for neighbours: candidates by the tile engine, distances in double, and a proof for
/// every row that no other row of y can be among its k nearest.

namespace subspan::detail {

/// x, y and what is known about them before any product.
template <class T>
class knn_data {
 public:
  knn_data(context const& ctx, exact_kernels<T> const& exact, strided_view<T const, 2> x,
           strided_view<T const, 2> y, std::optional<strided_view<std::uint8_t const, 2>> mask,
           index_t k, knn_params params)
      : ctx(ctx), exact(exact), x(x), y(y), mask(mask), k(k), params(params) {
    if (mask && mask->shape[0] == 1 && x.shape[0] != 1) {
      for (index_t j = 0; j < y.shape[0]; ++j)
        if ((*mask)(0, j) != 0) column_ids.push_back(j);
      this->mask.reset();
      compacted = true;
    }
    if (cosine()) {
      measure(x, x_norm);
      measure(y, y_norm);
      for (index_t j = 0; j < columns() && static_cast<index_t>(zeros.size()) <= k; ++j)
        if (y_norm[static_cast<std::size_t>(id(j))] == 0) zeros.push_back(id(j));
    }
    take_sample();
  }

  bool cosine() const { return params.metric == metric::cosine; }
  bool by_product() const { return params.metric == metric::inner_product; }
  index_t rows() const { return x.shape[0]; }
  index_t columns() const {
    return compacted ? static_cast<index_t>(column_ids.size()) : y.shape[0];
  }
  index_t depth() const { return x.shape[1]; }
  index_t id(index_t column) const {
    return compacted ? column_ids[static_cast<std::size_t>(column)] : column;
  }
  bool allows(index_t row, index_t neighbor) const {
    return !(params.exclude_self && row == neighbor) && (!mask || (*mask)(row, neighbor) != 0);
  }
  static T const* row_of(strided_view<T const, 2> const& a, index_t i) {
    return a.data + i * a.strides[0];
  }
  index_t padded_depth() const { return divide_up(depth(), k_exact_step) * k_exact_step; }

  /// THE distance of row i of x, widened to `wide`, and row j of y. Of inner products the negative, so
  /// that the smaller one is always the better. Not finite: no neighbours.
  double distance(double const* wide, index_t i, index_t j) const {
    T const* const other = row_of(y, j);
    index_t const stride = y.strides[1], d = depth();
    if (by_product()) return -exact.product(wide, other, stride, d);
    if (!cosine()) return exact.difference(wide, other, stride, d);
    double const norms = x_norm[static_cast<std::size_t>(i)] * y_norm[static_cast<std::size_t>(j)];
    if (norms == 0) return 1;
    return std::max(1 - exact.product(wide, other, stride, d) / norms, 0.0);
  }

  context const& ctx;
  exact_kernels<T> const& exact;
  strided_view<T const, 2> x, y;
  std::optional<strided_view<std::uint8_t const, 2>> mask;  // per pair
  index_t k;
  knn_params params;
  bool compacted = false;
  std::vector<index_t> column_ids;
  std::vector<double> x_norm, y_norm;  // cosine
  std::vector<index_t> zeros;          // ids of the first k + 1 zero rows of y, cosine
  std::vector<double> shift;           // near the mean of y's rows, as they are packed
  bool exact_scores = false;           // sums of small integers: float makes no error

 private:
  void measure(strided_view<T const, 2> const& a, std::vector<double>& norms) const {
    norms.resize(static_cast<std::size_t>(a.shape[0]));
    parallel_for(ctx, a.shape[0], 256, [&](index_t begin, index_t end) {
      workspace<double> wide(ctx, padded_depth());
      for (index_t i = begin; i < end; ++i) {
        exact.widen(row_of(a, i), a.strides[1], depth(), wide.data());
        norms[static_cast<std::size_t>(i)] =
            std::sqrt(exact.product(wide.data(), row_of(a, i), a.strides[1], depth()));
      }
    });
  }

  static bool small_integer(double v) { return std::abs(v) <= 2048 && v == std::nearbyint(v); }
  double bound_of_integers() const {
    return std::sqrt((1 << 22) / std::max(1.0, static_cast<double>(depth())));
  }

  /// Whether all elements are integers so small that the sums of their products are exact in float.
  bool all_integers(strided_view<T const, 2> const& a) const {
    std::vector<char> good(static_cast<std::size_t>(divide_up(a.shape[0], 256)), 1);
    double const bound = bound_of_integers();
    parallel_for(ctx, a.shape[0], 256, [&](index_t begin, index_t end) {
      workspace<double> wide(ctx, padded_depth());
      for (index_t i = begin; i < end; ++i) {
        exact.widen(row_of(a, i), a.strides[1], depth(), wide.data());
        for (index_t r = 0; r < depth(); ++r)
          if (!(std::abs(wide[r]) <= bound && small_integer(wide[r]))) {
            good[static_cast<std::size_t>(begin / 256)] = 0;
            return;
          }
      }
    });
    return std::count(good.begin(), good.end(), 0) == 0;
  }

  /// The shift, from up to k_sample rows of y; a common offset is what it is to remove.
  void take_sample() {
    index_t const d = depth(), step = std::max<index_t>(columns() / k_sample, 1);
    shift.assign(static_cast<std::size_t>(d), 0.0);
    if constexpr (std::is_integral_v<T>) {
      exact_scores = !cosine();
      if (exact_scores) return;
    }
    workspace<double> wide(ctx, padded_depth());
    bool integers = !cosine();
    double rows = 0;
    for (index_t c = 0; c < columns(); c += step) {
      exact.widen(row_of(y, id(c)), y.strides[1], d, wide.data());
      double sum = 0;
      for (index_t r = 0; r < d; ++r) sum += std::abs(wide[r]);
      if (!std::isfinite(sum)) continue;
      double const norm = cosine() ? y_norm[static_cast<std::size_t>(id(c))] : 1;
      if (norm == 0) continue;
      rows += 1;
      for (index_t r = 0; r < d; ++r) {
        integers = integers && small_integer(wide[r]);
        shift[static_cast<std::size_t>(r)] +=
            (wide[r] / norm - shift[static_cast<std::size_t>(r)]) / rows;
      }
    }
    if (integers && all_integers(y) && all_integers(x)) {
      exact_scores = true;
      std::fill(shift.begin(), shift.end(), 0.0);
    }
  }

  static constexpr index_t k_sample = 512;
};

/// A neighbour; the smaller one is the nearer.
struct ranked {
  double distance;
  index_t id;
  friend constexpr auto operator<=>(ranked const&, ranked const&) = default;
};

/// What the user gets for a distance as it is kept: see knn_data::distance.
inline double as_asked(metric how, double distance) {
  return how == metric::euclidean       ? std::sqrt(distance)
         : how == metric::inner_product ? -distance
                                        : distance;
}

/// Where results go.
struct knn_output {
  strided_view<double, 2> distances;
  strided_view<index_t, 2> indices;

  /// The first k of `found`, which is in order.
  void deliver(metric how, index_t row, std::vector<ranked> const& found) const {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    for (index_t j = 0; j < indices.shape[1]; ++j) {
      bool const there = j < static_cast<index_t>(found.size());
      double const distance = there ? found[static_cast<std::size_t>(j)].distance : 0;
      indices(row, j) = there ? found[static_cast<std::size_t>(j)].id : -1;
      distances(row, j) = as_asked(how, there ? distance : infinity);
    }
  }
};

/// One run of the engine over some rows of x; a job, see run_tiles. P: type of the products.
template <class T, class P>
class knn_search {
 public:
  using selector = row_selector<P>;
  using entry_type = typename selector::entry_type;
  using order = score_order<P>;

  knn_search(knn_data<T> const& data, knn_kernels<T, P> const& kernels,
             std::vector<index_t> row_ids, index_t pad, bool only_differences, knn_output out)
      : data_(data),
        ctx_(data.ctx),
        kernels_(kernels),
        row_ids_(std::move(row_ids)),
        only_(only_differences),
        out_(out),
        candidates_(std::clamp<index_t>(data.k + pad + (data.params.exclude_self ? 1 : 0), 1,
                                        std::max<index_t>(data.columns(), 1))),
        x_{data.x.data,       static_cast<index_t>(row_ids_.size()),
           data.depth(),      data.x.strides[0],
           data.x.strides[1], row_ids_.data()},
        y_{data.y.data,       data.columns(),    data.depth(),
           data.y.strides[0], data.y.strides[1], data.compacted ? data.column_ids.data() : nullptr},
        shift_(ctx_, data.depth()),
        column_half_(ctx_, divide_up(y_.count, size().width) * size().width),
        column_reach_(ctx_, divide_up(y_.count, size().width)),
        failed_(row_ids_.size(), 0) {
    for (index_t r = 0; r < data.depth(); ++r)
      shift_[r] = static_cast<P>(data.shift[static_cast<std::size_t>(r)]);
    if (data.cosine()) {
      for (index_t const i : row_ids_) row_scale_.push_back(inverse(data.x_norm, i));
      for (index_t c = 0; c < y_.count; ++c)
        column_scale_.push_back(inverse(data.y_norm, data.id(c)));
    }
  }

  index_t rows() const { return x_.count; }
  index_t columns() const { return y_.count; }
  index_t depth() const { return x_.depth; }
  tile_size size() const { return kernels_.size; }
  index_t strip() const {
    return k_state_bytes / (selector::room(candidates_) * static_cast<index_t>(sizeof(entry_type)));
  }

  void begin(index_t first, index_t last, index_t parts) {
    auto const tile_rows = size().rows;
    first_ = first;
    panels_ = divide_up(last - first, tile_rows);
    states_ = panels_ * tile_rows;
    buffers_.emplace(ctx_, parts * states_ * selector::room(candidates_));
    best_.clear();
    for (index_t i = 0; i < parts * states_; ++i)
      best_.emplace_back(candidates_, buffers_->data() + i * selector::room(candidates_));
    row_half_.assign(static_cast<std::size_t>(states_), k_nan);
    row_norm_.assign(static_cast<std::size_t>(states_), 0.0);
    row_reach_.assign(static_cast<std::size_t>(panels_), 0);
    used_.assign(static_cast<std::size_t>(parts * panels_), 0);
    difference_tiles_.assign(static_cast<std::size_t>(parts * panels_), 0);
  }
  void pack_rows(index_t first, index_t count, P* out) {
    auto const tile_rows = size().rows;
    packing<P> const how{data_.by_product() ? nullptr : shift_.data(),
                         data_.cosine() ? row_scale_.data() : nullptr};
    kernels_.pack(x_, how, first, count, tile_rows, out);
    auto const at = static_cast<std::size_t>(first - first_);
    describe(out, tile_rows, count, row_half_.data() + at, row_norm_.data() + at,
             row_reach_[at / static_cast<std::size_t>(tile_rows)], x_, how.scale, first);
  }
  void pack_columns(index_t first, index_t count, P* out) {
    auto const width = size().width;
    double norms[k_widest_panel];
    packing<P> const how{shift_.data(), data_.cosine() ? column_scale_.data() : nullptr};
    kernels_.pack(y_, how, first, count, width, out);
    describe(out, width, count, column_half_.data() + first, norms, column_reach_[first / width],
             y_, how.scale, first);
  }
  void multiply(tile_block<P> const& block, index_t part) {
    neighbor_strip<P> strip{best_.data() + part * states_,
                            row_half_.data(),
                            column_half_.data(),
                            row_reach_.data(),
                            column_reach_.data(),
                            used_.data() + part * panels_,
                            difference_tiles_.data() + part * panels_,
                            static_cast<P>(score_error()),
                            may_differ(),
                            only_};
    if (data_.mask) {
      strip.mask = data_.mask->data;
      strip.mask_ids = row_ids_.data() + first_;
      strip.mask_step = data_.mask->shape[0] == 1 ? 0 : data_.mask->strides[0];
      strip.mask_stride = data_.mask->strides[1];
    }
    kernels_.select(block, strip);
  }
  void end(index_t first, index_t last, index_t parts) {
    double reach = 0;
    for (index_t p = 0; p < divide_up(y_.count, size().width); ++p)
      reach = std::max(reach, static_cast<double>(column_reach_[p]));
    parallel_for(ctx_, last - first, 16, [&](index_t begin, index_t end) {
      workspace<entry_type> joined(ctx_, parts * candidates_);
      workspace<double> wide(ctx_, data_.padded_depth());
      std::vector<ranked> found;
      for (index_t i = begin; i < end; ++i) {
        index_t count = 0;
        for (index_t part = 0; part < parts; ++part) {
          auto& row = best_[static_cast<std::size_t>(part * states_ + i)];
          index_t const kept = row.keep_best();
          std::copy_n(row.entries(), kept, joined.data() + count);
          count += kept;
        }
        finish(i, parts, joined.data(), count, reach, wide.data(), found);
      }
    });
    for (index_t const tiles : difference_tiles_) difference_tiles += tiles;
  }

  /// Rows of x for which nothing was proved; some of what was delivered for them may be wrong.
  std::vector<index_t> unproved() const {
    std::vector<index_t> out;
    for (std::size_t i = 0; i < failed_.size(); ++i)
      if (failed_[i]) out.push_back(row_ids_[i]);
    return out;
  }
  /// A square was too large for P: nothing that was delivered counts.
  bool overflowed() const { return overflowed_; }
  index_t difference_tiles = 0;

 private:
  static constexpr P k_nan = std::numeric_limits<P>::quiet_NaN();
  static constexpr double k_unit = std::numeric_limits<P>::epsilon() / 2.0;  // rounding
  static constexpr double k_tiny = std::numeric_limits<P>::min();
  static constexpr index_t k_state_bytes = index_t{64} << 20;
  static constexpr index_t k_widest_panel = 64;

  static double inverse(std::vector<double> const& norms, index_t i) {
    double const norm = norms[static_cast<std::size_t>(i)];
    return norm == 0 ? 0 : 1 / norm;
  }

  bool may_differ() const { return !data_.by_product() && !data_.exact_scores; }
  /// See neighbor_strip::error: d products and their sums, the rounding of both halves and of the
  /// packed elements; products are at most a quarter, halves a half of the square.
  double score_error() const {
    return data_.exact_scores ? 0 : 1.25 * k_unit * (static_cast<double>(depth()) / 4 + 8);
  }

  /// Halves and norms of a packed panel: vectors first.. of `from`.
  void describe(P const* panel, index_t width, index_t count, P* half, double* norms, P& reach,
                vector_set<T> const& from, double const* scale, index_t first) {
    double squares[k_widest_panel];
    kernels_.squares(panel, depth(), width, squares);
    double most = 0;
    for (index_t c = 0; c < width; ++c) {
      half[c] = k_nan;
      norms[c] = 0;
      if (c >= count || (scale != nullptr && scale[first + c] == 0)) continue;
      if (!(squares[c] <= static_cast<double>(std::numeric_limits<P>::max()) / 64)) {
        if (is_finite(from, first + c)) overflowed_ = true;
        continue;
      }
      half[c] = data_.by_product() ? P{0} : static_cast<P>(squares[c] / 2);
      norms[c] = std::sqrt(squares[c]);
      most = std::max(most, norms[c]);
    }
    reach = static_cast<P>(most * (1 + 4 * k_unit));
  }

  bool is_finite(vector_set<T> const& from, index_t i) const {
    workspace<double> wide(ctx_, data_.padded_depth());
    data_.exact.widen(from[i], from.stride, depth(), wide.data());
    return std::all_of(wide.data(), wide.data() + depth(),
                       [](double v) { return std::isfinite(v); });
  }

  void finish(index_t i, index_t parts, entry_type* entries, index_t count, double reach,
              double* wide, std::vector<ranked>& found) {
    index_t const row = row_ids_[static_cast<std::size_t>(first_ + i)];
    if (count > candidates_) {
      std::nth_element(entries, entries + (candidates_ - 1), entries + count, std::greater<>());
      count = candidates_;
    }
    data_.exact.widen(knn_data<T>::row_of(data_.x, row), data_.x.strides[1], depth(), wide);
    found.clear();
    auto const consider = [&](index_t id) {
      if (!data_.allows(row, id)) return;
      double const distance = data_.distance(wide, row, id);
      if (std::isfinite(distance)) found.push_back({distance, id});
    };
    double last = std::numeric_limits<double>::infinity();
    for (index_t c = 0; c < count; ++c) {
      last = std::min(last, static_cast<double>(order::score(key_of(entries[c]))));
      consider(data_.id(index_of(entries[c])));
    }
    bool const zero_query = data_.cosine() && data_.x_norm[static_cast<std::size_t>(row)] == 0;
    if (std::isfinite(static_cast<double>(row_half_[static_cast<std::size_t>(i)])))
      for (index_t const id : data_.zeros) consider(id);
    std::sort(found.begin(), found.end());
    out_.deliver(data_.params.metric, row, found);

    bool const complete = count < candidates_ || candidates_ == columns();
    if (data_.params.precision == knn_precision::fast && !zero_query) return;
    double used = 0;
    for (index_t part = 0; part < parts; ++part)
      used = std::max(used, static_cast<double>(
                                used_[static_cast<std::size_t>(part * panels_ + i / size().rows)]));
    if (zero_query || !(complete || proved(i, found, last, used, reach, wide)))
      failed_[static_cast<std::size_t>(first_ + i)] = 1;
  }

  /// Whether nothing that was left out can be among the first k: scores of what was left out are at
  /// most `last`, as computed.
  bool proved(index_t i, std::vector<ranked> const& found, double last, double used, double reach,
              double const* wide) const {
    if (data_.exact_scores) return true;  // and equal scores were selected by index
    auto const k = static_cast<std::size_t>(data_.k);
    if (found.size() < k) return false;
    auto const d = static_cast<double>(depth());
    double const farthest = found[k - 1].distance;
    double const norm = row_norm_[static_cast<std::size_t>(i)];
    constexpr double k_exact_unit = std::numeric_limits<double>::epsilon() / 2;
    if (data_.by_product()) {
      double offset = 0, square = 0;
      for (index_t r = 0; r < depth(); ++r) {
        auto const s = static_cast<double>(shift_[r]);
        offset += wide[r] * s;
        square += s * s;
      }
      double const error = 1.25 * k_unit * (d + 8) * norm * reach + d * k_tiny +
                           4 * (d + 16) * k_exact_unit * norm * (reach + std::sqrt(square));
      return -farthest - offset > last + error;
    }
    // As squared distances: of what was left out, by products and by differences.
    double const limit = -2 * last;
    double const products =
        used > 0 ? limit - 2 * used - d * k_tiny : std::numeric_limits<double>::infinity();
    double const rounded = 1.25 * k_unit * (norm + reach);  // of the packed elements
    double const root =
        std::sqrt(std::max(limit * (1 - 1.25 * k_unit * (d + 4)) - d * k_tiny, 0.0));
    double const differences = std::max(root - rounded, 0.0);
    double const beyond = std::min(products, differences * differences);
    double const nearest = data_.cosine() ? 2 * farthest : farthest;
    double const defined = 4 * (d + 16) * k_exact_unit * (data_.cosine() ? 2 : nearest);
    if (nearest + defined < beyond) return true;
    // Rows that are equal have differences of zero, and were selected by index.
    return used == 0 && limit == 0 && farthest == 0;
  }

  knn_data<T> const& data_;
  context const& ctx_;
  knn_kernels<T, P> const& kernels_;
  std::vector<index_t> row_ids_;
  bool only_;
  knn_output out_;
  index_t candidates_;
  vector_set<T> x_, y_;
  workspace<P> shift_, column_half_, column_reach_;
  std::vector<double> row_scale_, column_scale_;
  index_t first_ = 0, panels_ = 0, states_ = 0;
  std::optional<workspace<entry_type>> buffers_;
  std::vector<selector> best_;
  std::vector<P> row_half_, row_reach_, used_;
  std::vector<double> row_norm_;
  std::vector<index_t> difference_tiles_;
  std::vector<char> failed_;
  std::atomic<bool> overflowed_ = false;
};

}  // namespace subspan::detail
