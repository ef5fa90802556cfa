#include "subspan/encode.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "detail/certified_encoding.hpp"
#include "detail/contract.hpp"
#include "detail/cuda_views.hpp"
#include "detail/dtypes.hpp"
#include "detail/product_tile.hpp"
#include "detail/route.hpp"

#define SUBSPAN_FILE "encode.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {
// In this order: the later ones need the earlier.
// clang-format off
#include "detail/narrow.inl.hpp"
#include "detail/widen.inl.hpp"
#include "detail/product_tile.inl.hpp"
#include "detail/row_selector.inl.hpp"
#include "detail/tile_engine.inl.hpp"
#include "detail/transpose.inl.hpp"
#include "detail/encode_in_place.inl.hpp"
#include "detail/encode_kernels.inl.hpp"
#include "detail/encode_pairs.inl.hpp"
// clang-format on
}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace subspan {
namespace {

template <class T>
auto const& table() {
  return SUBSPAN_PICK(encode_table<T, detail::product_type<T>>);
}

// A first pass pays where there is much to multiply and little to choose.
constexpr index_t k_certified_rows = 512, k_certified_depth = 256;

/// By a first pass in low precision, where that can be done and pays; returns the rows that are left
/// to be encoded.
template <class T>
std::optional<std::vector<index_t>> encode_certified(context const& ctx, strided_view<T const, 2> x,
                                                     encoder<T> const& how,
                                                     strided_view<T, 2> values,
                                                     strided_view<index_t, 2> indices,
                                                     activation rectifier) {
  if constexpr (!std::is_same_v<T, double>) {
    auto const* const pairs = SUBSPAN_PICK(find_pair_kernels<T>());
    index_t const k = values.shape[1], n = how.w_enc.shape[1];
    if (pairs == nullptr || x.shape[0] < k_certified_rows || x.shape[1] < k_certified_depth ||
        256 * k > n)
      return std::nullopt;
    detail::certified_encoding<T> job(ctx, table<T>(), *pairs, x, how, values, indices, rectifier);
    detail::run_tiles<float>(ctx, job);
    return job.failed();
  }
  return std::nullopt;
}

template <class T>
void check(char const* function, strided_view<T const, 2> x, encoder<T> const& how) {
  index_t const d = x.shape[1], n = how.w_enc.shape[1];
  detail::expects(how.w_enc.shape[0] == d, function, "w_enc must have d = ", d,
                  " rows, one per column of x, got ", how.w_enc.shape[0]);
  detail::expects(n < index_t{1} << 32 && x.shape[0] < index_t{1} << 32, function,
                  "w_enc must have fewer than 2^32 columns and x so many rows, got ", n, " and ",
                  x.shape[0]);
  auto const beside = [&](char const* name, auto const& view) {
    detail::expects(view.device == x.device, function, name, " must be on the device of x");
  };
  auto const length = [&](char const* name, auto const& vector, index_t wanted) {
    if (!vector) return;
    detail::expects(vector->shape[0] == wanted, function, name, " must have ", wanted,
                    " elements, got ", vector->shape[0]);
    beside(name, *vector);
  };
  beside("w_enc", how.w_enc);
  length("b_enc", how.b_enc, n);
  length("b_pre", how.b_pre, d);
}

template <class T, class Out, int Rank>
void check_output(char const* function, char const* name, strided_view<T const, 2> x,
                  encoder<T> const& how, strided_view<Out, Rank> const& out,
                  std::array<index_t, Rank> shape) {
  detail::expects(out.shape == shape && out.is_row_major() && out.device == x.device, function,
                  name, " must be C-ordered, on the device of x, and of the documented shape");
  detail::expects(!overlaps(out, x) && !overlaps(out, how.w_enc), function, name,
                  " must not overlap an input");
}

/// Turns counts behind their rows into offsets.
void accumulate(strided_view<index_t, 1> offsets) {
  for (index_t t = 1; t < offsets.shape[0]; ++t) offsets(t) += offsets(t - 1);
}

}  // namespace

inline namespace SUBSPAN_ABI {

template <class T>
void topk_encode(context const& ctx, strided_view<T const, 2> x, encoder<T> const& how,
                 strided_view<T, 2> values, strided_view<index_t, 2> indices, activation rectifier,
                 encode_precision how_exact) {
  constexpr char const* function = "topk_encode";
  index_t const k = values.shape[1], n = how.w_enc.shape[1];
  check(function, x, how);
  detail::expects(k >= 1 && k <= n, function, "k must be in 1..", n, ", got ", k);
  check_output<T, T, 2>(function, "values", x, how, values, {x.shape[0], k});
  check_output<T, index_t, 2>(function, "indices", x, how, indices, {x.shape[0], k});
  detail::route(
      function, x.device,
      [&] {
        std::vector<index_t> left;
        if (how_exact == encode_precision::certified)
          if (auto failed = encode_certified<T>(ctx, x, how, values, indices, rectifier)) {
            if (failed->empty()) return;
            left = std::move(*failed);
          }
        detail::topk_encoding<T> job(ctx, table<T>(), x, how, values, indices, rectifier,
                                     std::move(left));
        detail::run_encoding(ctx, job);
      },
      [&](subspan_cuda_table const& cuda) {
        subspan_cuda_encode_call const call{detail::cuda_matrix(x),
                                            detail::cuda_matrix(how.w_enc),
                                            detail::cuda_vector(how.b_enc),
                                            detail::cuda_vector(how.b_pre),
                                            k,
                                            static_cast<std::int32_t>(rectifier),
                                            detail::cuda_dtype<T>(),
                                            x.device.index,
                                            ctx.stream,
                                            values.data,
                                            indices.data};
        char message[256] = {};
        detail::check_cuda(function, cuda.encode(&call, message, sizeof message), message);
      });
}

template <class T>
void batch_topk_encode(context const& ctx, strided_view<T const, 2> x, encoder<T> const& how,
                       index_t count, strided_view<index_t, 1> offsets,
                       ragged_allocator<T> const& allocate, activation rectifier) {
  constexpr char const* function = "batch_topk_encode";
  using order = detail::score_order<detail::product_type<T>>;
  detail::require_cpu(function, x.device);
  check(function, x, how);
  index_t const all = x.shape[0] * how.w_enc.shape[1];
  detail::expects(count >= 0 && count <= all, function, "count must be in 0..", all, ", got ",
                  count);
  check_output<T, index_t, 1>(function, "offsets", x, how, offsets, {x.shape[0] + 1});
  detail::batch_encoding<T> job(ctx, table<T>(), x, how, std::max<index_t>(count, 1), rectifier);
  if (count > 0) detail::run_encoding(ctx, job);
  auto const entries = job.entries();
  auto const out = allocate(static_cast<index_t>(entries.size()));
  for (index_t t = 0; t <= x.shape[0]; ++t) offsets(t) = 0;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    std::uint64_t const place = ~entries[i].place;
    out.values(i) = table<T>().narrow(order::score(entries[i].key));
    out.indices(i) = static_cast<index_t>(place & 0xffffffffu);
    ++offsets(static_cast<index_t>(place >> 32) + 1);
  }
  accumulate(offsets);
}

template <class T>
void threshold_encode(context const& ctx, strided_view<T const, 2> x, encoder<T> const& how,
                      strided_view<T const, 1> threshold, strided_view<index_t, 1> offsets,
                      ragged_allocator<T> const& allocate) {
  constexpr char const* function = "threshold_encode";
  detail::require_cpu(function, x.device);
  check(function, x, how);
  detail::expects(threshold.shape[0] == how.w_enc.shape[1], function, "threshold must have ",
                  how.w_enc.shape[1], " elements, got ", threshold.shape[0]);
  check_output<T, index_t, 1>(function, "offsets", x, how, offsets, {x.shape[0] + 1});
  detail::threshold_encoding<T> job(ctx, table<T>(), x, how, threshold);
  detail::run_encoding(ctx, job);

  for (index_t t = 0; t <= x.shape[0]; ++t) offsets(t) = 0;
  job.each([&](index_t row, auto const&) { ++offsets(row + 1); });
  accumulate(offsets);
  auto const out = allocate(offsets(x.shape[0]));
  std::vector<std::pair<std::uint32_t, detail::product_type<T>>> codes(
      static_cast<std::size_t>(offsets(x.shape[0])));
  std::vector<index_t> next(static_cast<std::size_t>(x.shape[0]));
  for (index_t t = 0; t < x.shape[0]; ++t) next[static_cast<std::size_t>(t)] = offsets(t);
  job.each([&](index_t row, auto const& hit) {
    codes[static_cast<std::size_t>(next[static_cast<std::size_t>(row)]++)] = {hit.column,
                                                                              hit.value};
  });
  detail::parallel_for(ctx, x.shape[0], 64, [&](index_t begin, index_t end) {
    for (index_t t = begin; t < end; ++t)
      std::sort(codes.begin() + offsets(t), codes.begin() + offsets(t + 1),
                [](auto const& a, auto const& b) { return a.first < b.first; });
    for (index_t i = offsets(begin); i < offsets(end); ++i) {
      out.values(i) = table<T>().narrow(codes[static_cast<std::size_t>(i)].second);
      out.indices(i) = codes[static_cast<std::size_t>(i)].first;
    }
  });
}

#define SUBSPAN_INSTANTIATE(T)                                                                    \
  template void topk_encode<T>(context const&, strided_view<T const, 2>, encoder<T> const&,       \
                               strided_view<T, 2>, strided_view<index_t, 2>, activation,          \
                               encode_precision);                                                 \
  template void batch_topk_encode<T>(context const&, strided_view<T const, 2>, encoder<T> const&, \
                                     index_t, strided_view<index_t, 1>,                           \
                                     ragged_allocator<T> const&, activation);                     \
  template void threshold_encode<T>(context const&, strided_view<T const, 2>, encoder<T> const&,  \
                                    strided_view<T const, 1>, strided_view<index_t, 1>,           \
                                    ragged_allocator<T> const&);
SUBSPAN_FOREACH_STORAGE(SUBSPAN_INSTANTIATE)
#undef SUBSPAN_INSTANTIATE

}  // namespace v0
}  // namespace subspan

#endif  // SUBSPAN_ONCE
