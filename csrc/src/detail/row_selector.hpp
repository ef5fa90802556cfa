#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <functional>
#include <limits>
#include <type_traits>

#include "subspan/types.hpp"

/// The k best of a stream of scores: the selecting end of everything that makes scores row by row
/// (top-k of given rows, products that keep their largest entries, nearest neighbours).
///
/// THE order: the greater score wins, of equal scores the smaller index; -0.0 equals 0.0. NaN is no
/// score and never gets in. As the order is total, what is selected depends neither on how a row is
/// cut nor on the threads.
///
///   row_selector<float> best(k, buffer);                  // buffer: row_selector<float>::room(k)
///   for (...) push<float>(best, scores, first_index);     // a vector; row_selector.inl.hpp
///   index_t const count = best.keep_best();               // <= k entries in best.entries()
///
/// A score below `least()` is turned away by one vector comparison. What passes is appended; when
/// the buffer is full, the k best stay, and `least()` becomes the next score above the k-th. Each
/// such step costs O(capacity) and makes room for capacity - k >= 2 k, so a score costs O(1) in any
/// order.

namespace subspan::detail {

/// How scores of type S are ordered as unsigned integers: key(a) < key(b) exactly if a < b. NaN has
/// the key 0, which no other float has. S: float, double, int32, int64.
template <class S>
struct score_order {
  using signed_bits = std::conditional_t<sizeof(S) == 4, std::int32_t, std::int64_t>;
  using key_type = std::make_unsigned_t<signed_bits>;
  static constexpr key_type sign = key_type{1} << (8 * sizeof(S) - 1);

  static constexpr S lowest = std::is_floating_point_v<S> ? -std::numeric_limits<S>::infinity()
                                                          : std::numeric_limits<S>::min();
  static constexpr S highest = std::is_floating_point_v<S> ? std::numeric_limits<S>::infinity()
                                                           : std::numeric_limits<S>::max();
  /// Exclusive or with it turns the order round: sign of a float, complement of an integer.
  static constexpr key_type reversal = std::is_floating_point_v<S> ? sign : ~key_type{0};

  /// Bits, not arithmetic: the modes of the floating-point unit have no say in it.
  static constexpr key_type key(S score) {
    auto const bits = std::bit_cast<key_type>(score);
    if constexpr (!std::is_floating_point_v<S>) {
      return bits ^ sign;
    } else {
      key_type const magnitude = bits & ~sign;
      key_type const ordered = (bits & sign) != 0 ? sign - magnitude : sign + magnitude;
      return magnitude > std::bit_cast<key_type>(highest) ? key_type{0} : ordered;
    }
  }

  static constexpr S score(key_type key) {
    if constexpr (!std::is_floating_point_v<S>)
      return std::bit_cast<S>(static_cast<key_type>(key ^ sign));
    else
      return std::bit_cast<S>(key >= sign ? key - sign : static_cast<key_type>(sign - key) | sign);
  }
};

/// A key with its index in one ordered value: the greater entry is the better one.
template <class Key>
struct wide_entry {
  Key high;           // key
  std::uint32_t low;  // complement of the index
  friend constexpr bool operator==(wide_entry const&, wide_entry const&) = default;
  friend constexpr auto operator<=>(wide_entry const&, wide_entry const&) = default;
};

template <class Key>
using entry = std::conditional_t<sizeof(Key) == 4, std::uint64_t, wide_entry<Key>>;

template <class Key>
constexpr entry<Key> make_entry(Key key, std::uint32_t index) {
  if constexpr (sizeof(Key) == 4)
    return std::uint64_t{key} << 32 | static_cast<std::uint32_t>(~index);
  else
    return {key, static_cast<std::uint32_t>(~index)};
}
constexpr std::uint32_t key_of(std::uint64_t e) { return static_cast<std::uint32_t>(e >> 32); }
constexpr std::uint32_t index_of(std::uint64_t e) { return ~static_cast<std::uint32_t>(e); }
template <class Key>
constexpr Key key_of(wide_entry<Key> const& e) {
  return e.high;
}
template <class Key>
constexpr std::uint32_t index_of(wide_entry<Key> const& e) {
  return ~e.low;
}

/// State of one row: threshold, count, buffer. It owns nothing.
template <class S>
class row_selector {
 public:
  using order = score_order<S>;
  using key_type = typename order::key_type;
  using entry_type = entry<key_type>;

  /// Most entries that one push appends; the buffer has room for a whole vector behind its end.
  static constexpr index_t widest = 16;
  static constexpr index_t capacity(index_t k) { return std::max<index_t>(192, 3 * k); }
  /// Entries that the buffer of a row takes.
  static constexpr index_t room(index_t k) { return capacity(k) + widest; }

  /// ascending: of equal scores the one with the smaller index comes first. Costs nothing where it is
  /// so, and spares what is equal to the k-th.
  row_selector(index_t k, entry_type* buffer, bool ascending = true)
      : buffer_(buffer), k_(k), full_(capacity(k)), ascending_(ascending) {}

  index_t k() const { return k_; }
  index_t count() const { return count_; }
  /// Scores below it need not be pushed.
  S least() const { return least_; }
  /// Nothing that is still to come can get in.
  bool closed() const { return closed_; }
  /// In no order; scores and indices by score_order::score(key_of(e)) and index_of(e).
  entry_type* entries() const { return buffer_; }

  /// The caller knows k scores of this row, pushed or to come, that are at least `bound`.
  void raise(S bound) {
    if (bound > least_) least_ = bound;
  }

  /// Appends room for n <= widest entries, which the caller has written to end().
  entry_type* end() const { return buffer_ + count_; }
  void appended(index_t n) {
    count_ += n;
    if (count_ >= full_) shrink();
  }

  /// One score.
  void add(S score, std::uint32_t index) {
    if (!(score >= least_) || closed_) return;
    *end() = make_entry<key_type>(order::key(score), index);
    appended(1);
  }

  /// Drops all but the k best; returns how many there are: k, or fewer if fewer scores came.
  index_t keep_best() {
    if (count_ > k_) shrink();
    return count_;
  }

 private:
  void shrink() {
    std::nth_element(buffer_, buffer_ + (k_ - 1), buffer_ + count_, std::greater<>());
    count_ = k_;
    key_type const last = key_of(buffer_[k_ - 1]);
    // Where later scores have greater indices, an equal one loses.
    closed_ = ascending_ && last == order::key(order::highest);
    if (!closed_) raise(order::score(ascending_ ? last + 1 : last));
  }

  entry_type* buffer_;
  index_t k_, full_;
  index_t count_ = 0;
  S least_ = order::lowest;
  bool ascending_;
  bool closed_ = false;
};

}  // namespace subspan::detail
