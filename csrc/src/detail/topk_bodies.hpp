#pragma once

#include <cstdint>
#include <type_traits>

#include "detail/topk_rows.hpp"

/// The k best entries of a row by one block. An element is an entry (key, complement of the index)
/// that is greater than another exactly if it is better, so a set of entries has one k best, whatever
/// the order in which threads see it. A block keeps a buffer in shared memory; elements below a
/// threshold are dropped on sight, others appended. When the buffer is full, the k best of it stay
/// and the threshold rises: each such step costs O(capacity) and makes room for most of it, so any
/// order of a row takes O(n).

namespace subspan::gpu {

/// Shared memory of a block: `capacity` entries, a power of two, then `words` integers.
struct topk_plan {
  static constexpr int bins = 256, words = bins + 8;
  int k, threads, capacity;
  int index_bits;  // of the greatest index

  static constexpr int power_above(int v) {
    int p = 1;
    while (p < v) p *= 2;
    return p;
  }
  /// For rows, or parts of rows, of `length` elements.
  static constexpr topk_plan of(int k, std::int64_t length, int index_bits) {
    int const threads = length <= 1024 ? 64 : length <= 2048 ? 128 : 256;
    int const least = threads == 64 ? 1024 : 8 * threads;  // a warp's tile fits behind k entries
    int const wanted = 4 * power_above(k);
    return {k, threads, wanted > least ? wanted : least, index_bits};
  }
};

template <class Key, class Lanes>
class topk_block {
 public:
  using entry = detail::entry<Key>;

  SUBSPAN_DEVICE topk_block(Lanes const& lanes, topk_plan const& plan, entry* entries, int* words)
      : lanes_(lanes), plan_(plan), entries_(entries), bins_(words), words_(words + plan.bins) {
    if (lanes_.rank() == 0) {
      words_[w_count] = 0;
      words_[w_fitting] = plan_.capacity;
    }
    lanes_.sync();
  }

  /// Goes on, in a new block, with what another one kept and its bound. What is scanned from now on
  /// must have greater indices.
  SUBSPAN_DEVICE void resume(entry const* kept, int count, entry bound) {
    for (int j = lanes_.rank(); j < count; j += lanes_.size()) entries_[j] = kept[j];
    if (lanes_.rank() == 0) words_[w_count] = count;
    cut_ = bound;
    raise_least();
    lanes_.sync();
  }

  /// Appends what may be among the k best of [begin, end). Seeds: nothing was appended before.
  template <bool Seeds = true, class Source>
  SUBSPAN_DEVICE void scan(Source const& source, std::int64_t begin, std::int64_t end) {
    std::int64_t const size = std::int64_t{lanes_.size()} * Source::count;
    std::int64_t from = source.start(begin);
    if constexpr (Seeds)
      if (from + size <= end) seed(source, from, begin, end);
    SUBSPAN_NO_UNROLL
    for (; from < end && !closed_; from += size) {
      typename Source::tile tile;
      std::uint32_t pending = source.load(lanes_, from, begin, end, tile);
      SUBSPAN_UNROLL
      for (int i = 0; i < Source::count; ++i)
        if (!tile.passes(i, least_, cut_)) pending &= ~(1u << i);
      append<Source>(tile, pending);
    }
  }

  /// The k best, in no order; `entries()` holds them then.
  SUBSPAN_DEVICE void select() {
    int const count = words_[w_count];
    lanes_.sync();
    if (count > plan_.k) shrink<false>(count);
  }

  /// What to resume with, the k best among it: at most `most` >= k entries, whose number it returns.
  /// At least k elements must have been scanned.
  SUBSPAN_DEVICE int keep(int most) {
    int const count = words_[w_count];
    lanes_.sync();
    if (count <= most) return count;
    shrink<true>(count);
    return plan_.k;
  }
  SUBSPAN_DEVICE entry bound() const { return cut_; }

  /// The k best, best first or in the order of their indices.
  SUBSPAN_DEVICE void order(bool sorted) {
    int count = words_[w_count];
    lanes_.sync();
    int const least = plan_.power_above(plan_.k);
    if (count > 2 * least) {
      shrink<false>(count);
      count = plan_.k;
    }
    sort<false>(count);
    if (!sorted) sort<true>(plan_.k);
  }

  SUBSPAN_DEVICE entry const* entries() const { return entries_; }

 private:
  enum word { w_count, w_fitting, w_digit, w_needed, w_exact, w_kept };
  static constexpr int k_key_bits = 8 * static_cast<int>(sizeof(Key));

