#pragma once

#include <cstdint>

#include "subspan/abi.hpp"
#include "subspan/context.hpp"
#include "subspan/svd.hpp"
#include "subspan/view.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

enum class extremum { maximum, minimum, both };

struct tensor_power_params {
  bool adaptive = true;                ///< the shift follows the curvature; else it is `shift`
  double shift = 0;                    ///< >= 0, in units of the tensor
  extremum which = extremum::maximum;  ///< both: every start is used twice
  double tol = 0;                      ///< residual over the norm of the tensor; 0: 64 epsilon
  double merge = 0;  ///< vectors closer than this are one; 0: the cube root of epsilon
  index_t max_iter = 5000;
  nonfinite_policy nonfinite = nonfinite_policy::raise;
  bool raise_no_convergence = false;  ///< else only `info` and `pair_of` tell
};

/// Outputs, all in C order. `runs` is the number of starts, twice that for extremum::both.
template <class T>
struct tensor_power_results {
  // Distinct pairs by descending value; places past `pairs` are NaN and 0.
  strided_view<T, 2> values;             ///< [batch, runs]
  strided_view<T, 3> vectors;            ///< [batch, runs, d]
  strided_view<T, 2> residuals;          ///< [batch, runs], |a x^(order-1) - value x|
  strided_view<std::int32_t, 2> kinds;   ///< [batch, runs] 1 maximum, -1 minimum, 0 neither
  strided_view<std::int32_t, 2> counts;  ///< [batch, runs] how many runs ended there
  strided_view<std::int32_t, 1> pairs;   ///< [batch]
  // One for every run: first all starts for the maximum, then all for the minimum.
  strided_view<std::int32_t, 2> iterations;  ///< [batch, runs]
  strided_view<std::int32_t, 2> pair_of;     ///< [batch, runs] its pair, -1 if not converged
  strided_view<std::int32_t, 1> info;        ///< [batch] 0, -1 (non-finite), or unconverged runs
};

/// Eigenpairs a x^(order-1) = value x, |x| = 1, of symmetric tensors, by the shifted power method.
///
///   a      [batch, n]     entries a_{i1 <= ... <= i_order} in lexicographic order,
///                         n = binomial(d + order - 1, order), any strides
///   starts [batch, m, d]  any strides (0 for the same starts for all)
///
/// T: float, double. CPU only. order in 3..6. An iteration is one product of C(d+1, 2) x
/// C(d+order-3, order-2) for each start, with one start or one tensor in every SIMD lane; near the end
/// a Newton step on the sphere, d^3 / 3. The sign of x: the value is >= 0 for odd orders; for even
/// ones the first entry that is at least half as large as the largest is positive. A zero tensor has
/// no pairs. Bits of a tensor's results depend on its entries, the starts and params alone.
/// Scratch: the coefficients of a tensor and 2 vectors of each kind of product per thread; d + 4
/// elements for every run, of up to 2^23 elements' worth of runs at once.
template <class T>
void tensor_power(context const& ctx, strided_view<T const, 2> a, strided_view<T const, 3> starts,
                  int order, tensor_power_results<T> const& out, tensor_power_params params = {});

}  // namespace v0
}  // namespace subspan
