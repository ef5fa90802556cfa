// CUDA twin of decode.cpp.

#include <algorithm>
#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "detail/list_sums.cuh"

namespace subspan::cuda {
namespace {

template <class T>
vector_view<T> view(subspan_cuda_vector const& v) {
  return {static_cast<T const*>(v.data), v.stride};
}
template <class T>
matrix_view<T> view(subspan_cuda_matrix const& m) {
  return {static_cast<T*>(m.data), m.rows, m.columns, m.strides[0], m.strides[1]};
}
template <class T>
matrix_view<T> ordered(void* data, index_t rows, index_t columns) {
  return {static_cast<T*>(data), rows, columns, columns, 1};
}

template <class T>
gpu::code_lists<T> lists_of(subspan_cuda_code const& code) {
  constexpr index_t most = (index_t{1} << 32) - 2;
  if (code.pairs > most || code.features > most || code.rows > most)
    throw failure(subspan_cuda_unsupported,
                  "codes on a device must have fewer than 2^32 - 1 pairs, rows and features");
  index_t const each = code.rows == 0 ? 1 : std::max<index_t>(code.pairs / code.rows, 1);
  bool const empty = code.offsets.data == nullptr && code.pairs == 0;
  return {static_cast<T const*>(code.values.data),
          code.values.stride,
          static_cast<std::int64_t const*>(code.indices.data),
          code.indices.stride,
          static_cast<std::int64_t const*>(code.offsets.data),
          code.offsets.stride,
          empty ? 0 : each,
          code.rows,
          code.pairs,
          code.features};
}

/// body(T{}, code, stream) for the dtype of a call, on its device.
template <class Body>
int with_code(subspan_cuda_code const& code, char* message, int size, Body&& body) {
  return guarded(message, size, [&] {
    device_scope const scope(code.device_index);
    visit_storage(code.dtype, [&]<class T>(T type) {
      body(type, lists_of<T>(code), static_cast<cudaStream_t>(code.stream));
    });
  });
}

// ---- pairs by feature ----------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(k_list_threads)
    feature_keys_kernel(gpu::code_lists<T> const code, std::uint32_t* keys, std::uint32_t* order) {
  for_each_element(code.pairs, [&](index_t p) {
    index_t const feature = code.feature(p);
    keys[p] = static_cast<std::uint32_t>(feature < 0 ? code.features : feature);
    order[p] = static_cast<std::uint32_t>(p);
  });
}

template <class T>
__global__ void __launch_bounds__(k_list_threads)
    gather_pairs_kernel(gpu::code_lists<T> const code, std::uint32_t const* order,
                        std::uint32_t* rows, wide<T>* weights) {
  for_each_element(code.pairs, [&](index_t q) {
    index_t const p = order[q];
    rows[q] = static_cast<std::uint32_t>(code.row_of(p));
    weights[q] = code.weight(p);
  });
}

__global__ void __launch_bounds__(k_list_threads)
    feature_offsets_kernel(std::uint32_t const* keys, index_t pairs, index_t features,
                           std::uint32_t* offsets) {
  for_each_element(features + 1, [&](index_t f) {
    offsets[f] =
        static_cast<std::uint32_t>(gpu::lower_bound(keys, pairs, static_cast<std::uint32_t>(f)));
  });
}

/// The pairs of a code by feature, each in the order of the rows: a stable sort by digits.
template <class T>
class pairs_by_feature {
 public:
  pairs_by_feature(gpu::code_lists<T> const& code, cudaStream_t stream)
      : keys_{{code.pairs, stream}, {code.pairs, stream}},
        order_{{code.pairs, stream}, {code.pairs, stream}},
        rows_(code.pairs, stream),
        offsets_(code.features + 1, stream),
        weights_(code.pairs, stream) {
    cub::DoubleBuffer<std::uint32_t> keys(keys_[0].get(), keys_[1].get());
    cub::DoubleBuffer<std::uint32_t> order(order_[0].get(), order_[1].get());
    if (code.pairs > 0) {
      feature_keys_kernel<T>
          <<<list_blocks(code.pairs, k_list_threads), k_list_threads, 0, stream>>>(
              code, keys.Current(), order.Current());
      check_launch("feature_keys_kernel");
      int const bits = std::bit_width(static_cast<std::uint64_t>(code.features) | 1);
      std::size_t size = 0;
      auto const sort = [&](void* scratch) {
        check(cub::DeviceRadixSort::SortPairs(scratch, size, keys, order, code.pairs, 0, bits,
                                              stream),
              "radix sort");
      };
      sort(nullptr);
      buffer<unsigned char> const scratch(static_cast<index_t>(std::max<std::size_t>(size, 1)),
                                          stream);
      sort(scratch.get());
      gather_pairs_kernel<T>
          <<<list_blocks(code.pairs, k_list_threads), k_list_threads, 0, stream>>>(
              code, order.Current(), rows_.get(), weights_.get());
      check_launch("gather_pairs_kernel");
    }
    feature_offsets_kernel<<<list_blocks(code.features + 1, k_list_threads), k_list_threads, 0,
                             stream>>>(keys.Current(), code.pairs, code.features, offsets_.get());
    check_launch("feature_offsets_kernel");
    lists_ = {keys.Current(), rows_.get(),   weights_.get(),
              offsets_.get(), code.features, code.pairs};
    ordered_ = order.Current();
  }

