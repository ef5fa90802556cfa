#pragma once

#include <limits>

#include "detail/cuda_support.cuh"
#include "detail/lanes.hpp"

/// Copies between a matrix of any strides and the columns that cuSOLVER works on, scaled by a power
/// of two to about 1 on the way in, by tiles that keep both sides coalesced. One matrix at a time,
/// by the whole device.

namespace subspan::cuda {

template <class T>
struct strided_matrix {
  T* data;
  index_t row_stride, column_stride;
  int rows, columns;
};

/// |x| as a number whose order is that of |x|, infinity and NaN last.
__device__ inline unsigned long long order_of(float x) { return __float_as_uint(fabsf(x)); }
__device__ inline unsigned long long order_of(double x) {
  return static_cast<unsigned long long>(__double_as_longlong(fabs(x)));
}
template <class T>
__device__ T in_order(unsigned long long order) {
  if constexpr (sizeof(T) == 4)
    return __uint_as_float(static_cast<unsigned>(order));
  else
    return __longlong_as_double(static_cast<long long>(order));
}

/// The exponent of the largest |x|; 0 for a zero matrix and for one that is not finite.
template <class T>
__device__ int exponent_of(unsigned long long largest) {
  T const size = in_order<T>(largest);
  return size > 0 && isfinite(size) ? ilogb(size) : 0;
}

inline constexpr int k_tile = 32;  // rows and columns of a tile, by 32 x 8 threads
inline constexpr int k_tile_rows = 8;

inline dim3 tile_threads() { return dim3(k_tile, k_tile_rows); }
inline dim3 tile_blocks(int rows, int columns) {
  auto const tiles = [](int n) {
    return static_cast<unsigned>(n > 64 * k_tile ? 64 : (n - 1) / k_tile + 1);
  };
  return dim3(tiles(columns), tiles(rows));
}

/// f(i, j) for the top left corners of this block's tiles of [0, rows) x [0, columns).
template <class F>
__device__ void for_each_tile(index_t rows, index_t columns, F&& f) {
  for (index_t i = index_t{blockIdx.y} * k_tile; i < rows; i += index_t{gridDim.y} * k_tile)
    for (index_t j = index_t{blockIdx.x} * k_tile; j < columns; j += index_t{gridDim.x} * k_tile)
      f(i, j);
}

template <class T>
__device__ bool runs_down(strided_matrix<T> const& m) {
  return llabs(m.row_stride) < llabs(m.column_stride);
}

/// The largest |a| by order_of; *largest is 0 before. Lower: of the lower triangle alone.
template <bool Lower, class T>
__global__ void find_largest_kernel(strided_matrix<T const> a, unsigned long long* largest) {
  unsigned long long mine = 0;
  bool const down = runs_down(a);
  for_each_tile(a.rows, a.columns, [&](index_t top, index_t left) {
    for (int s = threadIdx.y; s < k_tile; s += k_tile_rows) {
      index_t const i = top + (down ? threadIdx.x : s), j = left + (down ? s : threadIdx.x);
      if (i < a.rows && j < a.columns && (!Lower || i >= j))
        mine = max(mine, order_of(a.data[i * a.row_stride + j * a.column_stride]));
    }
  });
  for (int mask = 16; mask > 0; mask /= 2)
    mine = max(mine, __shfl_xor_sync(0xffffffffu, mine, mask));
  if (threadIdx.x == 0) atomicMax(largest, mine);
}

/// work[j * rows + i] = a(i, j), scaled; zeros where the matrix is not finite and that is checked.
/// Of a symmetric matrix only the lower triangle is meant, above it lies anything.
template <class T>
__global__ void load_columns_kernel(strided_matrix<T const> a, unsigned long long const* largest,
                                    bool check_finite, T* work) {
  __shared__ T tile[k_tile][k_tile + 1];
  bool const bad = check_finite && !isfinite(in_order<T>(*largest));
  int const exponent = -exponent_of<T>(*largest);
  bool const down = runs_down(a);
  for_each_tile(a.rows, a.columns, [&](index_t top, index_t left) {
    for (int s = threadIdx.y; s < k_tile; s += k_tile_rows) {
      int const i = down ? threadIdx.x : s, j = down ? s : threadIdx.x;
      if (top + i < a.rows && left + j < a.columns)
        tile[i][j] =
            bad ? T(0)
                : gpu::scaled(a.data[(top + i) * a.row_stride + (left + j) * a.column_stride],
                              exponent);
    }
    __syncthreads();
    for (int s = threadIdx.y; s < k_tile; s += k_tile_rows)
      if (top + threadIdx.x < a.rows && left + s < a.columns)
        work[(left + s) * a.rows + top + threadIdx.x] = tile[threadIdx.x][s];
    __syncthreads();
  });
}

enum class stored { as_is, scaled_back, upper_scaled_back };

/// out(i, j) = work[j * ld + i]; NaN where the matrix is not finite and that is checked. Scaled back,
/// and with zeros below the diagonal, by `What`.
template <stored What, class T>
__global__ void store_columns_kernel(T const* work, index_t ld, unsigned long long const* largest,
                                     bool check_finite, strided_matrix<T> out) {
  __shared__ T tile[k_tile][k_tile + 1];
  bool const bad = check_finite && !isfinite(in_order<T>(*largest));
  int const exponent = What == stored::as_is ? 0 : exponent_of<T>(*largest);
  bool const down = runs_down(out);
  for_each_tile(out.rows, out.columns, [&](index_t top, index_t left) {
    for (int s = threadIdx.y; s < k_tile; s += k_tile_rows)
      if (top + threadIdx.x < out.rows && left + s < out.columns)
        tile[s][threadIdx.x] = work[(left + s) * ld + top + threadIdx.x];
    __syncthreads();
    for (int s = threadIdx.y; s < k_tile; s += k_tile_rows) {
      int const di = down ? threadIdx.x : s, dj = down ? s : threadIdx.x;
      index_t const i = top + di, j = left + dj;
      if (i >= out.rows || j >= out.columns) continue;
      T value = tile[dj][di];
      if (What != stored::as_is) value = gpu::scaled(value, exponent);
      if (What == stored::upper_scaled_back && i > j) value = 0;
      out.data[i * out.row_stride + j * out.column_stride] =
          bad ? std::numeric_limits<T>::quiet_NaN() : value;
    }
    __syncthreads();
  });
}

/// info = -1 where the matrix is not finite and that is checked, else |status|.
template <class T>
__global__ void store_info_kernel(unsigned long long const* largest, bool check_finite,
                                  int const* status, std::int32_t* info) {
  bool const bad = check_finite && !isfinite(in_order<T>(*largest));
  *info = bad ? -1 : abs(*status);
}

template <bool Lower, class T>
void load_columns(strided_matrix<T const> const& a, unsigned long long* largest, bool check_finite,
                  T* work, cudaStream_t stream) {
  dim3 const blocks = tile_blocks(a.rows, a.columns), threads = tile_threads();
  check(cudaMemsetAsync(largest, 0, sizeof *largest, stream), "cudaMemsetAsync");
  find_largest_kernel<Lower><<<blocks, threads, 0, stream>>>(a, largest);
  check_launch("find_largest_kernel");
  load_columns_kernel<<<blocks, threads, 0, stream>>>(a, largest, check_finite, work);
  check_launch("load_columns_kernel");
}

template <stored What, class T>
void store_columns(T const* work, index_t ld, unsigned long long const* largest, bool check_finite,
                   strided_matrix<T> const& out, cudaStream_t stream) {
  store_columns_kernel<What><<<tile_blocks(out.rows, out.columns), tile_threads(), 0, stream>>>(
      work, ld, largest, check_finite, out);
  check_launch("store_columns_kernel");
}

template <class T>
void store_info(unsigned long long const* largest, bool check_finite, int const* status,
                std::int32_t* info, cudaStream_t stream) {
  store_info_kernel<T><<<1, 1, 0, stream>>>(largest, check_finite, status, info);
  check_launch("store_info_kernel");
}

}  // namespace subspan::cuda
