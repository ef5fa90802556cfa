#pragma once

#include <vector>

#include "subspan/abi.hpp"
#include "subspan/context.hpp"
#include "subspan/view.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

/// Tensors of one shape and of any order: the first axis counts them, the others are their modes.
/// Strides are in elements, any sign; a first stride of 0 is one tensor for the whole batch.
template <class T>
struct mttkrp_tensor {
  T const* data = nullptr;
  std::vector<index_t> shape, strides;
  subspan::device device{};
};

/// Matricised tensors times Khatri-Rao products (MTTKRP), for all modes n but `mode`:
///
///   out[b, i, r] = sum over all indices with i_mode = i of x[b, i_0, ...] prod_n factors[n][b, i_n, r]
///
///   x       [batch, I_0, ..., I_(N-1)], N >= 2
///   factors N views [batch, I_n, R], any strides; that of `mode` is not read
///   out     [batch, I_mode, R], C order
///
/// T: float, double. CPU only. 2 I R flops for I elements of x. Neither an unfolding nor a
/// Khatri-Rao product of more than 4096 rows is stored: x is read where it lies, once for every 256
/// columns, and its innermost modes are contracted by register tiles. Bits depend on the shape and
/// the order of the strides of one tensor, and neither on R, nor on the batch, nor on the threads.
/// NaN and infinity spread as in any sum. Scratch: the factors once, up to 32 copies of the result,
/// and per thread 256 x 256 elements.
template <class T>
void mttkrp(context const& ctx, mttkrp_tensor<T> const& x,
            std::vector<strided_view<T const, 3>> const& factors, int mode, strided_view<T, 3> out);

}  // namespace v0
}  // namespace subspan
