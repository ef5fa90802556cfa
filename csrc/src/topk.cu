// CUDA twin of topk.cpp.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_segmented_radix_sort.cuh>

#include "detail/cuda_support.cuh"
#include "detail/topk_bodies.hpp"

namespace subspan::cuda {
namespace {

using gpu::topk_plan;

constexpr index_t k_most_blocks = index_t{1} << 30;
// Blocks from which on the device is busy: rows that are fewer are cut into parts.
constexpr index_t k_blocks_per_processor = 6;
constexpr index_t k_part = 8192;  // elements that a part has at least
// Elements from which on a row is sorted by the whole device.
constexpr index_t k_long_row = index_t{1} << 19;

/// Rows and outputs, as the call has them. A value is copied as an integer of its width.
template <class U>
struct topk_rows {
  U const* x;
  index_t inner, outer_stride, inner_stride, stride;
  U* values;
  index_t* indices;
  index_t rows, n, k;

  __device__ U const* row(index_t r) const {
    return x + r / inner * outer_stride + r % inner * inner_stride;
  }
  __device__ void deliver(index_t r, index_t j, std::uint32_t index) const {
    values[r * k + j] = row(r)[index * stride];
    indices[r * k + j] = index;
  }
};

/// Bits of the greatest index.
inline int index_bits(index_t n) {
  return static_cast<int>(std::bit_width(static_cast<std::uint64_t>(n - 1)));
}

template <class Key>
std::size_t shared_bytes(topk_plan const& plan) {
  return static_cast<std::size_t>(plan.capacity) * sizeof(detail::entry<Key>) +
         topk_plan::words * sizeof(int);
}

extern __shared__ __align__(16) unsigned char shared_memory[];

template <class U, class Block>
__device__ void deliver_row(topk_rows<U> const& rows, index_t r, Block const& block) {
  for (index_t j = threadIdx.x; j < rows.k; j += blockDim.x)
    rows.deliver(r, j, detail::index_of(block.entries()[j]));
  __syncthreads();  // the entries are overwritten by the next row
}

/// A block per row, or per part of one: the k best of a part go to `candidates`.
template <class U, bool Float>
__global__ void __launch_bounds__(256, 4)
    select_kernel(topk_rows<U> const rows, gpu::topk_format<U, Float> const format,
                  topk_plan const plan, bool sorted, index_t parts,
                  detail::entry<typename gpu::topk_format<U, Float>::key_type>* candidates) {
  using source = gpu::topk_row<U, Float>;
  using entry = typename source::entry_type;
  auto* const entries = reinterpret_cast<entry*>(shared_memory);
  auto* const words = reinterpret_cast<int*>(entries + plan.capacity);
  gpu::device_lanes const lanes;
  for (index_t job = blockIdx.x; job < rows.rows * parts; job += gridDim.x) {
    index_t const r = job / parts, part = job % parts;
    source const from{format, rows.row(r), rows.stride};
    gpu::topk_block<typename source::key_type, gpu::device_lanes> block(lanes, plan, entries,
                                                                        words);
    block.scan(from, part * rows.n / parts, (part + 1) * rows.n / parts);
    if (candidates == nullptr) {
      block.order(sorted);
      deliver_row(rows, r, block);
    } else {
      block.select();
      for (index_t j = threadIdx.x; j < rows.k; j += blockDim.x)
        candidates[job * rows.k + j] = block.entries()[j];
      __syncthreads();
    }
  }
}

/// The k best of the candidates of a row.
template <class U, class Key>
__global__ void __launch_bounds__(256)
    merge_kernel(topk_rows<U> const rows, topk_plan const plan, bool sorted, index_t count,
                 detail::entry<Key> const* candidates) {
  using entry = detail::entry<Key>;
  auto* const entries = reinterpret_cast<entry*>(shared_memory);
  auto* const words = reinterpret_cast<int*>(entries + plan.capacity);
  gpu::device_lanes const lanes;
  for (index_t r = blockIdx.x; r < rows.rows; r += gridDim.x) {
    gpu::topk_block<Key, gpu::device_lanes> block(lanes, plan, entries, words);
    block.scan(gpu::topk_candidates<Key>{candidates + r * count}, 0, count);
    block.order(sorted);
    deliver_row(rows, r, block);
  }
}

template <class U, bool Float>
void select_rows(topk_rows<U> const& rows, gpu::topk_format<U, Float> const& format, bool sorted,
                 cudaStream_t stream) {
  using key = typename gpu::topk_format<U, Float>::key_type;
  int const k = static_cast<int>(rows.k);
  index_t const wanted =
      k_blocks_per_processor * device_attribute(cudaDevAttrMultiProcessorCount) / rows.rows;
  // As many candidates as there are elements in a part, and no part of fewer than 16 k.
  auto const balance = static_cast<index_t>(std::sqrt(static_cast<double>(rows.n / rows.k)));
  index_t const parts = std::max<index_t>(
      std::min({wanted, balance, rows.n / std::max<index_t>(k_part, 16 * rows.k)}), 1);
  topk_plan const plan = topk_plan::of(k, rows.n / parts, index_bits(rows.n));
  auto const kernel = &select_kernel<U, Float>;
  std::size_t const bytes = shared_bytes<key>(plan);
  allow_shared(kernel, bytes);
  buffer<detail::entry<key>> const candidates(parts > 1 ? rows.rows * parts * rows.k : 0, stream);
  kernel<<<static_cast<unsigned>(std::min(rows.rows * parts, k_most_blocks)), plan.threads, bytes,
           stream>>>(rows, format, plan, sorted, parts, candidates.get());
  check_launch("select_kernel");
  if (parts == 1) return;
  index_t const count = parts * rows.k;
  topk_plan const last = topk_plan::of(k, count, index_bits(rows.n));
  auto const merge = &merge_kernel<U, key>;
  std::size_t const merged = shared_bytes<key>(last);
  allow_shared(merge, merged);
  merge<<<static_cast<unsigned>(std::min(rows.rows, k_most_blocks)), last.threads, merged,
          stream>>>(rows, last, sorted, count, candidates.get());
  check_launch("merge_kernel");
}

// ---- k beyond what a block holds: rows are sorted ------------------------------------------------

/// Keys and indices of rows [first, first + count), a row after the other.
template <class U, bool Float>
__global__ void keys_kernel(topk_rows<U> const rows, gpu::topk_format<U, Float> const format,
                            index_t first, index_t count,
                            typename gpu::topk_format<U, Float>::key_type* keys,
                            std::uint32_t* indices) {
  index_t const step = index_t{gridDim.x} * blockDim.x;
  for (index_t i = blockIdx.x * index_t{blockDim.x} + threadIdx.x; i < count * rows.n; i += step) {
    index_t const r = i / rows.n, j = i % rows.n;
    keys[i] = format.key(rows.row(first + r)[j * rows.stride]);
    indices[i] = static_cast<std::uint32_t>(j);
  }
}

/// The first k indices of every row as keys: their complements, so that the least comes first.
template <class Key>
__global__ void complements_kernel(index_t n, index_t k, index_t count,
                                   std::uint32_t const* indices, Key* keys, std::uint32_t* chosen) {
  index_t const step = index_t{gridDim.x} * blockDim.x;
  for (index_t i = blockIdx.x * index_t{blockDim.x} + threadIdx.x; i < count * k; i += step) {
    std::uint32_t const index = indices[i / k * n + i % k];
    keys[i] = static_cast<Key>(static_cast<std::uint32_t>(~index));
    chosen[i] = index;
  }
}

template <class U>
__global__ void deliver_kernel(topk_rows<U> const rows, index_t first, index_t count, index_t pitch,
                               std::uint32_t const* indices) {
  index_t const step = index_t{gridDim.x} * blockDim.x;
  for (index_t i = blockIdx.x * index_t{blockDim.x} + threadIdx.x; i < count * rows.k; i += step)
    rows.deliver(first + i / rows.k, i % rows.k, indices[i / rows.k * pitch + i % rows.k]);
}

__global__ void offsets_kernel(index_t count, index_t pitch, index_t* offsets) {
  index_t const i = blockIdx.x * index_t{blockDim.x} + threadIdx.x;
  if (i <= count) offsets[i] = i * pitch;
}

constexpr int k_threads = 256;

/// Blocks for a kernel that walks over `work` elements.
inline unsigned blocks_for(index_t work) {
  return static_cast<unsigned>(std::clamp<index_t>((work + k_threads - 1) / k_threads, 1, 1 << 20));
}

/// Keys with their indices, `most` of them, and room to sort them: stable, so that of equal keys the
/// one that came first stays first.
template <class Key>
class pair_sorter {
 public:
  pair_sorter(index_t most, index_t segments, cudaStream_t stream)
      : stream_(stream),
        keys_(most, stream),
        other_keys_(most, stream),
        indices_(most, stream),
        other_indices_(most, stream),
        offsets_(segments + 1, stream) {
    pairs_.keys = {keys_.get(), other_keys_.get()};
    pairs_.indices = {indices_.get(), other_indices_.get()};
  }

