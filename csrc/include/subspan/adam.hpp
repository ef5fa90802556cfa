#pragma once

#include <optional>

#include "subspan/abi.hpp"
#include "subspan/context.hpp"
#include "subspan/view.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

struct adam_params {
  index_t step = 1;         ///< the number of this step, from 1
  double lr = 1e-3;         ///< at least 0
  double beta1 = 0.9;       ///< in [0, 1)
  double beta2 = 0.999;     ///< in [0, 1)
  double eps = 1e-8;        ///< at least 0
  double weight_decay = 0;  ///< decoupled; at least 0
  double scale = 1;         ///< of the gradient, as clipping by a norm of all gradients asks
  double row_limit = 0;     ///< longest a row of the gradient may be, after scale; 0: any length
  bool remove_parallel = false;  ///< what of a row of the gradient is parallel to that of w
  bool unit_rows = false;        ///< rows of w to length 1 after the step; rows of zeros stay
};

/// One step of Adam (Kingma and Ba 2015, arXiv 1412.6980) on the rows of a dictionary, in place.
/// For every row, in this order:
///
///   g <- g - w (g.w) / (w.w)                    with remove_parallel
///   g <- scale g, then g min(1, row_limit / |g|)
///   m <- m + (1 - beta1) (g - m)
///   v <- beta2 v + (1 - beta2) g^2
///   w <- (1 - lr weight_decay) w - lr / (1 - beta1^step) m / (sqrt(v / (1 - beta2^step)) + eps)
///   w <- w / |w|                                with unit_rows
///
///   w, m, v [n, d]  C order
///   g       [n, d]  C order; only read
///
/// T: float, double. CPU and CUDA. Elements are computed in T, as torch's unfused Adam does and in the same
/// order; lengths and products of rows in double. NaN and infinity pass. One pass over memory:
/// 7 n d elements; the same bits for any number of threads. No scratch.
template <class T>
void adam_step(context const& ctx, strided_view<T, 2> w, strided_view<T const, 2> g,
               strided_view<T, 2> m, strided_view<T, 2> v, adam_params const& params = {});

/// The Frobenius norm of g [n, d]; with w, of what is left of its rows once the components
/// parallel to the rows of w are removed. Summed in double, the same for any number of threads.
/// C order; T: float, double. CPU and CUDA; waits for the device. Scratch: 8 bytes for about every
/// 16384 elements, on a device 8 KiB.
template <class T>
double gradient_norm(context const& ctx, strided_view<T const, 2> g,
                     std::optional<strided_view<T const, 2>> w = {});

}  // namespace v0
}  // namespace subspan
