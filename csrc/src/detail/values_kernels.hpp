#pragma once

#include "detail/pack_batch.hpp"

/// Eigenvalues alone of symmetric matrices that outgrow the cache: what eigh.cpp compiles once per
/// level.

namespace subspan::detail {

/// Larger than what goes by rows, but not too large for one thread: a rule of the shape alone.
inline constexpr index_t k_values_limit = 1024;
inline bool fits_values(index_t n) { return n > k_rows_limit && n <= k_values_limit; }

/// How a matrix was scaled, behind the two diagonals of its tridiagonal form.
inline constexpr index_t k_tridiagonal_extra = 3;

/// Two steps. `a` of the tasks of the second: lines of 2 n + k_tridiagonal_extra.
template <class T>
struct values_kernels {
  index_t (*scratch)(index_t n);  // bytes
  void (*reduce)(pack_input<T> const& a, T* to, void* scratch);
  pack_kernels<eigh_pack<T>> iterate;
};

}  // namespace subspan::detail
