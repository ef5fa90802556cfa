#pragma once

#include <optional>

#include "subspan/abi.hpp"
#include "subspan/context.hpp"
#include "subspan/ragged.hpp"
#include "subspan/view.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

/// Where the rectifier max(z, 0) of a sparse code stands.
enum class activation {
  relu,        ///< after the selection, as in Gao et al. 2024: fewer than k may be positive
  relu_first,  ///< before it: of the zeros those with the smallest index are selected
  identity,    ///< nowhere
};

/// How topk_encode finds its entries; the result is the same to the bit.
enum class encode_precision {
  exact,      ///< by the products
  certified,  ///< by a first pass with bfloat16 products where the CPU has them and it pays; what its
              ///< rounding leaves in doubt is computed again
};

/// z = (x - b_pre) w_enc + b_enc: what all encoders select from. z is never stored.
///
/// T: half, bfloat16, float, double; any strides. Sums in float, of double in double, over d in
/// order by fused multiply-adds: a row's z does not depend on the batch nor on the threads.
template <class T>
struct encoder {
  strided_view<T const, 2> w_enc;                 ///< [d, n], n < 2^32
  std::optional<strided_view<T const, 1>> b_enc;  ///< [n]
  std::optional<strided_view<T const, 1>> b_pre;  ///< [d]
};

/// The k largest entries of every row of z.
///
///   x       [B, d]  any strides
///   values  [B, k]  C order; in descending order of z
///   indices [B, k]  C order
///
/// Of equal z the smaller index comes first. NaN is never selected before a number; where a row has
/// fewer than k numbers, NaN follow in the order of their indices.
///
/// 1 <= k <= n. CPU and CUDA. O(B d n) flops. Scratch: 16 MiB of packed w_enc, the packed rows of a
/// strip, and up to 64 MiB of candidates (3 k of 8 bytes per row, of double 16, at least 192).
/// certified: twice as many, and a copy of w_enc unless its columns are contiguous. On CUDA products
/// are cuBLAS's, so that the last bits of z may depend on the batch, certified is exact, b_pre is
/// subtracted from x only in float and double (else b_pre w_enc from b_enc), and scratch is 32 to 64
/// MiB of products.
template <class T>
void topk_encode(context const& ctx, strided_view<T const, 2> x, encoder<T> const& how,
                 strided_view<T, 2> values, strided_view<index_t, 2> indices,
                 activation rectifier = activation::relu,
                 encode_precision how_exact = encode_precision::exact);

/// The `count` largest entries of all of z (BatchTopK, Bussmann et al. 2024), as rows in ascending
/// order of the index.
///
///   offsets [B + 1]  C order
///
/// Of equal z those of the earlier row, then of the smaller index are taken. NaN never is. With a
/// rectifier only positive entries are, so there may be fewer than `count`. 0 <= count <= B n.
/// CPU. Scratch beside topk_encode's: 5/2 count entries of 16 bytes per thread.
template <class T>
void batch_topk_encode(context const& ctx, strided_view<T const, 2> x, encoder<T> const& how,
                       index_t count, strided_view<index_t, 1> offsets,
                       ragged_allocator<T> const& allocate,
                       activation rectifier = activation::relu);

/// The entries with z > threshold[j] (JumpReLU, Rajamanoharan et al. 2024), as rows in ascending
/// order of the index. NaN is no such entry.
///
///   threshold [n]
///   offsets   [B + 1]  C order
///
/// CPU. Scratch beside topk_encode's: up to 32 bytes per entry, of double 48.
template <class T>
void threshold_encode(context const& ctx, strided_view<T const, 2> x, encoder<T> const& how,
                      strided_view<T const, 1> threshold, strided_view<index_t, 1> offsets,
                      ragged_allocator<T> const& allocate);

}  // namespace v0
}  // namespace subspan