  Key* keys() { return pairs_.keys.Current(); }
  std::uint32_t* indices() { return pairs_.indices.Current(); }
  Key* other_keys() { return pairs_.keys.Alternate(); }
  std::uint32_t* other_indices() { return pairs_.indices.Alternate(); }
  /// What was written to the others is to be sorted.
  void swap() {
    pairs_.keys.selector ^= 1;
    pairs_.indices.selector ^= 1;
  }

  /// Greatest key first in each of `segments` runs of `length`, by bits [low, high) of the keys.
  void sort(index_t segments, index_t length, int low, int high) {
    if (segments == 1 || length >= k_long_row) {
      sort_long(segments, length, low, high);
      return;
    }
    offsets_kernel<<<blocks_for(segments + 1), k_threads, 0, stream_>>>(segments, length,
                                                                        offsets_.get());
    check_launch("offsets_kernel");
    with_scratch([&](void* scratch, std::size_t& bytes) {
      return cub::DeviceSegmentedRadixSort::SortPairsDescending(
          scratch, bytes, pairs_.keys, pairs_.indices, segments * length, segments, offsets_.get(),
          offsets_.get() + 1, low, high, stream_);
    });
  }

 private:
  struct pairs {
    cub::DoubleBuffer<Key> keys;
    cub::DoubleBuffer<std::uint32_t> indices;
  };

