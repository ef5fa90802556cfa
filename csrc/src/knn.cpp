#include "subspan/knn.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <bit>
#include <cmath>
#include <numeric>

#include "detail/knn_in_place.hpp"
#include "detail/knn_search.hpp"
#include "detail/product_tile.hpp"
#include "detail/radius_search.hpp"
#include "detail/route.hpp"

#define SUBSPAN_FILE "knn.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {
// In this order: the later ones need the earlier.
// clang-format off
#include "detail/widen.inl.hpp"
#include "detail/product_tile.inl.hpp"
#include "detail/row_selector.inl.hpp"
#include "detail/tile_engine.inl.hpp"
#include "detail/knn_kernels.inl.hpp"
#include "detail/knn_in_place.inl.hpp"
#include "detail/knn_pairs.inl.hpp"
// clang-format on
}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace subspan {
namespace {

/// Rows of y all together, by their distances in double: what is right whatever the data.
template <class T>
void scan(detail::knn_data<T> const& data, std::vector<index_t> const& rows,
          detail::knn_output out) {
  using detail::row_selector;
  index_t const k = out.indices.shape[1];
  detail::parallel_for(data.ctx, static_cast<index_t>(rows.size()), 1, [&](index_t at, index_t) {
    index_t const row = rows[static_cast<std::size_t>(at)];
    detail::workspace<double> wide(data.ctx, data.padded_depth());
    bool const has_neighbors = data.widen_query(row, wide.data());
    detail::workspace<row_selector<double>::entry_type> buffer(data.ctx,
                                                               row_selector<double>::room(k));
    row_selector<double> best(k, buffer.data());
    for (index_t c = 0; c < data.columns() && has_neighbors; ++c) {
      if (!data.allows(row, data.id(c))) continue;
      double const distance = data.distance(wide.data(), row, data.id(c));
      if (std::isfinite(distance)) best.add(-distance, static_cast<std::uint32_t>(c));
    }
    std::vector<detail::ranked> found;
    index_t const count = best.keep_best();
    for (index_t i = 0; i < count; ++i) {
      // Measured again: a key does not keep the sign of a zero.
      index_t const id = data.id(detail::index_of(best.entries()[i]));
      found.push_back({data.distance(wide.data(), row, id), id});
    }
    std::sort(found.begin(), found.end());
    out.deliver(data.params.metric, row, found);
  });
}

/// The same for a radius.
template <class T>
void scan_within(detail::knn_data<T> const& data, double radius,
                 std::vector<std::vector<detail::ranked>>& found) {
  detail::parallel_for(data.ctx, data.rows(), 1, [&](index_t row, index_t) {
    auto& near = found[static_cast<std::size_t>(row)];
    near.clear();
    detail::workspace<double> wide(data.ctx, data.padded_depth());
    data.widen_query(row, wide.data());
    for (index_t c = 0; c < data.columns(); ++c)
      if (data.allows(row, data.id(c)))
        if (double const distance = data.distance(wide.data(), row, data.id(c));
            data.is_within(distance, radius))
          near.push_back({distance, data.id(c)});
    std::sort(near.begin(), near.end());
  });
}

template <class T, class P>
bool search(detail::knn_data<T> const& data, detail::pair_kernels const* pairs,
            std::vector<index_t>& rows, index_t pad, bool only_differences, detail::knn_output out,
            knn_stats& stats) {
  detail::knn_search<T, P> job(data, SUBSPAN_PICK(knn_table<T, P>), pairs, rows, pad,
                               only_differences, out);
  bool const all = static_cast<index_t>(rows.size()) == data.rows();
  if (all && !only_differences && data.is_symmetric() && job.fits_together(data.rows())) {
    job.run_with(job);
    stats.symmetric = true;
  } else {
    detail::run_tiles<P>(data.ctx, job);
  }
  stats.difference_tiles += job.difference_tiles();
  rows = job.unproved();
  return !job.overflowed();
}

template <class T>
void check_sets(char const* function, strided_view<T const, 2> x, strided_view<T const, 2> y,
                std::optional<strided_view<std::uint8_t const, 2>> const& mask, knn_params params) {
  index_t const q = x.shape[0], d = x.shape[1], n = y.shape[0];
  detail::require_cpu(function, x.device);
  detail::expects(y.device == x.device && (!mask || mask->device == x.device), function,
                  "y and mask must be on the device of x");
  detail::expects(y.shape[1] == d, function, "y must have d = ", d, " columns like x, got ",
                  y.shape[1]);
  detail::expects(n < index_t{1} << 32, function, "y must have fewer than 2^32 rows, got ", n);
  detail::expects(!mask || ((mask->shape[0] == q || mask->shape[0] == 1) && mask->shape[1] == n),
                  function, "mask must have shape (", q, ", ", n, ") or (1, ", n, "), got (",
                  mask ? mask->shape[0] : 0, ", ", mask ? mask->shape[1] : 0, ")");
  detail::expects(!params.exclude_self || q == n, function,
                  "exclude_self must be false unless x and y have the same rows, got ", q, " and ",
                  n);
}

template <class V, class T>
void check_output(char const* function, char const* name, V const& out, index_t rows, index_t k,
                  strided_view<T const, 2> x, strided_view<T const, 2> y) {
  detail::expects(
      out.shape == std::array<index_t, 2>{rows, k} && out.is_row_major() && out.device == x.device,
      function, name, " must be C-ordered, on the device of x, and of the documented shape");
  detail::expects(!overlaps(out, x) && !overlaps(out, y), function, name,
                  " must not overlap an input");
}

std::vector<index_t> first_integers(index_t count) {
  std::vector<index_t> all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), index_t{0});
  return all;
}

