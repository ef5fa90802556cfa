#include "subspan/topk.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <bit>

#include "detail/contract.hpp"
#include "detail/dtypes.hpp"
#include "detail/radix_select.hpp"
#include "detail/route.hpp"
#include "detail/topk_kernels.hpp"

#define SUBSPAN_FILE "topk.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {
#include "detail/row_selector.inl.hpp"
#include "detail/widen.inl.hpp"

/// Elements that one threshold is made for. They stay in the second cache.
template <class S>
constexpr index_t block_size(index_t k) {
  return std::max<index_t>(32768, 16 * group_count<S>(k));
}
constexpr index_t k_listed = 64;     // stacks between two looks at the threshold
constexpr index_t k_widened = 1024;  // elements, where they must be converted

/// Elements as scores: in place where they are, else by way of `buffer`.
template <class T>
detail::score_of<T> const* scores_of(detail::source<T> const& row, index_t begin, index_t count,
                                     detail::score_of<T>* buffer) {
  using S = detail::score_of<T>;
  T const* const first = row.data + begin * row.stride;
  if constexpr (std::is_same_v<T, S>)
    if (row.stride == 1) return first;
  widen<T, S>(first, row.stride, count, buffer);
  return buffer;
}

template <class T>
void scan(detail::source<T> const& row, index_t begin, index_t end,
          detail::row_selector<detail::score_of<T>>& best, detail::score_of<T>* scratch) {
  using S = detail::score_of<T>;
  using key_type = typename detail::score_order<S>::key_type;
  constexpr index_t size = stack_size<S>, width = lanes_of<S>::count;
  S buffer[k_widened];
  std::uint32_t list[k_listed];
  S* const summary = scratch + group_count<S>(best.k());
  index_t const block = block_size<S>(best.k());
  for (index_t j = begin; j < end && !best.closed(); j += block) {
    index_t const count = std::min(block, end - j), stacks = count / size;
    for (index_t c = 0; c < stacks; c += k_widened / size) {
      index_t const part = std::min(k_widened / size, stacks - c);
      summarize<S>(scores_of(row, j + c * size, part * size, buffer), part, row.reversal,
                   summary + c * width);
    }
    if (raise_by<S>(best, summary, stacks, scratch))
      for (index_t c = 0; c < stacks; c += k_listed) {
        index_t const listed =
            list_stacks<S>(summary + c * width, std::min(k_listed, stacks - c), best.least(), list);
        for (index_t i = 0; i < listed && !best.closed(); ++i) {
          index_t const first = j + (c + list[i]) * size;
          push_stack<S>(best, scores_of(row, first, size, buffer),
                        static_cast<std::uint32_t>(first), row.reversal);
        }
      }
    index_t const rest = count - stacks * size;
    S const* const scores = scores_of(row, j + stacks * size, rest, buffer);  // less than a stack
    for (index_t i = 0; i < rest; ++i) {
      key_type bits;
      __builtin_memcpy(&bits, scores + i, sizeof bits);
      best.add(std::bit_cast<S>(static_cast<key_type>(bits ^ row.reversal)),
               static_cast<std::uint32_t>(j + stacks * size + i));
    }
  }
}

template <class T>
void read_keys(detail::source<T> const& row, index_t begin, index_t count,
               typename detail::topk_kernels<T>::key* out) {
  using S = detail::score_of<T>;
  using order = detail::score_order<S>;
  S block[detail::k_key_block];
  widen<T, S>(row.data + begin * row.stride, row.stride, count, block);
  auto const reversal = row.reversal;
#pragma omp simd
  for (index_t j = 0; j < count; ++j) {
    auto const bits = std::bit_cast<typename order::key_type>(block[j]) ^ reversal;
    out[j] = order::key(std::bit_cast<S>(static_cast<typename order::key_type>(bits)));
  }
}

template <class T>
index_t scan_scratch(index_t k) {
  using S = detail::score_of<T>;
  return group_count<S>(k) + block_size<S>(k) / k_stack;
}