  /// Every run by the whole device. Which of the buffers ends up with the result depends on the
  /// number of bits alone, so it is the same for all runs.
  void sort_long(index_t segments, index_t length, int low, int high) {
    pairs after = pairs_;
    for (index_t s = 0; s < segments; ++s) {
      pairs run;
      run.keys = {keys() + s * length, other_keys() + s * length};
      run.indices = {indices() + s * length, other_indices() + s * length};
      with_scratch([&](void* scratch, std::size_t& bytes) {
        return cub::DeviceRadixSort::SortPairsDescending(scratch, bytes, run.keys, run.indices,
                                                         length, low, high, stream_);
      });
      after.keys.selector = pairs_.keys.selector ^ run.keys.selector;
      after.indices.selector = pairs_.indices.selector ^ run.indices.selector;
    }
    pairs_ = after;
  }

  template <class Sort>
  void with_scratch(Sort&& sort) {
    std::size_t bytes = 0;
    check(sort(nullptr, bytes), "radix sort");
    buffer<unsigned char> const scratch(static_cast<index_t>(std::max<std::size_t>(bytes, 1)),
                                        stream_);
    check(sort(scratch.get(), bytes), "radix sort");
  }

  cudaStream_t stream_;
  buffer<Key> keys_, other_keys_;
  buffer<std::uint32_t> indices_, other_indices_;
  buffer<index_t> offsets_;
  pairs pairs_;
};

template <class U, bool Float>
void sort_rows(topk_rows<U> const& rows, gpu::topk_format<U, Float> const& format, bool sorted,
               cudaStream_t stream) {
  using key = typename gpu::topk_format<U, Float>::key_type;
  index_t const n = rows.n, k = rows.k;
  index_t const each = 2 * n * static_cast<index_t>(sizeof(key) + sizeof(std::uint32_t));
  index_t const slice = std::clamp<index_t>(k_slice_bytes / each, 1, rows.rows);
  constexpr int key_bits = 8 * static_cast<int>(sizeof(key));
  for (index_t first = 0; first < rows.rows; first += slice) {
    index_t const count = std::min(slice, rows.rows - first);
    pair_sorter<key> sorter(count * n, count, stream);
    keys_kernel<U, Float><<<blocks_for(count * n), k_threads, 0, stream>>>(
        rows, format, first, count, sorter.keys(), sorter.indices());
    check_launch("keys_kernel");
    sorter.sort(count, n, format.shift, key_bits);
    index_t pitch = n;
    if (!sorted) {
      complements_kernel<key><<<blocks_for(count * k), k_threads, 0, stream>>>(
          n, k, count, sorter.indices(), sorter.other_keys(), sorter.other_indices());
      check_launch("complements_kernel");
      sorter.swap();
      sorter.sort(count, k, 0, index_bits(n));
      pitch = k;
    }
    deliver_kernel<U><<<blocks_for(count * k), k_threads, 0, stream>>>(rows, first, count, pitch,
                                                                       sorter.indices());
    check_launch("deliver_kernel");
  }
}

// ---- the entry -----------------------------------------------------------------------------------

/// `infinity`: its bits, where the elements are floats.
template <class U, bool Float>
void topk_of(subspan_cuda_topk_call const& call, U infinity, bool is_signed) {
  using format_type = gpu::topk_format<U, Float>;
  using key = typename format_type::key_type;
  topk_rows<U> const rows{static_cast<U const*>(call.x),
                          call.inner,
                          call.strides[0],
                          call.strides[1],
                          call.strides[2],
                          static_cast<U*>(call.values),
                          call.indices,
                          call.outer * call.inner,
                          call.n,
                          call.k};
  if (rows.rows == 0) return;
  // Smallest first: the sign of a float, the complement of an integer.
  key flip = Float || !is_signed ? key{0} : format_type::sign;
  if (call.largest == 0)
    flip ^= Float ? format_type::sign : static_cast<key>(~key{0}) << format_type::shift;
  format_type const format{flip, static_cast<key>(infinity) << format_type::shift};
  device_scope const scope(call.device_index);
  auto const stream = static_cast<cudaStream_t>(call.stream);
  constexpr index_t most = sizeof(key) == 4 ? 2048 : 1024;  // 64 KiB of shared memory
  if (call.k <= most)
    select_rows(rows, format, call.sorted != 0, stream);
  else
    sort_rows(rows, format, call.sorted != 0, stream);
}

}  // namespace

int topk(subspan_cuda_topk_call const* call, char* message, int size) {
  return guarded(message, size, [&] {
    switch (call->dtype) {
      case subspan_cuda_half:
        return topk_of<std::uint16_t, true>(*call, 0x7c00, true);
      case subspan_cuda_bfloat16:
        return topk_of<std::uint16_t, true>(*call, 0x7f80, true);
      case subspan_cuda_float:
        return topk_of<std::uint32_t, true>(*call, 0x7f800000, true);
      case subspan_cuda_double:
        return topk_of<std::uint64_t, true>(*call, 0x7ff0000000000000, true);
      case subspan_cuda_int8:
        return topk_of<std::uint8_t, false>(*call, 0, true);
      case subspan_cuda_uint8:
        return topk_of<std::uint8_t, false>(*call, 0, false);
      case subspan_cuda_int16:
        return topk_of<std::uint16_t, false>(*call, 0, true);
      case subspan_cuda_int32:
        return topk_of<std::uint32_t, false>(*call, 0, true);
      default:
        return topk_of<std::uint64_t, false>(*call, 0, true);
    }
  });
}

}  // namespace subspan::cuda