  gpu::feature_lists<wide<T>> const& lists() const { return lists_; }
  /// Where the pairs stand in the code.
  std::uint32_t const* order() const { return ordered_; }

 private:
  buffer<std::uint32_t> keys_[2], order_[2], rows_, offsets_;
  buffer<wide<T>> weights_;
  gpu::feature_lists<wide<T>> lists_;
  std::uint32_t const* ordered_ = nullptr;
};

// ---- gradients of the values ---------------------------------------------------------------------

template <bool Aligned, class T>
__global__ void __launch_bounds__(k_list_threads)
    pair_products_kernel(gpu::feature_lists<wide<T>> const lists, std::uint32_t const* order,
                         matrix_view<T const> const with, matrix_view<T const> const rows,
                         T* products) {
  gpu::device_lanes const lanes;
  for_each_item(lists.pairs, [&](index_t q) {
    wide<T> product = gpu::pair_product<Aligned>(lanes, lists, q, with, rows);
    if (lanes.lane() == 0) products[order[q]] = gpu::storage<T>::narrow(product);
  });
}

/// products[p] = with[feature] . rows[row] for every pair. The pairs of a feature come together, so
/// that its row is read once from memory.
template <class T>
void multiply_pairs(pairs_by_feature<T> const& pairs, matrix_view<T const> with,
                    matrix_view<T const> const& rows, T* products, cudaStream_t stream) {
  if (pairs.lists().pairs == 0) return;
  index_t const size = with.rows * with.columns;
  bool const packs = std::abs(with.column_stride) > 1 && with.columns > 1 &&
                     size * static_cast<index_t>(sizeof(T)) <= k_slice_bytes;
  buffer<T> const packed(packs ? size : 0, stream);
  if (packs) {
    matrix_view<T> const copy = ordered<T>(packed.get(), with.rows, with.columns);
    copy_matrix<T>(with, copy, stream);
    with = {copy.data, copy.rows, copy.columns, copy.row_stride, 1};
  }
  auto const in_packs = [](matrix_view<T const> const& m) {
    return m.column_stride == 1 && holds_packs(m.data, m.row_stride, m.columns);
  };
  auto const kernel = in_packs(with) && in_packs(rows) ? &pair_products_kernel<true, T>
                                                       : &pair_products_kernel<false, T>;
  kernel<<<list_blocks(pairs.lists().pairs), k_list_threads, 0, stream>>>(
      pairs.lists(), pairs.order(), with, rows, products);
  check_launch("pair_products_kernel");
}

// ---- gradients of the biases ---------------------------------------------------------------------

/// The sum of the weights of every feature: rounded, and negated as it is.
template <class T>
__global__ void __launch_bounds__(k_list_threads)
    sum_weights_kernel(gpu::feature_lists<wide<T>> const lists, T* rounded, wide<T>* negated) {
  gpu::device_lanes const lanes;
  for_each_item(lists.lists, [&](index_t j) {
    wide<T> const sum = gpu::sum_weights(lanes, lists, j);
    if (lanes.lane() != 0) return;
    if (rounded != nullptr) rounded[j] = gpu::storage<T>::narrow(sum);
    if (negated != nullptr) negated[j] = -sum;
  });
}

}  // namespace

int decode(subspan_cuda_decode_call const* call, char* message, int size) {
  return with_code(call->code, message, size, [&]<class T>(T, auto const& code, auto stream) {
    auto const w_dec = view<T const>(call->w_dec);
    sum_lists<T>(code, w_dec, view<T>(call->b_dec), {},
                 ordered<T>(call->out, code.lists, w_dec.columns), stream);
  });
}

int decode_gradients(subspan_cuda_decode_gradients_call const* call, char* message, int size) {
  return with_code(call->code, message, size, [&]<class T>(T, auto const& code, auto stream) {
    auto const w_dec = view<T const>(call->w_dec), gradient = view<T const>(call->grad_out);
    if (call->grad_values != nullptr || call->grad_w_dec != nullptr) {
      pairs_by_feature<T> const pairs(code, stream);
      if (call->grad_values != nullptr)
        multiply_pairs<T>(pairs, w_dec, gradient, static_cast<T*>(call->grad_values), stream);
      if (call->grad_w_dec != nullptr)
        sum_lists<T>(pairs.lists(), gradient, {}, {},
                     ordered<T>(call->grad_w_dec, code.features, gradient.columns), stream);
    }
    if (call->grad_b_dec != nullptr)
      sum_lists<T>(gpu::all_rows<wide<T>>{nullptr, gradient.rows}, gradient, {}, {},
                   ordered<T>(call->grad_b_dec, 1, gradient.columns), stream);
  });
}

int encode_gradients(subspan_cuda_encode_gradients_call const* call, char* message, int size) {
  return with_code(call->code, message, size, [&]<class T>(T, auto const& code, auto stream) {
    auto const x = view<T const>(call->x), w_enc = view<T const>(call->w_enc);
    if (call->grad_w_enc.data != nullptr || call->grad_b_enc != nullptr ||
        call->grad_b_pre != nullptr) {
      pairs_by_feature<T> const pairs(code, stream);
      if (call->grad_w_enc.data != nullptr)
        sum_lists<T>(pairs.lists(), x, {}, view<T>(call->b_pre),
                     transposed(view<T>(call->grad_w_enc)), stream);
      if (call->grad_b_enc != nullptr || call->grad_b_pre != nullptr) {
        buffer<wide<T>> const sums(call->grad_b_pre != nullptr ? code.features : 0, stream);
        if (code.features > 0) {
          sum_weights_kernel<T><<<list_blocks(code.features), k_list_threads, 0, stream>>>(
              pairs.lists(), static_cast<T*>(call->grad_b_enc), sums.get());
          check_launch("sum_weights_kernel");
        }
        if (call->grad_b_pre != nullptr)
          multiply<T>(w_enc, sums.get(), {}, static_cast<T*>(call->grad_b_pre), stream);
      }
    }
    if (call->grad_x != nullptr)
      sum_lists<T>(code, transposed(w_enc), {}, {},
                   ordered<T>(call->grad_x, code.lists, w_enc.rows), stream);
  });
}

}  // namespace subspan::cuda