template <class T>
inline constexpr detail::topk_kernels<T> topk_table{&scan_scratch<T>, &scan<T>, &read_keys<T>,
                                                    &rank_entries};

}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace subspan {
namespace {

using detail::entry;
using detail::index_of;

// Selecting by a threshold gives way to selecting by digits where k is large for its row.
constexpr bool is_filtered(index_t k, index_t n) { return 8 * k <= n && (k <= 512 || 16 * k <= n); }
// Rows of at most so many elements are sorted by comparison if they are not filtered.
constexpr index_t k_short_row = 768;
constexpr index_t k_ranked = 128;
constexpr index_t k_compared = 256;
// Elements that a chunk of work is worth.
constexpr index_t k_chunk = index_t{1} << 16;
// Elements that may be fetched together.
constexpr index_t k_tile = index_t{1} << 22;

template <class T>
class selection {
 public:
  using score = detail::score_of<T>;
  using order = detail::score_order<score>;
  using key = typename order::key_type;
  using selector = detail::row_selector<score>;

  selection(context const& ctx, strided_view<T const, 3> x, strided_view<T, 3> values,
            strided_view<index_t, 3> indices, topk_params params)
      : ctx_(ctx),
        serial_(ctx),
        kernels_(SUBSPAN_PICK(topk_table<T>)),
        x_(x),
        values_(values),
        indices_(indices),
        params_(params),
        rows_(x.shape[0] * x.shape[1]),
        n_(x.shape[2]),
        k_(values.shape[2]) {
    serial_.threads = 1;
    serial_.executor = {};
  }

  void run() const {
    int const threads = detail::thread_count(ctx_);
    if (rows_ < index_t{4} * threads && threads > 1 && n_ >= 2 * k_chunk) {
      for (index_t r = 0; r < rows_; ++r) select(ctx_, r, r + 1);
      return;
    }
    index_t const worth = std::max<index_t>(k_chunk / 4 / n_, 1);
    detail::parallel_for(ctx_, rows_,
                         std::max(std::clamp<index_t>(rows_ / (8 * threads), 1, 256), worth),
                         [&](index_t begin, index_t end) { select(serial_, begin, end); });
  }

 private:
  detail::source<T> row(index_t r) const {
    auto const [outer, inner, stride] = x_.strides;
    return {x_.data + r / x_.shape[1] * outer + r % x_.shape[1] * inner, stride,
            params_.largest ? key{0} : order::reversal};
  }

  /// Rows that are fetched together where the elements of one row lie apart and those of several side
  /// by side: a cache line of x is then used whole. 1: rows are read where they are.
  index_t rows_at_once() const {
    index_t const inner = std::abs(x_.strides[1]), stride = std::abs(x_.strides[2]);
    if (stride <= 1 || x_.shape[1] == 1 || inner >= stride) return 1;
    constexpr auto line = static_cast<index_t>(64 / sizeof(T));
    return std::clamp<index_t>(k_tile / n_, 1, line);
  }

  void select(context const& ctx, index_t begin, index_t end) const {
    index_t const side_by_side = std::min(rows_at_once(), end - begin);
    if (side_by_side == 1) return select_rows(ctx, begin, end);
    detail::workspace<T> tile(ctx, side_by_side * n_);
    for (index_t r = begin, count = 0; r < end; r += count) {
      count = std::min({side_by_side, end - r, x_.shape[1] - r % x_.shape[1]});
      T const* const from = row(r).data;
      for (index_t j = 0; j < n_; ++j)
        for (index_t i = 0; i < count; ++i)
          tile[i * n_ + j] = from[j * x_.strides[2] + i * x_.strides[1]];
      selection fetched(*this);
      fetched.x_ = make_view<3>(static_cast<T const*>(tile.data()), {1, count, n_});
      fetched.values_.data += r * k_;
      fetched.indices_.data += r * k_;
      fetched.select_rows(ctx, 0, count);
    }
  }

  void select_rows(context const& ctx, index_t begin, index_t end) const {
    if (is_filtered(k_, n_))
      filter(ctx, begin, end);
    else if (n_ <= k_short_row)
      sort_short(ctx, begin, end);
    else
      by_digits(ctx, begin, end);
  }

  /// parallel_for without its fixed costs where there is but one range: rows may be short.
  template <class Body>
  static void ranges(context const& ctx, index_t n, index_t grain, Body&& body) {
    if (n <= grain)
      body(index_t{0}, n);
    else
      detail::parallel_for(ctx, n, grain, body);
  }

  // k is small: one pass with a threshold, every part of a row by its own.
  void filter(context const& ctx, index_t begin, index_t end) const {
    index_t const threads = detail::thread_count(ctx);
    index_t const parts =
        threads > 1 ? std::clamp<index_t>(n_ / std::max(k_chunk, 16 * k_), 1, 4 * threads) : 1;
    index_t const grain = (n_ + parts - 1) / parts;
    index_t const room = selector::room(k_), scratch_room = kernels_.scratch(k_);
    detail::workspace<entry<key>> best(ctx, parts * room), spare(ctx, k_);
    detail::workspace<score> scratch(ctx, parts * scratch_room);
    detail::workspace<index_t> counts(ctx, parts);
    for (index_t r = begin; r < end; ++r) {
      auto const from = row(r);
      ranges(ctx, n_, grain, [&](index_t first, index_t last) {
        index_t const part = first / grain;
        selector part_best(k_, best.data() + part * room);
        kernels_.scan(from, first, last, part_best, scratch.data() + part * scratch_room);
        counts[part] = part_best.count();
      });
      index_t found = 0;
      for (index_t part = 0; part * grain < n_; ++part) {
        std::copy_n(best.data() + part * room, counts[part], best.data() + found);
        found += counts[part];
      }
      if (found < k_) add_nan(from, best.data(), found);
      finish(ctx, r, best.data(), found, spare.data());
    }
  }

  // The row is short: all of it is compared.
  void sort_short(context const& ctx, index_t begin, index_t end) const {
    detail::workspace<key> keys(ctx, n_);
    detail::workspace<entry<key>> all(ctx, n_ + selector::widest), spare(ctx, k_);
    for (index_t r = begin; r < end; ++r) {
      read_keys(row(r), 0, n_, keys.data());
      for (index_t j = 0; j < n_; ++j)
        all[j] = detail::make_entry<key>(keys[j], static_cast<std::uint32_t>(j));
      finish(ctx, r, all.data(), n_, spare.data());
    }
  }

  // k is a good part of a long row.
  void by_digits(context const& ctx, index_t begin, index_t end) const {
    detail::workspace<entry<key>> chosen(ctx, k_), spare(ctx, k_);
    for (index_t r = begin; r < end; ++r) {
      auto const read = [this, from = row(r)](index_t first, index_t count, key* out) {
        read_keys(from, first, count, out);
      };
      if (k_ < n_) {
        auto const last = detail::kth_entry<key>(ctx, n_, k_, read);
        detail::collect<key>(
            ctx, n_, read,
            [last](key k, std::uint32_t j) { return detail::make_entry<key>(k, j) >= last; },
            chosen.data());
      } else {
        detail::collect<key>(ctx, n_, read, [](key, std::uint32_t) { return true; }, chosen.data());
      }
      deliver(ctx, r,
              params_.sorted
                  ? detail::sort_by_digits<key>(ctx, chosen.data(), spare.data(), k_, 0, k_key_bits)
                  : chosen.data());
    }
  }

  /// Reads blocks of any length.
  void read_keys(detail::source<T> const& from, index_t first, index_t count, key* out) const {
    for (index_t j = 0; j < count; j += detail::k_key_block)
      kernels_.keys(from, first + j, std::min(detail::k_key_block, count - j), out + j);
  }

  /// There are fewer numbers than k: NaN follow, in the order of their indices.
  void add_nan(detail::source<T> const& from, entry<key>* entries, index_t& found) const {
    key keys[detail::k_key_block];
    for (index_t j = 0; found < k_; j += detail::k_key_block) {
      index_t const count = std::min(detail::k_key_block, n_ - j);
      kernels_.keys(from, j, count, keys);
      for (index_t i = 0; i < count && found < k_; ++i)
        if (keys[i] == 0)
          entries[found++] = detail::make_entry<key>(0, static_cast<std::uint32_t>(j + i));
    }
  }

  /// The k best of `found` entries in any order, in the order that is asked for.
  void finish(context const& ctx, index_t r, entry<key>* entries, index_t found,
              entry<key>* spare) const {
    if constexpr (sizeof(key) == 4)
      if (found <= k_ranked) {
        kernels_.rank(entries, found, k_, spare);
        if (!params_.sorted) {  // once more, with the index in the upper half
          std::transform(spare, spare + k_, entries, [](auto e) { return std::rotl(e, 32); });
          kernels_.rank(entries, k_, k_, spare);
          std::transform(spare, spare + k_, spare, [](auto e) { return std::rotl(e, 32); });
        }
        return deliver(ctx, r, spare);
      }
    if (found > k_)
      std::nth_element(entries, entries + (k_ - 1), entries + found, std::greater<>());
    if (k_ > k_compared)
      entries = detail::sort_by_digits<key>(ctx, entries, spare, k_,
                                            std::bit_width(static_cast<std::uint64_t>(n_ - 1)),
                                            params_.sorted ? k_key_bits : 0);
    else if (params_.sorted)
      std::sort(entries, entries + k_, std::greater<>());
    else
      std::sort(entries, entries + k_,
                [](entry<key> const& a, entry<key> const& b) { return index_of(a) < index_of(b); });
    deliver(ctx, r, entries);
  }

  void deliver(context const& ctx, index_t r, entry<key> const* entries) const {
    auto const from = row(r);
    T* const values = values_.data + r * k_;
    index_t* const indices = indices_.data + r * k_;
    ranges(ctx, k_, k_chunk, [&](index_t begin, index_t end) {
      for (index_t j = begin; j < end; ++j) {
        index_t const index = index_of(entries[j]);
        values[j] = from.data[index * from.stride];
        indices[j] = index;
      }
    });
  }

  static constexpr int k_key_bits = 8 * sizeof(key);

  context ctx_, serial_;
  detail::topk_kernels<T> const& kernels_;
  strided_view<T const, 3> x_;
  strided_view<T, 3> values_;
  strided_view<index_t, 3> indices_;
  topk_params params_;
  index_t rows_, n_, k_;
};

}  // namespace

inline namespace SUBSPAN_ABI {

template <class T>
void topk(context const& ctx, strided_view<T const, 3> x, strided_view<T, 3> values,
          strided_view<index_t, 3> indices, topk_params params) {
  constexpr char const* function = "topk";
  auto const [outer, inner, n] = x.shape;
  index_t const k = values.shape[2];
  detail::expects(n < index_t{1} << 32, function,
                  "x must have fewer than 2^32 elements along its last axis, got ", n);
  detail::expects(k >= 1 && k <= n, function, "k must be in 1..", n, ", got ", k);
  auto const check = [&](char const* name, auto const& out) {
    detail::expects(out.shape == std::array<index_t, 3>{outer, inner, k} && out.is_row_major() &&
                        out.device == x.device,
                    function, name,
                    " must be C-ordered, on the device of x, and of the documented shape");
    detail::expects(!overlaps(out, x), function, name, " must not overlap x");
  };
  check("values", values);
  check("indices", indices);
  detail::expects(!overlaps(values, indices), function, "values must not overlap indices");
  detail::route(
      function, x.device, [&] { selection<T>(ctx, x, values, indices, params).run(); },
      [&](subspan_cuda_table const& cuda) {
        subspan_cuda_topk_call const call{x.data,
                                          outer,
                                          inner,
                                          n,
                                          k,
                                          {x.strides[0], x.strides[1], x.strides[2]},
                                          detail::cuda_dtype<T>(),
                                          x.device.index,
                                          ctx.stream,
                                          params.largest,
                                          params.sorted,
                                          values.data,
                                          indices.data};
        char message[256] = {};
        detail::check_cuda(function, cuda.topk(&call, message, sizeof message), message);
      });
}

#define SUBSPAN_INSTANTIATE(T)                                                        \
  template void topk<T>(context const&, strided_view<T const, 3>, strided_view<T, 3>, \
                        strided_view<index_t, 3>, topk_params);
SUBSPAN_FOREACH_ORDERED(SUBSPAN_INSTANTIATE)
#undef SUBSPAN_INSTANTIATE

}  // namespace v0
}  // namespace subspan

#endif  // SUBSPAN_ONCE
