#pragma once

#include "detail/batched.hpp"
#include "detail/pack_kernels.hpp"

/// The walk over a batch of small matrices, a pack at a time.

namespace subspan::detail {

/// Which matrices go into packs, and which are larger but still better off with our rows than with
/// LAPACK: rules of the shape alone, because a matrix's bits must not depend on its batch.
inline constexpr index_t k_pack_limit = 32, k_rows_limit = 128, k_entries_limit = 65536;

inline bool fits_pack(index_t m, index_t n) {
  return m > 0 && n > 0 && std::min(m, n) <= k_pack_limit && m * n <= k_entries_limit;
}
inline bool fits_rows(index_t m, index_t n) {
  return m > 0 && n > 0 && std::min(m, n) <= k_rows_limit && m * n <= k_entries_limit;
}

/// Matrices [first, first + count) of a batch.
template <class T>
pack_input<T> input_of(strided_view<T const, 3> const& a, bool transposed, index_t first,
                       index_t count) {
  auto const [sb, si, sj] = a.strides;
  auto const [batch, m, n] = a.shape;
  T const* const data = a.data + first * sb;
  if (transposed) return {data, sb, sj, si, n, m, count};
  return {data, sb, si, sj, m, n, count};
}

template <class T, int Rank>
pack_output<T> output_of(strided_view<T, Rank> const& out, bool transposed, index_t first) {
  index_t const next = out.strides[0], row = out.strides[1];
  index_t const column = Rank == 3 ? out.strides[Rank - 1] : 0;
  T* const data = out.data + first * next;
  if (transposed) return {data, next, column, row};
  return {data, next, row, column};
}

/// Runs the kernel on `make_task(first, count)` for all of a batch, with scratch for [rows, columns].
/// `flops`: roughly, of one matrix.
template <class Task, class MakeTask>
void run_packs(context const& ctx, index_t batch, index_t rows, index_t columns, double flops,
               pack_kernels<Task> const& kernels, MakeTask&& make_task) {
  // A narrow pack takes about half the time of a wide one.
  bool const few = batch <= kernels.narrow.width * thread_count(ctx);
  index_t const width = few ? kernels.narrow.width : kernels.wide.width;
  auto const grain = static_cast<index_t>(k_chunk_flops / (flops * static_cast<double>(width))) + 1;
  parallel_for(ctx, (batch + width - 1) / width, grain, [&](index_t begin, index_t end) {
    workspace<std::byte> scratch(
        ctx, std::max(kernels.wide.scratch(rows, columns), kernels.narrow.scratch(rows, columns)));
    for (index_t first = begin * width; first < std::min(end * width, batch); first += width) {
      index_t const count = std::min(width, batch - first);
      auto const& kernel = count <= kernels.narrow.width ? kernels.narrow : kernels.wide;
      kernel.run(make_task(first, count), scratch.data());
    }
  });
}

/// The same for a decomposition, which then applies the policies.
template <class T, class Task, class MakeTask>
void for_each_pack(context const& ctx, char const* function, strided_view<T const, 3> const& a,
                   strided_view<std::int32_t, 1> info, decomposition_params params,
                   pack_kernels<Task> const& kernels, MakeTask&& make_task) {
  index_t const batch = a.shape[0];
  if (batch == 0) return;
  auto const shape = make_task(0, 1).a;  // a wide matrix may be given by its transpose
  double const flops = 20.0 * static_cast<double>(shape.rows * shape.cols) *
                       static_cast<double>(std::min(shape.rows, shape.cols));
  run_packs(ctx, batch, shape.rows, shape.cols, flops, kernels, make_task);
  apply_policies(function, info.data, batch, params);
}

}  // namespace subspan::detail
