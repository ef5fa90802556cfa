#pragma once

#include <numeric>
#include <utility>

#include "detail/parallel.hpp"
#include "detail/row_selector.hpp"
#include "detail/workspace.hpp"

/// Selecting and sorting where k is not small against the row: by the digits of the keys, in time
/// that depends on neither k nor the order of the row.
///
/// A row is what `read(begin, count, keys)` gives: the keys of a range (0 for NaN). It is never
/// stored as a whole.

namespace subspan::detail {

inline constexpr int k_digit_bits = 11;
inline constexpr index_t k_bins = index_t{1} << k_digit_bits;
inline constexpr index_t k_key_block = 1024;

/// Fixed ranges of 0..n, few enough to keep a histogram of each.
class partition {
 public:
  partition(context const& ctx, index_t n) : n_(n) {
    int const threads = thread_count(ctx);
    index_t const parts =
        threads > 1 ? std::clamp<index_t>(n >> 16, 1, index_t{4} * threads) : index_t{1};
    grain_ = std::max<index_t>((n + parts - 1) / parts, 1);
  }
  index_t parts() const { return (n_ + grain_ - 1) / grain_; }

  /// body(part, begin, end)
  template <class Body>
  void run(context const& ctx, Body&& body) const {
    parallel_for(ctx, n_, grain_,
                 [&](index_t begin, index_t end) { body(begin / grain_, begin, end); });
  }

