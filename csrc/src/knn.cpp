#include "subspan/knn.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <bit>
#include <cmath>
#include <numeric>

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
    data.exact.widen(data.row_of(data.x, row), data.x.strides[1], data.depth(), wide.data());
    detail::workspace<row_selector<double>::entry_type> buffer(data.ctx,
                                                               row_selector<double>::room(k));
    row_selector<double> best(k, buffer.data());
    bool const has_neighbors = std::all_of(wide.data(), wide.data() + data.depth(),
                                           [](double v) { return std::isfinite(v); });
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
    data.exact.widen(data.row_of(data.x, row), data.x.strides[1], data.depth(), wide.data());
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
  if (all && !only_differences && data.is_symmetric() &&
      job.fits_symmetric(data.rows(), out.indices.shape[1] + pad + 1)) {
    job.run_symmetric();
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

std::vector<index_t> first_integers(index_t count) {
  std::vector<index_t> all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), index_t{0});
  return all;
}

// Fewer queries are not worth a first pass; so few are scanned sooner than a pass has packed y.
constexpr index_t k_certified_rows = 64, k_few_rows = 4;

/// Sums of so many products of 8-bit integers are exact in float.
constexpr index_t k_exact_depth = 257;

template <class T>
bool needs_double(index_t d) {
  return std::is_same_v<T, double> || (std::is_integral_v<T> && d > k_exact_depth);
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
  index_t const q = x.shape[0], d = x.shape[1], k = indices.shape[1];
  auto const check = [&](char const* name, auto const& out) {
    detail::expects(
        out.shape == std::array<index_t, 2>{q, k} && out.is_row_major() && out.device == x.device,
        function, name, " must be C-ordered, on the device of x, and of the documented shape");
    detail::expects(!overlaps(out, x) && !overlaps(out, y), function, name,
                    " must not overlap an input");
  };
  check("distances", distances);
  check("indices", indices);
  knn_stats stats;
  if (q == 0 || k == 0) return stats;

  detail::knn_data<T> const data(ctx, SUBSPAN_PICK(exact_table<T>), x, y, mask, k, params);
  detail::knn_output const out{distances, indices};
  index_t const pad = std::max<index_t>(8, k / 4);
  std::vector<index_t> rows = first_integers(q);

  // The first pass, by pairs or not; then by what does not cancel, and in double; then by the
  // definition. Every pass leaves the rows that it could not prove.
  auto const pass = [&]<class P>(detail::pair_kernels const* pairs, index_t more,
                                 bool differences) {
    return search<T, P>(data, pairs, rows, more, differences, out, stats);
  };
  auto const many = [&] { return static_cast<index_t>(rows.size()) > k_few_rows; };
  bool done = false;
  if constexpr (!std::is_same_v<T, double>)
    if (!needs_double<T>(d)) {
      bool const certified = params.precision == knn_precision::certified && !data.exact_scores &&
                             q >= k_certified_rows;
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
    rows = first_integers(q);
    // Squares that double cannot hold: distances may be small enough all the same.
    if (!pass.template operator()<double>(nullptr, pad, false)) rows = first_integers(q);
  }
  stats.scanned_rows = static_cast<index_t>(rows.size());
  scan(data, rows, out);
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
  detail::knn_data<T> const data(ctx, SUBSPAN_PICK(exact_table<T>), x, y, mask, y.shape[0], params);
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

#define SUBSPAN_INSTANTIATE(T)                                                                  \
  template knn_stats knn<T>(context const&, strided_view<T const, 2>, strided_view<T const, 2>, \
                            std::optional<strided_view<std::uint8_t const, 2>>,                 \
                            strided_view<double, 2>, strided_view<index_t, 2>, knn_params);     \
  template knn_stats radius_neighbors<T>(                                                       \
      context const&, strided_view<T const, 2>, strided_view<T const, 2>,                       \
      std::optional<strided_view<std::uint8_t const, 2>>, double, strided_view<index_t, 1>,     \
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
