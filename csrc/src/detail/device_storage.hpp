#pragma once

#include <type_traits>

#include "detail/lanes.hpp"
#include "subspan/types.hpp"

/// Elements in the memory of a device, as the bodies of kernels see them.

namespace subspan::gpu {

/// How a storage type widens to the type that it is computed in, and how that is rounded to it;
/// cuda_storage.cuh adds CUDA's types.
template <class T>
struct storage {
  SUBSPAN_DEVICE static T widen(T v) { return v; }
  SUBSPAN_DEVICE static T narrow(T v) { return v; }
};

/// What elements of T are computed in.
template <class T>
using wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// What one load moves.
template <class T>
struct alignas(16) pack {
  static constexpr int width = 16 / sizeof(T);
  T at[width];
};

template <class T>
struct row_view {
  T const* data;
  index_t rows, columns, stride;
};

/// A vector of any stride; without data it is zero.
template <class T>
struct vector_view {
  T const* data = nullptr;
  index_t stride = 0;
  SUBSPAN_DEVICE wide<T> at(index_t i) const {
    return data == nullptr ? wide<T>(0) : wide<T>(storage<T>::widen(data[i * stride]));
  }
};

/// A matrix of any strides.
template <class T>
struct matrix_view {
  T* data = nullptr;
  index_t rows = 0, columns = 0, row_stride = 0, column_stride = 0;
};

}  // namespace subspan::gpu