  static SUBSPAN_DEVICE std::uint32_t low_of(entry e) { return ~detail::index_of(e); }

  /// Bits of an entry from `shift` on: those of the key, or of the index alone.
  static SUBSPAN_DEVICE int digit_of(entry e, int shift) {
    return static_cast<int>(shift >= 32 ? detail::key_of(e) >> (shift - 32) : low_of(e) >> shift) &
           (topk_plan::bins - 1);
  }
  static SUBSPAN_DEVICE bool agree(entry a, entry b, int shift) {
    if (shift >= 32 + k_key_bits) return true;
    if (shift >= 32) return ((detail::key_of(a) ^ detail::key_of(b)) >> (shift - 32)) == 0;
    return detail::key_of(a) == detail::key_of(b) && ((low_of(a) ^ low_of(b)) >> shift) == 0;
  }
  static SUBSPAN_DEVICE entry with_digit(entry e, int digit, int shift) {
    Key key = detail::key_of(e);
    std::uint32_t low = low_of(e);
    if (shift >= 32)
      key |= static_cast<Key>(digit) << (shift - 32);
    else
      low |= static_cast<std::uint32_t>(digit) << shift;
    return detail::make_entry<Key>(key, ~low);
  }

  /// A first threshold: of the best of at least 4/3 k groups of elements, k reach some bound.
  template <class Source>
  SUBSPAN_DEVICE void seed(Source const& source, std::int64_t from, std::int64_t begin,
                           std::int64_t end) {
    int const size = lanes_.size();
    bool const coarse = 4 * plan_.k <= 3 * size;
    if (plan_.k > 3 * size) return;
    {
      constexpr int groups = 4, length = Source::count / groups;
      typename Source::tile tile;
      std::uint32_t const valid = source.load(lanes_, from, begin, end, tile);
      entry best[groups];
      SUBSPAN_UNROLL
      for (int g = 0; g < groups; ++g) {
        best[g] = entry{};
        SUBSPAN_UNROLL
        for (int i = g * length; i < (g + 1) * length; ++i) {
          entry const e = tile.at(i);
          if ((valid >> i & 1) != 0 && e >= best[g]) best[g] = e;
        }
        if (!coarse)
          entries_[g * size + lanes_.rank()] = best[g];
        else if (g > 0 && best[g] >= best[0])
          best[0] = best[g];
      }
      if (coarse) entries_[lanes_.rank()] = best[0];
    }
    lanes_.sync();
    cut_ = kth_best(coarse ? size : 4 * size);
    least_ = detail::key_of(cut_);
    lanes_.sync();
  }

  template <class Source>
  SUBSPAN_DEVICE void append(typename Source::tile const& tile, std::uint32_t pending) {
    SUBSPAN_NO_UNROLL
    while (true) {
      if (lanes_.any(pending != 0)) {
        int const mine = bits_set(pending), upto = lane_prefix(lanes_, mine);
        int const total = lanes_.shuffle(upto, k_warp - 1);
        int begin = 0;
        if (lanes_.lane() == 0) begin = fetch_add(words_ + w_count, total);
        begin = lanes_.shuffle(begin, 0);
        if (begin + total <= plan_.capacity) {
          begin += upto - mine;
          SUBSPAN_UNROLL
          for (int i = 0; i < Source::count; ++i)
            if ((pending >> i & 1) != 0) entries_[begin++] = tile.at(i);
          pending = 0;
        } else if (lanes_.lane() == 0) {
          fetch_min(words_ + w_fitting, begin);
        }
      }
      if (!lanes_.any_of_block(pending != 0)) return;
      shrink<Source::ascending>(words_[w_fitting]);
      // This tile may hold smaller indices than what is in the buffer.
      SUBSPAN_UNROLL
      for (int i = 0; i < Source::count; ++i)
        if (!(tile.at(i) >= cut_)) pending &= ~(1u << i);
    }
  }