// Fewer queries are not worth a first pass; so few are scanned sooner than a pass has packed y.
constexpr index_t k_certified_rows = 64, k_few_rows = 4;

/// Rows of each side from which on it pays that tiles serve both.
constexpr index_t k_worth_both = 4096;

/// Sums of so many products of 8-bit integers are exact in float.
constexpr index_t k_exact_depth = 257;

template <class T>
bool needs_double(index_t d) {
  return std::is_same_v<T, double> || (std::is_integral_v<T> && d > k_exact_depth);
}

index_t pad_of(index_t k) { return std::max<index_t>(8, k / 4); }

/// The first pass, by pairs or not; then by what does not cancel, and in double; then by the
/// definition. Every pass leaves the rows that it could not prove.
template <class T>
void search_until_proved(detail::knn_data<T> const& data, std::vector<index_t> const& all,
                         detail::knn_output out, knn_stats& stats) {
  index_t const k = out.indices.shape[1], pad = pad_of(k);
  std::vector<index_t> rows = all;
  auto const pass = [&]<class P>(detail::pair_kernels const* pairs, index_t more,
                                 bool differences) {
    return search<T, P>(data, pairs, rows, more, differences, out, stats);
  };
  auto const many = [&] { return static_cast<index_t>(rows.size()) > k_few_rows; };
  bool done = false;
  if constexpr (!std::is_same_v<T, double>)
    if (!needs_double<T>(data.depth())) {
      bool const certified = data.params.precision == knn_precision::certified &&
                             !data.exact_scores &&
                             static_cast<index_t>(rows.size()) >= k_certified_rows;
      auto const* const pairs = certified ? SUBSPAN_PICK(find_pair_kernels()) : nullptr;
      done = true;
      if (pairs != nullptr) {
        done = pass.template operator()<float>(pairs, 16 + k / 4, false);
        stats.uncertified_rows = static_cast<index_t>(rows.size());
      }
      if (done && !rows.empty()) done = pass.template operator()<float>(nullptr, pad, false);
      if (done && many()) {
        stats.repeated_rows = static_cast<index_t>(rows.size());
        if (!data.by_product()) done = pass.template operator()<float>(nullptr, 4 * pad, true);
        if (done && many()) pass.template operator()<double>(nullptr, 4 * pad, false);
      }
    }
  if (!done) {
    rows = all;
    // Squares that double cannot hold: distances may be small enough all the same.
    if (!pass.template operator()<double>(nullptr, pad, false)) rows = all;
  }
  stats.scanned_rows = static_cast<index_t>(rows.size());
  scan(data, rows, out);
}

