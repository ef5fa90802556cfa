#pragma once

#include <algorithm>
#include <cstdlib>

#include "detail/cuda_storage.cuh"
#include "detail/cuda_support.cuh"
#include "detail/list_bodies.hpp"

/// Weighted sums of gathered rows on the device: what decoding, and every gradient around it, is
/// made of. Bodies: list_bodies.hpp.

namespace subspan::cuda {

using gpu::matrix_view;
using gpu::vector_view;
using gpu::wide;

inline constexpr int k_list_threads = 256, k_list_warps = k_list_threads / gpu::k_warp;
/// Scratch of a slice of columns: copies of rows, and parts of long lists.
inline constexpr index_t k_column_bytes = index_t{256} << 20;

/// Blocks for `items`, of which a block takes `each` at a time.
inline unsigned list_blocks(index_t items, index_t each = k_list_warps) {
  return static_cast<unsigned>(std::clamp<index_t>((items + each - 1) / each, 1, index_t{1} << 30));
}

/// f(i) for the items of this warp.
template <class F>
__device__ void for_each_item(index_t items, F&& f) {
  index_t const step = index_t{gridDim.x} * k_list_warps;
  for (index_t i = index_t{blockIdx.x} * k_list_warps + threadIdx.x / gpu::k_warp; i < items;
       i += step)
    f(i);
}
/// f(i) for those of this thread.
template <class F>
__device__ void for_each_element(index_t count, F&& f) {
  index_t const step = index_t{gridDim.x} * k_list_threads;
  for (index_t i = index_t{blockIdx.x} * k_list_threads + threadIdx.x; i < count; i += step) f(i);
}

// ---- copies --------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(k_list_threads)
    copy_kernel(matrix_view<T const> const from, matrix_view<T> const to) {
  __shared__ T tile[gpu::k_warp * (gpu::k_warp + 1)];
  gpu::device_lanes const lanes;
  index_t const across = (from.columns + gpu::k_warp - 1) / gpu::k_warp;
  index_t const down = (from.rows + gpu::k_warp - 1) / gpu::k_warp;
  for (index_t t = blockIdx.x; t < across * down; t += gridDim.x)
    gpu::copy_tile(lanes, tile, from, to, t / across * gpu::k_warp, t % across * gpu::k_warp);
}

/// to = from, of any strides.
template <class T>
void copy_matrix(matrix_view<T const> const& from, matrix_view<T> const& to, cudaStream_t stream) {
  if (from.rows == 0 || from.columns == 0) return;
  auto const tiles = [](index_t n) { return (n + gpu::k_warp - 1) / gpu::k_warp; };
  copy_kernel<T>
      <<<list_blocks(tiles(from.rows) * tiles(from.columns), 1), k_list_threads, 0, stream>>>(from,
                                                                                              to);
  check_launch("copy_kernel");
}

template <class T>
matrix_view<T> transposed(matrix_view<T> const& m) {
  return {m.data, m.columns, m.rows, m.column_stride, m.row_stride};
}

/// Columns first..first+count-1.
template <class T>
matrix_view<T> columns_of(matrix_view<T> const& m, index_t first, index_t count) {
  return {m.data + first * m.column_stride, m.rows, count, m.row_stride, m.column_stride};
}
template <class T>
vector_view<T> from_element(vector_view<T> const& v, index_t first) {
  return {v.data == nullptr ? nullptr : v.data + first * v.stride, v.stride};
}

/// Whether packs of 16 bytes can be loaded from, or stored to, rows of so many columns.
template <class T>
bool holds_packs(T const* data, index_t stride, index_t columns) {
  constexpr index_t width = 16 / sizeof(T);
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride % width == 0 &&
         columns % width == 0;
}

// ---- sums ----------------------------------------------------------------------------------------

template <bool Aligned, class T, class Lists, class Out>
__global__ void __launch_bounds__(k_list_threads)
    sum_parts_kernel(gpu::list_sum<T, Lists, Out> const call, index_t parts, index_t slices) {
  gpu::device_lanes const lanes;
  for_each_item(parts * slices, [&](index_t i) {
    gpu::sum_part<Aligned>(lanes, call, i % parts,
                           i / parts * gpu::lane_columns<T, Aligned>::slice);
  });
}

/// Slice after slice, so that the rows of one stay in the cache.
template <bool Aligned, class T, class Lists, class Out>
__global__ void __launch_bounds__(k_list_threads)
    sum_lists_kernel(gpu::list_sum<T, Lists, Out> const call, index_t slices) {
  gpu::device_lanes const lanes;
  index_t const lists = call.lists.lists;
  for_each_item(lists * slices, [&](index_t i) {
    gpu::sum_list<Aligned>(lanes, call, i % lists,
                           i / lists * gpu::lane_columns<T, Aligned>::slice);
  });
}

template <bool Aligned, class T, class Lists, class Out>
void launch_sums(gpu::list_sum<T, Lists, Out> const& call, index_t parts, cudaStream_t stream) {
  constexpr index_t slice = gpu::pack<T>::width * gpu::k_warp;
  index_t const slices = (call.rows.columns + slice - 1) / slice;
  if constexpr (requires { call.lists.list_at(0); })
    if (parts > 0) {
      sum_parts_kernel<Aligned>
          <<<list_blocks(parts * slices), k_list_threads, 0, stream>>>(call, parts, slices);
      check_launch("sum_parts_kernel");
    }
  sum_lists_kernel<Aligned>
      <<<list_blocks(call.lists.lists * slices), k_list_threads, 0, stream>>>(call, slices);
  check_launch("sum_lists_kernel");
}

/// out(j, c) = init[c] + the sum over the pairs of list j of weight (rows(row, c) - shift[c]). All
/// strides: rows whose columns do not lie side by side are copied, slice by slice, and so is `out`.
template <class T, class Lists, class Out>
void sum_lists(Lists const& lists, matrix_view<T const> const& rows, vector_view<T> const& init,
               vector_view<T> const& shift, matrix_view<Out> const& out, cudaStream_t stream) {
  using P = wide<T>;
  constexpr index_t slice = gpu::pack<T>::width * gpu::k_warp;
  index_t const d = rows.columns;
  if (lists.lists == 0 || d == 0) return;
  bool const packs = rows.column_stride != 1 && d > 1, turned = out.column_stride != 1 && d > 1;
  bool const splits = requires { lists.list_at(0); } && lists.pairs > gpu::k_list_part;
  index_t const parts = splits ? (lists.pairs - 1) / gpu::k_list_part + 1 : 0;
  auto const bytes = [](index_t count, std::size_t size) {
    return count * static_cast<index_t>(size);
  };
  index_t const of_column = (packs ? bytes(rows.rows, sizeof(T)) : 0) +
                            (turned ? bytes(lists.lists, sizeof(Out)) : 0) +
                            bytes(parts, sizeof(P));
  index_t const most = k_column_bytes / std::max<index_t>(of_column, 1) / slice * slice;
  index_t const width = std::min(d, std::max(most, slice));
  index_t const pitch = (width + slice - 1) / slice * slice;
  buffer<T> const packed(packs ? rows.rows * pitch : 0, stream);
  buffer<Out> const sums(turned ? lists.lists * pitch : 0, stream);
  buffer<P> const of_parts(parts * width, stream);
  for (index_t first = 0; first < d; first += width) {
    index_t const count = std::min(width, d - first);
    matrix_view<T const> const some = columns_of(rows, first, count);
    matrix_view<Out> const target = columns_of(out, first, count);
    matrix_view<T> const copy{packed.get(), rows.rows, count, pitch, 1};
    matrix_view<Out> const made{sums.get(), lists.lists, count, pitch, 1};
    if (packs) copy_matrix<T>(some, copy, stream);
    gpu::list_sum<T, Lists, Out> const call{
        lists,
        {packs ? copy.data : some.data, rows.rows, count, packs ? pitch : some.row_stride},
        from_element(init, first),
        from_element(shift, first),
        of_parts.get(),
        turned ? made.data : target.data,
        turned ? pitch : target.row_stride};
    if (holds_packs(call.rows.data, call.rows.stride, count) &&
        holds_packs(call.out, call.out_stride, count))
      launch_sums<true>(call, parts, stream);
    else
      launch_sums<false>(call, parts, stream);
    if (turned) copy_matrix<Out>({made.data, made.rows, count, pitch, 1}, target, stream);
  }
}

template <class T, class Out>
__global__ void __launch_bounds__(k_list_threads)
    multiply_kernel(matrix_view<T const> const a, wide<T> const* v, vector_view<T> const init,
                    Out* out) {
  gpu::device_lanes const lanes;
  for_each_item(a.rows, [&](index_t i) {
    wide<T> const sum =
        gpu::weighted_sum(lanes, a.data + i * a.row_stride, a.column_stride, v, a.columns);
    if (lanes.lane() == 0) out[i] = gpu::storage<Out>::narrow(init.at(i) + sum);
  });
}

/// out[i] = init[i] + the sum over c of a(i, c) v[c].
template <class T, class Out>
void multiply(matrix_view<T const> const& a, wide<T> const* v, vector_view<T> const& init, Out* out,
              cudaStream_t stream) {
  if (a.rows == 0) return;
  if (std::abs(a.row_stride) < std::abs(a.column_stride)) {
    matrix_view<Out> const row{out, 1, a.rows, a.rows, 1};
    sum_lists<T>(gpu::all_rows<wide<T>>{v, a.columns}, transposed(a), init, {}, row, stream);
    return;
  }
  multiply_kernel<T><<<list_blocks(a.rows), k_list_threads, 0, stream>>>(a, v, init, out);
  check_launch("multiply_kernel");
}

}  // namespace subspan::cuda