  /// Keeps the k best of the first `count` > k entries.
  template <bool Ascending>
  SUBSPAN_DEVICE void shrink(int count) {
    cut_ = kth_best(count);
    if (lanes_.rank() == 0) words_[w_kept] = 0;
    SUBSPAN_NO_UNROLL
    for (int base = 0; base < count; base += lanes_.size()) {
      int const j = base + lanes_.rank();
      entry const e = j < count ? entries_[j] : entry{};
      bool const keep = j < count && e >= cut_;
      std::uint32_t const bits = lanes_.ballot(keep);
      lanes_.sync();  // what is written below lies at or before what was read
      if (bits == 0) continue;
      int begin = 0;
      if (lanes_.lane() == 0) begin = fetch_add(words_ + w_kept, bits_set(bits));
      begin = lanes_.shuffle(begin, 0);
      if (keep) entries_[begin + bits_set(bits & ((1u << lanes_.lane()) - 1))] = e;
    }
    if (lanes_.rank() == 0) {
      words_[w_count] = plan_.k;
      words_[w_fitting] = plan_.capacity;
    }
    lanes_.sync();
    if constexpr (Ascending)
      raise_least();
    else
      least_ = detail::key_of(cut_);
  }

  /// All that is kept has at least the key of the bound, and later elements of that key lose to it.
  SUBSPAN_DEVICE void raise_least() {
    least_ = detail::key_of(cut_);
    closed_ = least_ == static_cast<Key>(~Key{0});
    if (!closed_) ++least_;
  }

  /// A bound that exactly k of the first `count` >= k entries reach, by digits from the top.
  SUBSPAN_DEVICE entry kth_best(int count) {
    entry prefix = detail::make_entry<Key>(0, ~std::uint32_t{0});
    int needed = plan_.k;
    SUBSPAN_NO_UNROLL
    for (int shift = 24 + k_key_bits; shift >= 0; shift -= 8) {
      if (shift < 32 && shift >= plan_.index_bits) {  // complements of small indices: ones
        prefix = with_digit(prefix, topk_plan::bins - 1, shift);
        continue;
      }
      for (int j = lanes_.rank(); j < topk_plan::bins; j += lanes_.size()) bins_[j] = 0;
      lanes_.sync();
      SUBSPAN_NO_UNROLL
      for (int j = lanes_.rank(); j < count; j += lanes_.size())
        if (entry const e = entries_[j]; agree(e, prefix, shift + 8))
          fetch_add(bins_ + digit_of(e, shift), 1);
      lanes_.sync();
      if (lanes_.warp() == 0) find_digit(needed);
      lanes_.sync();
      needed = words_[w_needed];
      prefix = with_digit(prefix, words_[w_digit], shift);
      if (words_[w_exact] != 0) break;
    }
    return prefix;
  }

  /// One warp: the bin in which the needed-th entry lies, counted from the last bin.
  SUBSPAN_DEVICE void find_digit(int needed) {
    constexpr int own = topk_plan::bins / k_warp;
    int const last = topk_plan::bins - 1 - lanes_.lane() * own;
    int sum = 0;
    SUBSPAN_UNROLL
    for (int b = 0; b < own; ++b) sum += bins_[last - b];
    int const upto = lane_prefix(lanes_, sum);
    int before = upto - sum;
    if (before >= needed || upto < needed) return;
    int digit = last;
    while (before + bins_[digit] < needed) before += bins_[digit--];
    words_[w_digit] = digit;
    words_[w_needed] = needed - before;
    words_[w_exact] = static_cast<int>(bins_[digit] == needed - before);
  }

  /// Bitonic, greatest first, of the first `count` entries; by the complement of the index alone if
  /// ByIndex.
  template <bool ByIndex>
  SUBSPAN_DEVICE void sort(int count) {
    int const size = plan_.power_above(count);
    for (int j = count + lanes_.rank(); j < size; j += lanes_.size()) entries_[j] = entry{};
    lanes_.sync();
    SUBSPAN_NO_UNROLL
    for (int length = 2; length <= size; length *= 2) SUBSPAN_NO_UNROLL
    for (int step = length / 2; step > 0; step /= 2) {
      SUBSPAN_NO_UNROLL
      for (int t = lanes_.rank(); t < size / 2; t += lanes_.size()) {
        int const i = 2 * t - (t & (step - 1)), j = i + step;
        entry const a = entries_[i], b = entries_[j];
        bool const in_order = ByIndex ? low_of(a) >= low_of(b) : a >= b;
        if (in_order != ((i & length) == 0)) {
          entries_[i] = b;
          entries_[j] = a;
        }
      }
      lanes_.sync();
    }
  }

  Lanes const& lanes_;
  topk_plan const& plan_;
  entry* entries_;
  int *bins_, *words_;
  entry cut_ = detail::make_entry<Key>(0, ~std::uint32_t{0});
  Key least_ = 0;
  bool closed_ = false;
};

}  // namespace subspan::gpu