/// Few queries: see in_place_search. Returns the rows that are still to be searched.
template <class T, class P>
std::vector<index_t> search_in_place(detail::knn_data<T>& data, detail::knn_output out,
                                     knn_stats& stats) {
  detail::in_place_search<T, P> const job(data, SUBSPAN_PICK(scan_in_place<T, P>),
                                          pad_of(out.indices.shape[1]), out);
  if (!job.serves()) {
    data.take_sample();
    return first_integers(data.rows());
  }
  std::vector<index_t> rows = job.run();
  if (!rows.empty()) {
    data.take_sample();
    if (data.exact_scores) rows.clear();  // equal scores were selected by index
  }
  stats.in_place_rows = data.rows() - static_cast<index_t>(rows.size());
  return rows;
}

/// Both searches by the same tiles; leaves the rows of x and of y that are still to be searched.
template <class T, class P>
void search_both(detail::knn_data<T> const& data, detail::knn_data<T> const& back,
                 detail::knn_output out, detail::knn_output back_out, std::vector<index_t>& rows,
                 std::vector<index_t>& columns, knn_stats& stats) {
  index_t const pad = pad_of(out.indices.shape[1]);
  auto const& kernels = SUBSPAN_PICK(knn_table<T, P>);
  detail::knn_search<T, P> job(data, kernels, nullptr, rows, pad, false, out);
  detail::knn_search<T, P> other(back, kernels, nullptr, columns, pad, false, back_out);
  if (!job.fits_together(data.rows() + back.rows())) return;
  job.run_with(other);
  stats.symmetric = true;
  stats.difference_tiles += job.difference_tiles();
  if (job.overflowed() || other.overflowed()) return;
  rows = job.unproved();
  columns = other.unproved();
}

/// search<float>(), where sums of products in float will do, or search<double>().
template <class T, class Search>
auto in_precision(index_t d, Search&& search) {
  if constexpr (!std::is_same_v<T, double>)
    if (!needs_double<T>(d)) return search.template operator()<float>();
  return search.template operator()<double>();
}

template <class T, class P>
bool search_within(detail::knn_data<T> const& data, double radius,
                   std::vector<std::vector<detail::ranked>>& found, knn_stats& stats) {
  detail::radius_search<T, P> job(data, SUBSPAN_PICK(knn_table<T, P>), first_integers(data.rows()),
                                  radius);
  detail::run_tiles<P>(data.ctx, job);
  stats.difference_tiles += job.difference_tiles();
  found = job.found();
  return !job.overflowed();
}

}  // namespace