 private:
  index_t n_, grain_;
};

/// visit(keys, first index, count) on blocks of a range.
template <class Key, class Read, class Visit>
void for_each_block(Read const& read, index_t begin, index_t end, Visit&& visit) {
  Key keys[k_key_block];
  for (index_t j = begin; j < end; j += k_key_block) {
    index_t const count = std::min(k_key_block, end - j);
    read(j, count, keys);
    visit(keys, j, count);
  }
}

/// Writes the entries that `wanted(key, index)` accepts to `out`, in the order of their indices.
template <class Key, class Read, class Wanted>
void collect(context const& ctx, index_t n, Read const& read, Wanted const& wanted,
             entry<Key>* out) {
  partition const parts(ctx, n);
  workspace<index_t> starts(ctx, parts.parts());
  starts[0] = 0;
  if (parts.parts() > 1) {
    parts.run(ctx, [&](index_t part, index_t begin, index_t end) {
      index_t found = 0;
      for_each_block<Key>(read, begin, end, [&](Key const* keys, index_t first, index_t count) {
        for (index_t i = 0; i < count; ++i)
          found += wanted(keys[i], static_cast<std::uint32_t>(first + i)) ? 1 : 0;
      });
      starts[part] = found;
    });
    std::exclusive_scan(starts.data(), starts.data() + parts.parts(), starts.data(), index_t{0});
  }
  parts.run(ctx, [&](index_t part, index_t begin, index_t end) {
    entry<Key>* to = out + starts[part];
    entry<Key> passed[k_key_block];
    for_each_block<Key>(read, begin, end, [&](Key const* keys, index_t first, index_t count) {
      index_t found = 0;
      for (index_t i = 0; i < count; ++i) {  // no branch: half of them may pass
        auto const index = static_cast<std::uint32_t>(first + i);
        passed[found] = make_entry<Key>(keys[i], index);
        found += wanted(keys[i], index) ? 1 : 0;
      }
      to = std::copy_n(passed, found, to);
    });
  });
}

/// The k-th best entry of a row, 1 <= k <= n.
template <class Key, class Read>
entry<Key> kth_entry(context const& ctx, index_t n, index_t k, Read const& read) {
  // Below so many candidates one partial sort is cheaper than another round.
  index_t const few = std::max<index_t>(2048, n / 64);
  partition const parts(ctx, n);
  workspace<std::uint32_t> histograms(ctx, parts.parts() * 2 * (k_bins + 1));
  Key prefix = 0, known = 0;  // what is known of the key: these bits have these values
  index_t candidates = n;
  for (int shift = 8 * sizeof(Key); shift > 0 && candidates > few;) {
    int const width = std::min(k_digit_bits, shift);
    shift -= width;
    auto const digits = static_cast<Key>((Key{1} << width) - 1);
    parts.run(ctx, [&](index_t part, index_t begin, index_t end) {
      // Two histograms in turns: equal keys would wait for each other's counts. Bin k_bins takes
      // what is no candidate.
      std::uint32_t* const even = histograms.data() + part * 2 * (k_bins + 1);
      std::uint32_t* const odd = even + k_bins + 1;
      std::fill_n(even, 2 * (k_bins + 1), 0u);
      for_each_block<Key>(read, begin, end, [&](Key const* keys, index_t, index_t count) {
        auto const bin = [&](Key key) {
          return (key & known) == prefix ? static_cast<index_t>(key >> shift & digits) : k_bins;
        };
        for (index_t i = 0; i + 1 < count; i += 2) {
          ++even[bin(keys[i])];
          ++odd[bin(keys[i + 1])];
        }
        if (count % 2 != 0) ++even[bin(keys[count - 1])];
      });
    });
    index_t digit = k_bins;
    do {
      if (digit < k_bins) k -= candidates;
      --digit;
      candidates = 0;
      for (index_t h = 0; h < 2 * parts.parts(); ++h)
        candidates += histograms[h * (k_bins + 1) + digit];
    } while (candidates < k);
    prefix |= static_cast<Key>(digit) << shift;
    known |= static_cast<Key>(digits << shift);
  }
  workspace<entry<Key>> left(ctx, candidates);
  collect<Key>(
      ctx, n, read, [&](Key key, std::uint32_t) { return (key & known) == prefix; }, left.data());
  // In the order of their indices: of equal keys the k-th stands at its place.
  if (known != static_cast<Key>(~Key{0}))
    std::nth_element(left.data(), left.data() + (k - 1), left.data() + candidates,
                     std::greater<>());
  return left[k - 1];
}

/// Sorts by the index (ascending, its lowest `index_bits` bits) and then by the key (descending, its
/// lowest `key_bits`): with key_bits = 0 into the order of the row, with index_bits = 0 from there
/// into THE order. `spare` has room for n entries; returns the buffer that holds the result.
template <class Key>
entry<Key>* sort_by_digits(context const& ctx, entry<Key>* entries, entry<Key>* spare, index_t n,
                           int index_bits, int key_bits) {
  // Few entries do not pay for many bins.
  int const width = n < 8192 ? 8 : k_digit_bits;
  index_t const bins = index_t{1} << width;
  partition const parts(ctx, n);
  workspace<std::uint32_t> places(ctx, parts.parts() * bins);
  auto const pass = [&](auto const& bin) {
    parts.run(ctx, [&](index_t part, index_t begin, index_t end) {
      std::uint32_t* const counts = places.data() + part * bins;
      std::fill_n(counts, bins, 0u);
      for (index_t i = begin; i < end; ++i) ++counts[bin(entries[i])];
    });
    std::uint32_t place = 0;
    for (index_t b = 0; b < bins; ++b) {
      std::uint32_t const before = place;
      for (index_t at = b; at < parts.parts() * bins; at += bins)
        place += std::exchange(places[at], place);
      if (place - before == n) return;  // all in one bin
    }
    parts.run(ctx, [&](index_t part, index_t begin, index_t end) {
      std::uint32_t* const to = places.data() + part * bins;
      for (index_t i = begin; i < end; ++i) spare[to[bin(entries[i])]++] = entries[i];
    });
    std::swap(entries, spare);
  };
  for (int shift = 0; shift < index_bits; shift += width)
    pass([=](entry<Key> const& e) {
      return static_cast<index_t>(index_of(e) >> shift & (bins - 1));
    });
  for (int shift = 0; shift < key_bits; shift += width)
    pass([=](entry<Key> const& e) {
      return bins - 1 - static_cast<index_t>(key_of(e) >> shift & (bins - 1));
    });
  return entries;
}

}  // namespace subspan::detail
