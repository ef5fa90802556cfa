#pragma once

#include "detail/knn_data.hpp"

/// The search for the k nearest of few queries. Packing y would take longer than all products: its
/// rows are read where they lie, once for all queries. Scores are sums of (x - y)^2, which do not
/// cancel, so there is no shift either, and nothing to be known of y before.

namespace subspan::detail {

/// What the kernel reads. Scores: -|x - y|^2, or <x, y>.
template <class T, class P>
struct in_place_scan {
  vector_set<T> rows;
  P const* queries;  // [count + 1, padded]; the last one is zero
  index_t count;     // up to k_in_place_rows
  index_t padded;    // depth, filled up with zeros to a multiple of k_exact_step
  bool products;
};

inline constexpr index_t k_in_place_rows = 32;

/// Rows begin .. end of y: the best for every query, and, for products, into `reach` the greatest |y|^2.
template <class T, class P>
using in_place_kernel = void (*)(in_place_scan<T, P> const& scan, index_t begin, index_t end,
                                 P* scratch, row_selector<P>* best, P& reach);

template <class T, class P>
class in_place_search {
 public:
  using selector = row_selector<P>;
  using entry_type = typename selector::entry_type;

  in_place_search(knn_data<T> const& data, in_place_kernel<T, P> kernel, index_t pad,
                  knn_output out)
      : data_(data), kernel_(kernel), out_(out), candidates_(out.indices.shape[1] + pad) {}

  /// Whether there are few queries, and rows that lie well for it, many more than candidates.
  bool serves() const {
    return data_.rows() <= k_in_place_rows && data_.y.strides[1] == 1 && !data_.mask &&
           !data_.cosine() && !data_.params.exclude_self && data_.depth() >= k_exact_step / 2 &&
           data_.columns() / 32 >= candidates_;
  }

  /// Searches, and returns the rows of x for which nothing was proved.
  std::vector<index_t> run() const {
    context const& ctx = data_.ctx;
    index_t const q = data_.rows(), n = data_.columns(), padded = data_.padded_depth();
    workspace<double> wide(ctx, q * padded);
    workspace<P> queries(ctx, (q + 1) * padded);
    std::fill_n(queries.data() + q * padded, padded, P{0});
    std::vector<char> finite(static_cast<std::size_t>(q));
    for (index_t i = 0; i < q; ++i) {
      finite[static_cast<std::size_t>(i)] = data_.widen_query(i, wide.data() + i * padded);
      std::transform(wide.data() + i * padded, wide.data() + (i + 1) * padded,
                     queries.data() + i * padded, [](double v) { return static_cast<P>(v); });
    }
    in_place_scan<T, P> const scan{{data_.y.data, n, data_.depth(), data_.y.strides[0], 1,
                                    data_.compacted ? data_.column_ids.data() : nullptr},
                                   queries.data(),
                                   q,
                                   padded,
                                   data_.by_product()};

    index_t const part =
        divide_up(divide_up(n, k_parts * thread_count(ctx)), k_part_unit) * k_part_unit;
    index_t const parts = divide_up(n, part), room = selector::room(candidates_);
    workspace<entry_type> buffers(ctx, parts * q * room);
    std::vector<selector> best;  // by part, and in it by query
    for (index_t i = 0; i < parts * q; ++i)
      best.emplace_back(candidates_, buffers.data() + i * room);
    std::vector<P> reach(static_cast<std::size_t>(parts), 0);
    parallel_for(ctx, n, part, [&](index_t begin, index_t end) {
      workspace<P> scratch(ctx, k_exact_step * padded);
      kernel_(scan, begin, end, scratch.data(), best.data() + begin / part * q,
              reach[static_cast<std::size_t>(begin / part)]);
    });
    double const square = *std::max_element(reach.begin(), reach.end());
    double const greatest = std::sqrt(square + lost());  // its own squares may have been lost, too

    std::vector<char> proofs(static_cast<std::size_t>(q), 1);
    parallel_for(ctx, q, 1, [&](index_t i, index_t) {
      workspace<entry_type> joined(ctx, parts * candidates_);
      std::vector<ranked> found;
      if (finite[static_cast<std::size_t>(i)]) {
        index_t count = 0;
        for (index_t p = 0; p < parts; ++p) {
          auto& row = best[static_cast<std::size_t>(p * q + i)];
          index_t const kept = row.keep_best();
          std::copy_n(row.entries(), kept, joined.data() + count);
          count += kept;
        }
        double const* const query = wide.data() + i * padded;
        double const last =
            data_.template consider_best<P>(query, i, joined.data(), count, candidates_, found);
        std::sort(found.begin(), found.end());
        proofs[static_cast<std::size_t>(i)] = proved(query, found, last, greatest);
      }
      out_.deliver(data_.params.metric, i, found);
    });
    std::vector<index_t> unproved;
    for (index_t i = 0; i < q; ++i)
      if (!proofs[static_cast<std::size_t>(i)]) unproved.push_back(i);
    return unproved;
  }

 private:
  /// Whether nothing that was left out can be among the first k: it scored at most `last`. Its sum had
  /// at most d / 4 additions in each lane, which is why the bound is so much below d roundings.
  bool proved(double const* query, std::vector<ranked> const& found, double last,
              double reach) const {
    auto const k = static_cast<std::size_t>(out_.indices.shape[1]);
    if (found.size() < k) return false;
    if (data_.params.precision == knn_precision::fast) return true;
    constexpr double unit = std::numeric_limits<P>::epsilon() / 2.0;
    constexpr double exact_unit = std::numeric_limits<double>::epsilon() / 2;
    constexpr double most = std::numeric_limits<P>::max();
    auto const d = static_cast<double>(data_.depth());
    double const rounded = 1.25 * unit * (d / 4 + 8), defined = 4 * exact_unit * (d + 16);
    double const farthest = found[k - 1].distance;
    if (data_.by_product()) {
      double square = 0;
      for (index_t r = 0; r < data_.depth(); ++r) square += query[r] * query[r];
      double const size = std::sqrt(square) * reach;  // no product's sum is beyond it
      return size < most / 4 && -farthest > last + (rounded + defined) * size + lost();
    }
    double const limit = std::min(-last, most);  // beyond it a sum would be infinity
    // Rows that are equal have differences of zero, and were selected by index.
    return farthest * (1 + defined) < limit * (1 - rounded) - lost() ||
           (farthest == 0 && limit == 0);
  }

  /// What a sum may lack of terms below the normal numbers.
  double lost() const { return static_cast<double>(data_.depth()) * std::numeric_limits<P>::min(); }

  static constexpr index_t k_parts = 4, k_part_unit = 64;

  knn_data<T> const& data_;
  in_place_kernel<T, P> kernel_;
  knn_output out_;
  index_t candidates_;
};

}  // namespace subspan::detail