inline namespace SUBSPAN_ABI {

template <class T>
knn_stats knn(context const& ctx, strided_view<T const, 2> x, strided_view<T const, 2> y,
              std::optional<strided_view<std::uint8_t const, 2>> mask,
              strided_view<double, 2> distances, strided_view<index_t, 2> indices,
              knn_params params) {
  constexpr char const* function = "knn";
  check_sets(function, x, y, mask, params);
  index_t const q = x.shape[0], k = indices.shape[1];
  check_output(function, "distances", distances, q, k, x, y);
  check_output(function, "indices", indices, q, k, x, y);
  knn_stats stats;
  if (q == 0 || k == 0) return stats;

  detail::knn_data<T> data(ctx, SUBSPAN_PICK(exact_table<T>), x, y, mask, k, params);
  detail::knn_output const out{distances, indices};
  auto const rows = in_precision<T>(
      data.depth(), [&]<class P>() { return search_in_place<T, P>(data, out, stats); });
  if (!rows.empty()) search_until_proved(data, rows, out, stats);
  return stats;
}

template <class T>
knn_stats knn_both(context const& ctx, strided_view<T const, 2> x, strided_view<T const, 2> y,
                   strided_view<double, 2> distances, strided_view<index_t, 2> indices,
                   strided_view<double, 2> back_distances, strided_view<index_t, 2> back_indices,
                   metric how) {
  constexpr char const* function = "knn_both";
  knn_params const params{how};
  check_sets<T>(function, x, y, std::nullopt, params);
  index_t const q = x.shape[0], n = y.shape[0], k = indices.shape[1];
  check_output(function, "distances", distances, q, k, x, y);
  check_output(function, "indices", indices, q, k, x, y);
  check_output(function, "back_distances", back_distances, n, k, x, y);
  check_output(function, "back_indices", back_indices, n, k, x, y);
  knn_stats stats;
  if (k == 0) return stats;

  auto const& exact = SUBSPAN_PICK(exact_table<T>);
  detail::knn_data<T> data(ctx, exact, x, y, std::nullopt, k, params);
  detail::knn_data<T> back(ctx, exact, y, x, std::nullopt, k, params);
  data.take_sample();
  auto rows = first_integers(q), columns = first_integers(n);
  detail::knn_output const out{distances, indices}, back_out{back_distances, back_indices};
  if (!data.by_product() && std::min(q, n) >= k_worth_both) {
    back.shift = data.shift;
    back.exact_scores = data.exact_scores;
    in_precision<T>(data.depth(), [&]<class P>() {
      search_both<T, P>(data, back, out, back_out, rows, columns, stats);
    });
  } else {
    back.take_sample();
  }
  if (!rows.empty()) search_until_proved(data, rows, out, stats);
  if (!columns.empty()) search_until_proved(back, columns, back_out, stats);
  return stats;
}

template <class T>
knn_stats radius_neighbors(context const& ctx, strided_view<T const, 2> x,
                           strided_view<T const, 2> y,
                           std::optional<strided_view<std::uint8_t const, 2>> mask, double radius,
                           strided_view<index_t, 1> offsets,
                           ragged_allocator<double> const& allocate, knn_params params) {
  constexpr char const* function = "radius_neighbors";
  check_sets(function, x, y, mask, params);
  index_t const q = x.shape[0];
  detail::expects(params.metric == metric::inner_product ? !std::isnan(radius) : radius >= 0,
                  function, "radius must be a number >= 0, got ", radius);
  detail::expects(offsets.shape[0] == q + 1 && offsets.is_row_major() && offsets.device == x.device,
                  function, "offsets must be C-ordered, on the device of x, and of shape (", q + 1,
                  ",)");
  knn_stats stats;
  std::vector<std::vector<detail::ranked>> found(static_cast<std::size_t>(q));
  detail::knn_data<T> data(ctx, SUBSPAN_PICK(exact_table<T>), x, y, mask, y.shape[0], params);
  data.take_sample();
  bool done = false;
  if constexpr (!std::is_same_v<T, double>)
    if (!needs_double<T>(x.shape[1])) done = search_within<T, float>(data, radius, found, stats);
  if (!done && !search_within<T, double>(data, radius, found, stats)) {
    stats.scanned_rows = q;
    scan_within(data, radius, found);
  }

  offsets(0) = 0;
  for (index_t i = 0; i < q; ++i)
    offsets(i + 1) = offsets(i) + static_cast<index_t>(found[static_cast<std::size_t>(i)].size());
  auto const out = allocate(offsets(q));
  detail::parallel_for(ctx, q, 64, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      index_t at = offsets(i);
      for (auto const& neighbor : found[static_cast<std::size_t>(i)]) {
        out.values(at) = detail::as_asked(params.metric, neighbor.distance);
        out.indices(at++) = neighbor.id;
      }
    }
  });
  return stats;
}

#define SUBSPAN_INSTANTIATE(T)                                                                     \
  template knn_stats knn<T>(context const&, strided_view<T const, 2>, strided_view<T const, 2>,    \
                            std::optional<strided_view<std::uint8_t const, 2>>,                    \
                            strided_view<double, 2>, strided_view<index_t, 2>, knn_params);        \
  template knn_stats knn_both<T>(                                                                  \
      context const&, strided_view<T const, 2>, strided_view<T const, 2>, strided_view<double, 2>, \
      strided_view<index_t, 2>, strided_view<double, 2>, strided_view<index_t, 2>, metric);        \
  template knn_stats radius_neighbors<T>(                                                          \
      context const&, strided_view<T const, 2>, strided_view<T const, 2>,                          \
      std::optional<strided_view<std::uint8_t const, 2>>, double, strided_view<index_t, 1>,        \
      ragged_allocator<double> const&, knn_params);
SUBSPAN_INSTANTIATE(half)
SUBSPAN_INSTANTIATE(bfloat16)
SUBSPAN_INSTANTIATE(float)
SUBSPAN_INSTANTIATE(double)
SUBSPAN_INSTANTIATE(std::int8_t)
SUBSPAN_INSTANTIATE(std::uint8_t)
#undef SUBSPAN_INSTANTIATE

}  // namespace v0
}  // namespace subspan

#endif  // SUBSPAN_ONCE
