#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "detail/row_selector.hpp"
#include "detail/tile_engine.hpp"

/// What encode.cpp compiles once per level, and the states that its epilogues fill.

namespace subspan::detail {

/// One entry of z that passed a threshold.
template <class P>
struct code_hit {
  std::uint32_t row, column;
  P value;
};

/// An entry of all of z; the greater one is the better one.
template <class Key>
struct batch_entry {
  Key key;
  std::uint64_t place;  // complement of row and column
  friend constexpr auto operator<=>(batch_entry const&, batch_entry const&) = default;
};

/// The best of a batch that one thread has met. All of them share a threshold: what one of them could
/// fill is a bound for all.
template <class P>
class batch_selector {
 public:
  using order = score_order<P>;
  using entry_type = batch_entry<typename order::key_type>;

  batch_selector(context const& ctx, index_t count, std::atomic<P>& least)
      : full_(count + std::max<index_t>(count / 2, 4096)),
        buffer_(ctx, full_),
        count_(count),
        least_(least) {}

  P least() const { return least_.load(std::memory_order_relaxed); }
  void add(P score, std::uint32_t row, std::uint32_t column) {
    auto const key = order::key(score);  // where subnormal numbers are flushed, only bits tell
    if (key < order::key(least())) return;
    buffer_[found_++] = {key, ~(std::uint64_t{row} << 32 | column)};
    if (found_ == full_) shrink();
  }
  index_t keep_best() {
    if (found_ > count_) shrink();
    return found_;
  }
  entry_type const* entries() const { return buffer_.data(); }

 private:
  void shrink() {
    auto* const all = buffer_.data();
    std::nth_element(all, all + (count_ - 1), all + found_, std::greater<>());
    found_ = count_;
    P const bound = order::score(all[count_ - 1].key);
    P before = least();
    while (before < bound && !least_.compare_exchange_weak(before, bound)) {
    }
  }

  index_t full_;
  workspace<entry_type> buffer_;
  index_t count_, found_ = 0;
  std::atomic<P>& least_;
};

template <class T>
using product_type = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// Few rows are multiplied with w_enc where it lies, so many columns at a time.
inline constexpr index_t k_rows_in_place = 8, k_columns_in_place = 480;

/// Tiles to be made of panels, or made already: sums[panel of columns][panel of rows][rows][width].
template <class P>
struct encode_block : tile_block<P> {
  encode_block(tile_block<P> const& panels, P const* made = nullptr)
      : tile_block<P>(panels), sums(made) {}
  P const* sums;
};

template <class T, class P>
struct encode_kernels {
  tile_size size;
  T (*narrow)(P z);
  P (*widen)(T x);
  void (*pack)(vector_set<T> const& from, packing<P> const& how, index_t first, index_t count,
               index_t width, P* out);
  /// Products of a panel of rows with columns of w, whose elements or which lie side by side: those
  /// of panel q of the columns from sums + q * stride on.
  void (*sums_in_place)(vector_set<T> const& w, index_t first, index_t count, P const* left,
                        index_t rows, P* sums, index_t stride);
  // bias: of all columns, NaN for padding. rows: those of the strip that are no padding.
  void (*select)(encode_block<P> const& block, row_selector<P>* best, P const* bias,
                 bool rectified);
  void (*select_of_batch)(encode_block<P> const& block, index_t first_row, index_t rows,
                          P const* bias, batch_selector<P>& best);
  void (*above)(encode_block<P> const& block, index_t rows, P const* bias, P const* threshold,
                std::vector<code_hit<P>>& hits);
};

inline constexpr index_t k_rows_at_once = 8, k_latents_at_once = 16;

/// The first pass in low precision, where the CPU can; see tile_pairs.inl.hpp.
template <class T>
struct encode_pair_kernels {
  void (*squares)(float const* panel, index_t depth, index_t width, double* out);
  void (*pack)(float const* panel, index_t depth, index_t width, float* out, double* residuals);
  void (*select)(encode_block<float> const& block, row_selector<float>* best, float const* bias,
                 bool rectified);
  /// out[i * k_latents_at_once + j] = <row i - shift, column j of the panel>, as the tiles of full
  /// precision make them, to the bit. rows: up to k_rows_at_once, and `ahead` that come next, whose
  /// ids stand behind. `width`: of the panel.
  void (*scores)(vector_set<T> const& rows, index_t ahead, float const* shift, float const* panel,
                 index_t width, float* out);
};

}  // namespace subspan::detail
