#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "subspan/types.hpp"

/// The unique entries of symmetric tensors: sorted multi-indices i1 <= ... <= ik below d, in
/// lexicographic order.

namespace subspan::detail {

inline constexpr int k_greatest_order = 6;

class multisets {
 public:
  explicit multisets(index_t d) : d_(d) {
    // C(d - j + k - 2, k - 1) of them have k elements of which j is the first.
    std::vector<index_t> of_first(static_cast<std::size_t>(d), 1);
    for (int k = 1; k <= k_greatest_order; ++k) {
      auto& before = before_[static_cast<std::size_t>(k)];
      before.assign(static_cast<std::size_t>(d) + 1, 0);
      for (std::size_t j = 0; j < of_first.size(); ++j) before[j + 1] = before[j] + of_first[j];
      for (std::size_t j = 0; j < of_first.size(); ++j) of_first[j] = before.back() - before[j];
    }
  }

  index_t count(int k) const { return k == 0 ? 1 : before_[static_cast<std::size_t>(k)].back(); }

  /// Where the sorted `index` of k elements stands.
  index_t position(index_t const* index, int k) const {
    index_t at = 0, previous = 0;
    for (int t = 0; t < k; previous = index[t++]) {
      auto const& before = before_[static_cast<std::size_t>(k - t)];
      at += before[static_cast<std::size_t>(index[t])] - before[static_cast<std::size_t>(previous)];
    }
    return at;
  }

  /// All multi-indices of k elements in order, as visit(index_t const (&)[k_greatest_order]).
  template <class Visit>
  void each(int k, Visit&& visit) const {
    index_t index[k_greatest_order] = {};
    if (d_ == 0) return;
    for (;;) {
      visit(index);
      int t = k - 1;
      while (t >= 0 && index[t] == d_ - 1) --t;
      if (t < 0) return;
      std::fill(index + t, index + k, index[t] + 1);
    }
  }

 private:
  index_t d_;
  /// before_[k][j]: multisets of k elements whose first is below j.
  std::array<std::vector<index_t>, k_greatest_order + 1> before_;
};

/// k! over the factorials of the multiplicities: how many entries of a full tensor one stands for.
inline double permutations(index_t const* index, int k) {
  double all = 1;
  for (int t = 0, same = 0; t < k; ++t) {
    same = t > 0 && index[t] == index[t - 1] ? same + 1 : 1;
    all = all * (t + 1) / same;
  }
  return all;
}

}  // namespace subspan::detail
