#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "detail/blas.hpp"
#include "detail/contract.hpp"
#include "detail/parallel.hpp"
#include "detail/route.hpp"
#include "detail/workspace.hpp"
#include "subspan/svd.hpp"

/// What svd, eigh and qr share: the walk over a batch, the policies, the copy into scratch.

namespace subspan::detail {

/// From this size on matrices that are fewer than the threads are handed to LAPACK with all
/// threads, whose number may then show in the last bits.
inline constexpr index_t k_large_matrix = 512;

/// Flops, roughly, that a chunk must be worth: handing less to another thread costs more time than
/// it saves.
inline constexpr double k_chunk_flops = 1e6;

inline constexpr std::int32_t k_info_nonfinite = -1;

/// Copies matrix `b` of `a` in C order and tells whether all of it is finite.
template <class T>
bool load_matrix(strided_view<T const, 3> const& a, index_t b, T* out) {
  auto const [sb, si, sj] = a.strides;
  index_t const m = a.shape[1], n = a.shape[2];
  bool finite = true;
  for (index_t i = 0; i < m; ++i) {
    T const* row = a.data + b * sb + i * si;
    // Two loops: the unit stride is known to the compiler in the first.
    if (sj == 1)
      for (index_t j = 0; j < n; ++j) out[i * n + j] = row[j];
    else
      for (index_t j = 0; j < n; ++j) out[i * n + j] = row[j * sj];
    T largest = 0;  // NaN compares false, so it is caught by its own test
    bool nan = false;
    for (index_t j = 0; j < n; ++j) {
      T const v = std::abs(out[i * n + j]);
      largest = v > largest ? v : largest;
      nan |= !(v == v);
    }
    finite &= !nan && largest <= std::numeric_limits<T>::max();
  }
  return finite;
}

template <class T, int Rank>
void fill_matrix(strided_view<T, Rank> const& out, index_t b, T value) {
  index_t const size = out.size() / std::max<index_t>(out.shape[0], 1);
  std::fill_n(out.data + b * size, size, value);
}

/// LAPACK reports workspace sizes as numbers of its own type; a float may have been rounded down.
template <class T>
int workspace_size(T reported) {
  double const exact =
      static_cast<double>(reported) * (1.0 + 2.0 * std::numeric_limits<T>::epsilon());
  return exact < 2147483000.0 ? static_cast<int>(exact) + 1 : 2147483000;
}

template <class T>
void check_batch(char const* function, strided_view<T const, 3> const& a,
                 strided_view<std::int32_t, 1> const& info) {
  expects(a.shape[1] <= 2147483647 && a.shape[2] <= 2147483647, function,
          "a must have fewer than 2^31 rows and columns, got ", a.shape[1], " x ", a.shape[2]);
  expects(info.shape[0] == a.shape[0] && info.is_row_major() && info.device == a.device, function,
          "info must be contiguous, on the device of a, with one entry per matrix (", a.shape[0],
          "), got ", info.shape[0]);
}

/// Outputs are C-ordered, on the input's device, of the right shape, and apart from the input.
template <class T, int Rank>
void check_output(char const* function, char const* name, strided_view<T, Rank> const& out,
                  std::array<index_t, Rank> shape, strided_view<T const, 3> const& a) {
  expects(out.shape == shape && out.is_row_major() && out.device == a.device, function, name,
          " must be C-ordered, on the device of a, and of the documented shape");
  expects(!overlaps(out, a), function, name, " must not overlap a");
}

/// Throws what the policies ask for, given the status of each matrix.
inline void apply_policies(char const* function, std::int32_t const* info, index_t batch,
                           decomposition_params params) {
  index_t failed = 0, first = -1;
  for (index_t b = 0; b < batch; ++b) {
    if (info[b] == k_info_nonfinite && params.nonfinite == nonfinite_policy::raise)
      fail(error_kind::invalid_argument, function,
           "a must be finite, got NaN or infinity in matrix ", b, " of ", batch,
           ". Pass nonfinite=\"propagate\" to get NaN for it and results for the "
           "others");
    if (info[b] > 0) {
      if (first < 0) first = b;
      ++failed;
    }
  }
  if (failed > 0 && params.raise_no_convergence)
    fail(error_kind::no_convergence, function, failed, " of ", batch,
         " matrices did not converge, the first is ", first, " (", info[first],
         " elements left). Pass errors=\"info\" to get the others and the status of each");
}

/// Runs `worker.solve(b)` (0, k_info_nonfinite or LAPACK's info > 0) for every matrix, with one
/// worker per chunk so that scratch is allocated once per chunk, then applies the policies.
template <class T, class MakeWorker>
void for_each_matrix(context const& ctx, char const* function, strided_view<T const, 3> const& a,
                     strided_view<std::int32_t, 1> info, decomposition_params params,
                     MakeWorker&& make_worker) {
  index_t const batch = a.shape[0];
  int const threads = thread_count(ctx);
  bool const large = batch < threads && std::min(a.shape[1], a.shape[2]) >= k_large_matrix;
  auto const range = [&](index_t begin, index_t end) {
    auto worker = make_worker();
    for (index_t b = begin; b < end; ++b) info(b) = worker.solve(b);
  };
  if (large) {
    blas_scope const scope(threads);
    range(0, batch);
  } else {
    blas_scope const scope;
    double const flops = 20.0 * static_cast<double>(a.shape[1] * a.shape[2]) *
                         static_cast<double>(std::min(a.shape[1], a.shape[2]));
    auto const least = static_cast<index_t>(k_chunk_flops / std::max(flops, 1.0)) + 1;
    parallel_for(ctx, batch, std::max(std::clamp<index_t>(batch / (8 * threads), 1, 256), least),
                 range);
  }
  apply_policies(function, info.data, batch, params);
}

/// The same on a CUDA device: `entry` is svd, eigh or qr of the table. Waits for the device only if
/// a policy needs the status of the matrices.
template <class T>
void decompose_on_cuda(context const& ctx, char const* function,
                       int (*entry)(subspan_cuda_decomposition_call const*, char*, int),
                       strided_view<T const, 3> const& a, T* values, T* left, T* right,
                       strided_view<std::int32_t, 1> info, decomposition_params params) {
  auto const [batch, m, n] = a.shape;
  bool const checks = params.nonfinite != nonfinite_policy::ignore;
  subspan_cuda_decomposition_call const call{a.data,
                                             batch,
                                             m,
                                             n,
                                             {a.strides[0], a.strides[1], a.strides[2]},
                                             cuda_dtype<T>(),
                                             a.device.index,
                                             ctx.stream,
                                             checks,
                                             values,
                                             left,
                                             right,
                                             info.data};
  char message[256] = {};
  check_cuda(function, entry(&call, message, sizeof message), message);
  if (params.nonfinite != nonfinite_policy::raise && !params.raise_no_convergence) return;
  workspace<std::int32_t> status(ctx, batch);
  check_cuda(function,
             cuda_functions(function).fetch(status.data(), info.data,
                                            static_cast<std::size_t>(batch) * sizeof(std::int32_t),
                                            a.device.index, ctx.stream, message, sizeof message),
             message);
  apply_policies(function, status.data(), batch, params);
}

}  // namespace subspan::detail
