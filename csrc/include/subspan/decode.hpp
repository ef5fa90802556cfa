#pragma once

#include <optional>

#include "subspan/abi.hpp"
#include "subspan/context.hpp"
#include "subspan/view.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

/// Sparse rows of a [rows, n] matrix: pairs (feature, value), row after row. Every stored pair
/// counts, also one of value zero (0 times infinity is NaN, as in the dense product); pairs of one
/// row with the same feature add up.
template <class T>
struct sparse_code {
  strided_view<T const, 1> values;         ///< [pairs]
  strided_view<index_t const, 1> indices;  ///< [pairs]: the features, in 0..n-1
  strided_view<index_t const, 1> offsets;  ///< [rows + 1], from 0 to pairs; no data: equal rows
  index_t rows = 0;
};

/// k pairs in each row: values and indices [rows, k] in C order.
template <class T>
sparse_code<T> equal_rows(strided_view<T const, 2> values, strided_view<index_t const, 2> indices) {
  index_t const pairs = values.shape[0] * values.shape[1];
  index_t const places = indices.shape[0] * indices.shape[1];
  return {{values.data, {pairs}, {1}, values.device},
          {indices.data, {places}, {1}, indices.device},
          {},
          values.shape[0]};
}

/// The sparse product of a sparse autoencoder's decoder (Gao et al. 2024, arXiv 2406.04093):
/// out[t] = b_dec + sum over the pairs i of row t of values[i] w_dec[indices[i]].
///
///   w_dec [n, d]     any strides
///   b_dec [d]        any stride; absent: zero
///   out   [rows, d]  C order
///
/// Sums are made in float (double for double) in the order of the pairs, 1024 at a time, and
/// rounded once; same bits for any number of threads. Where most of 32 rows name at least a quarter
/// of the features, they are made as a product, in the order of the features. T: half, bfloat16,
/// float, double. CPU and CUDA. Throws error{invalid_argument} that names row, position and value for
/// an index beyond 0..n-1, before anything is written. On CUDA, where sums are never made as a
/// product, nothing waits: what is wrong with indices or offsets makes the row NaN instead (and the
/// gradients of its values; that of w_dec leaves such pairs out).
/// 2 pairs d flops; scratch up to 16 bytes per pair and, where the columns of w_dec do not lie side
/// by side, a slice of it: up to 16 MiB, or n rows of 128 elements; as a product, such a slice and
/// 32 rows of a dense code for each thread.
template <class T>
void sparse_decode(context const& ctx, sparse_code<T> const& code, strided_view<T const, 2> w_dec,
                   std::optional<strided_view<T const, 1>> b_dec, strided_view<T, 2> out);

/// The gradients that are wanted. grad_w_dec is written completely, zeros included.
///
///   grad_out    [rows, d]  any strides
///   grad_values [pairs]    stride 1; grad_out[t] . w_dec[indices[i]]
///   grad_w_dec  [n, d]     C order; row j: sum of values[i] grad_out[t] over the pairs of feature j
///   grad_b_dec  [d]        stride 1; sum over t of grad_out[t]
///
/// One pass over the features, whose pairs a stable counting sort brings together: their order, and
/// so the bits, are those of the rows for any number of threads, and for any choice of outputs.
/// 2 pairs d flops for each of the first two; scratch up to 56 bytes per pair, 16 n bytes and slices
/// as above.
template <class T>
void sparse_decode_backward(context const& ctx, sparse_code<T> const& code,
                            strided_view<T const, 2> w_dec, strided_view<T const, 2> grad_out,
                            std::optional<strided_view<T, 1>> grad_values,
                            std::optional<strided_view<T, 2>> grad_w_dec,
                            std::optional<strided_view<T, 1>> grad_b_dec);

/// Where the wanted gradients of z[t, j] = (x[t] - b_pre) . w_enc[:, j] + b_enc[j] go.
template <class T>
struct encode_gradients {
  /// [d, n], C order or transposed (strides (1, d)), complete: column j is the sum over the pairs
  /// of feature j of dz (x[t] - b_pre), the difference rounded before the product.
  std::optional<strided_view<T, 2>> w_enc;
  std::optional<strided_view<T, 1>> b_enc;  ///< [n], stride 1: the sum of dz
  std::optional<strided_view<T, 2>> x;      ///< [rows, d], C order: the sum of dz w_enc[:, j]
  std::optional<strided_view<T, 1>> b_pre;  ///< [d], stride 1: -w_enc (sums of dz, unrounded)
};

/// The backward pass of a TopK encoder: `code` holds the selected features and, as values, the
/// gradients dz of their pre-activations.
///
///   x     [rows, d]  any strides; may be absent where gradients.w_enc is
///   b_pre [d]        any stride; absent: zero
///   w_enc [d, n]     any strides; may be absent where gradients.x and gradients.b_pre are
///   n                features
///
/// As sparse_decode_backward otherwise. gradients.x gathers columns of w_enc: where they do not
/// lie in one piece (strides (1, d)) they are transposed slice by slice.
template <class T>
void topk_encode_backward(context const& ctx, sparse_code<T> const& code, index_t n,
                          std::optional<strided_view<T const, 2>> x,
                          std::optional<strided_view<T const, 1>> b_pre,
                          std::optional<strided_view<T const, 2>> w_enc,
                          encode_gradients<T> const& gradients);

}  // namespace v0
}  // namespace subspan
