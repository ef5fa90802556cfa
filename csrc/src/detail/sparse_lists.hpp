#pragma once

#include <algorithm>
#include <atomic>

#include "detail/contract.hpp"
#include "detail/list_sums.hpp"
#include "detail/parallel.hpp"
#include "detail/workspace.hpp"
#include "subspan/decode.hpp"

/// A sparse code as lists of pairs: by row as it came, by feature after a counting sort.

namespace subspan::detail {

/// Pairs in the order of the rows, checked.
template <class T>
class row_lists {
 public:
  using P = wide<T>;

  row_lists(context const& ctx, char const* function, sparse_code<T> const& code, index_t n,
            void (*widen)(T const*, index_t, index_t, P*))
      : rows(code.rows),
        pairs(code.values.shape[0]),
        offsets(ctx, code.rows + 1),
        index(ctx, pairs),
        weight(ctx, pairs) {
    expects(code.indices.shape[0] == pairs, function, "indices must be as many as values, ", pairs,
            ", got ", code.indices.shape[0]);
    read_offsets(function, code);
    std::atomic<index_t> bad{pairs};
    parallel_for(ctx, pairs, k_grain, [&](index_t begin, index_t end) {
      widen(&code.values(begin), code.values.strides[0], end - begin, weight.data() + begin);
      index_t first = end;
      for (index_t p = end; p-- > begin;) {
        index[p] = code.indices(p);
        if (static_cast<std::uint64_t>(index[p]) >= static_cast<std::uint64_t>(n)) first = p;
      }
      for (index_t known = bad.load(); first < std::min(end, known);)
        if (bad.compare_exchange_weak(known, first)) break;
    });
    if (index_t const p = bad; p < pairs) {
      index_t const row = row_of(p);
      fail(error_kind::invalid_argument, function, "indices must be in 0..", n - 1, " (", n,
           " features), got ", index[p], " at row ", row, ", position ", p - offsets[row]);
    }
  }

  /// The row that holds pair p.
  index_t row_of(index_t p) const {
    return std::upper_bound(offsets.data(), offsets.data() + rows + 1, p) - offsets.data() - 1;
  }

  index_t rows, pairs;
  workspace<index_t> offsets;  // [rows + 1]
  workspace<index_t> index;    // [pairs]: features
  workspace<P> weight;         // [pairs]

 private:
  static constexpr index_t k_grain = 1 << 14;

  void read_offsets(char const* function, sparse_code<T> const& code) {
    if (code.offsets.data == nullptr) {
      index_t const k = rows == 0 ? 0 : pairs / rows;
      expects(k * rows == pairs, function, "values must be as many in each of ", rows,
              " rows, got ", pairs);
      for (index_t t = 0; t <= rows; ++t) offsets[t] = t * k;
      return;
    }
    expects(code.offsets.shape[0] == rows + 1, function, "offsets must have ", rows + 1,
            " elements, got ", code.offsets.shape[0]);
    for (index_t t = 0; t <= rows; ++t) {
      offsets[t] = code.offsets(t);
      index_t const least = t == 0 ? 0 : offsets[t - 1], most = t == 0 ? 0 : pairs;
      expects(offsets[t] >= least && offsets[t] <= most, function,
              "offsets must ascend from 0 to the number of values, ", pairs, ", got ", offsets[t],
              " at position ", t);
    }
    expects(offsets[rows] == pairs, function,
            "offsets must ascend from 0 to the number of values, ", pairs, ", got ", offsets[rows],
            " at position ", rows);
  }
};

/// The same pairs brought together by feature, each in the order of the rows: a stable counting
/// sort in blocks of pairs, of as many as keep the counters fewer than the pairs.
template <class T>
class feature_lists {
 public:
  using P = wide<T>;

  feature_lists(context const& ctx, row_lists<T> const& from, index_t n)
      : features(n),
        offsets(ctx, n + 1),
        row(ctx, from.pairs),
        weight(ctx, from.pairs),
        place(ctx, from.pairs) {
    index_t const most = thread_count(ctx) == 1 ? 1 : 64;
    index_t const blocks = std::clamp<index_t>(from.pairs / std::max<index_t>(n, 4096), 1, most);
    index_t const grain = std::max<index_t>(1, (from.pairs + blocks - 1) / blocks);
    workspace<index_t> counts(ctx, blocks * n);
    std::fill_n(counts.data(), blocks * n, 0);
    parallel_for(ctx, from.pairs, grain, [&](index_t begin, index_t end) {
      index_t* const count = counts.data() + begin / grain * n;
      for (index_t p = begin; p < end; ++p) ++count[from.index[p]];
    });
    index_t total = 0;
    for (index_t j = 0; j < n; ++j) {
      offsets[j] = total;
      for (index_t b = 0; b < blocks; ++b) {
        index_t const count = counts[b * n + j];
        counts[b * n + j] = total;
        total += count;
      }
    }
    offsets[n] = total;
    parallel_for(ctx, from.pairs, grain, [&](index_t begin, index_t end) {
      index_t* const next = counts.data() + begin / grain * n;
      index_t t = from.row_of(begin);
      for (index_t p = begin; p < end; ++p) {
        while (p >= from.offsets[t + 1]) ++t;
        index_t const to = next[from.index[p]]++;
        row[to] = t;
        weight[to] = from.weight[p];
        place[to] = p;
      }
    });
  }

  index_t features;
  workspace<index_t> offsets;  // [features + 1]
  workspace<index_t> row;      // [pairs]
  workspace<P> weight;         // [pairs]
  workspace<index_t> place;    // [pairs]: where the pair was
};

}  // namespace subspan::detail
