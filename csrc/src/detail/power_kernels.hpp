#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "subspan/types.hpp"

/// What tensor_power.cpp compiles once per level.

namespace subspan::detail {

/// Rows of coefficients that one pass over the monomials serves.
inline constexpr index_t k_power_rows = 8;

/// What all tensors of a call have in common. H_ij = sum over monomials x^c of degree order - 2 of
/// coefficient (ij, c) times x^c; coefficient (ij, c) = weight[c] a[entry[ij, c]].
template <class T>
struct power_space {
  index_t d, pairs, monomials;
  int order;
  std::int32_t const* entry;  ///< [pairs, monomials]
  T const* weight;            ///< [monomials]
  std::int32_t const* last;   ///< last factors of the monomials of degrees 1, 2, ..., order - 3
  index_t lower;              ///< how many monomials these are
  T tol, shift, newton, least_step;
  bool adaptive;
  index_t max_iter;
};

/// One run ends in x (d), value, residual, iterations, state.
enum class run_state : std::int32_t { exhausted, maximum, minimum, neither };
template <class T>
struct power_runs {
  T *x, *value, *residual;
  std::int32_t *iterations, *state;
};

/// Runs [begin, end) of each of `count` tensors, next to next. Run j is of start j % starts; for
/// the minimum from `flip` on.
template <class T>
struct power_task {
  power_space<T> const* space;
  T const* a;
  index_t a_next, a_stride, count;
  T const *scale, *norm;  ///< of each tensor: a power of two, and its norm after that
  T const* start;
  index_t start_next, start_row, start_column, starts, begin, end, flip;
  power_runs<T> out;
  index_t runs;  ///< of a tensor, in out
};

template <class T>
struct power_kernels {
  index_t width;
  /// Bytes of scratch; `own`: one tensor in each lane.
  index_t (*scratch)(power_space<T> const& space, bool own);
  void (*run)(power_task<T> const& task, bool own, void* scratch);
};

}  // namespace subspan::detail
