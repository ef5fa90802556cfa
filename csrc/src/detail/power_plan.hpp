#pragma once

#include <algorithm>

#include "detail/multisets.hpp"
#include "detail/parallel.hpp"
#include "detail/power_kernels.hpp"
#include "detail/workspace.hpp"
#include "subspan/tensor_power.hpp"

namespace subspan::detail {

/// The tables of a call, which power_space points to.
template <class T>
class power_plan {
 public:
  power_plan(context const& ctx, index_t d, int order, tensor_power_params const& params)
      : sets_(d),
        entry_(ctx, sets_.count(2) * sets_.count(order - 2)),
        weight_(ctx, sets_.count(order - 2)),
        multiplicity_(ctx, sets_.count(order)),
        last_(ctx, lower_count(order)) {
    T const epsilon = std::numeric_limits<T>::epsilon();
    space_.d = d;
    space_.order = order;
    space_.pairs = sets_.count(2);
    space_.monomials = sets_.count(order - 2);
    space_.entry = entry_.data();
    space_.weight = weight_.data();
    space_.last = last_.data();
    space_.lower = lower_count(order);
    space_.tol = params.tol > 0 ? static_cast<T>(params.tol) : 64 * epsilon;
    space_.shift = static_cast<T>(params.shift);
    space_.newton = 64 * epsilon * static_cast<T>(d);
    space_.least_step = 4 * epsilon;
    space_.adaptive = params.adaptive;
    space_.max_iter = params.max_iter;
    fill_tables(ctx, order);
  }

  power_space<T> const& space() const { return space_; }
  index_t entries() const { return sets_.count(space_.order); }
  T const* multiplicity() const { return multiplicity_.data(); }

 private:
  index_t lower_count(int order) const {
    index_t all = 0;
    for (int degree = 1; degree <= order - 3; ++degree) all += sets_.count(degree);
    return all;
  }

  void fill_tables(context const& ctx, int order) {
    int const degree = order - 2;
    index_t const monomials = space_.monomials;
    index_t at = 0;
    for (int lower = 1; lower <= order - 3; ++lower)
      sets_.each(lower,
                 [&](index_t const* c) { last_[at++] = static_cast<std::int32_t>(c[lower - 1]); });
    at = 0;
    sets_.each(order, [&](index_t const* c) {
      multiplicity_[at++] = static_cast<T>(permutations(c, order));
    });
    workspace<index_t> factors(ctx, monomials * degree);
    at = 0;
    sets_.each(degree, [&](index_t const* c) {
      weight_[at] = static_cast<T>(permutations(c, degree));
      std::copy_n(c, degree, factors.data() + at++ * degree);
    });
    workspace<index_t> rows(ctx, space_.pairs * 2);
    at = 0;
    sets_.each(2, [&](index_t const* c) { std::copy_n(c, 2, rows.data() + 2 * at++); });
    auto const grain = 1 + 20000 / monomials;
    parallel_for(ctx, space_.pairs, grain, [&](index_t begin, index_t end) {
      for (index_t row = begin; row < end; ++row)
        for (index_t c = 0; c < monomials; ++c) {
          index_t merged[k_greatest_order];
          index_t const* const pair = rows.data() + 2 * row;
          index_t const* const rest = factors.data() + c * degree;
          std::merge(pair, pair + 2, rest, rest + degree, merged);
          entry_[row * monomials + c] = static_cast<std::int32_t>(sets_.position(merged, order));
        }
    });
  }

  multisets sets_;
  workspace<std::int32_t> entry_;
  workspace<T> weight_, multiplicity_;
  workspace<std::int32_t> last_;
  power_space<T> space_{};
};

}  // namespace subspan::detail
