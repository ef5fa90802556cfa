#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "detail/contract.hpp"
#include "subspan/view.hpp"

/// What svd.cpp, eigh.cpp and qr.cpp compile once per level for batches of small matrices.

namespace subspan::detail {

/// `count` matrices [rows, cols], one after the other `next` elements apart.
template <class T>
struct pack_input {
  T const* data;
  index_t next, row_stride, col_stride;
  index_t rows, cols, count;
};

/// Where the factors of the first of them go. Null data: not wanted.
template <class T>
struct pack_output {
  T* data;
  index_t next, row_stride, col_stride;
};

/// rows >= cols: a wide matrix is given by its transpose, left and right exchanged.
template <class T>
struct svd_pack {
  pack_input<T> a;
  pack_output<T> values;  // along rows
  pack_output<T> left;    // [rows, cols]; with right, or neither
  pack_output<T> right;   // [cols, cols], column j belongs to value j
  std::int32_t* info;
};

template <class T>
struct eigh_pack {
  pack_input<T> a;  // [n, n], only the lower triangle is read
  pack_output<T> values, vectors;
  std::int32_t* info;
};

template <class T>
struct qr_pack {
  pack_input<T> a;
  pack_output<T> q, r;
  std::int32_t* info;
};

/// One kernel, for packs of `width` matrices at most.
template <class Task>
struct pack_kernel {
  index_t width;
  index_t (*scratch)(index_t m, index_t n);  // bytes
  void (*run)(Task const& task, void* scratch);
};

/// The same bits from both; the narrow one is faster for few matrices.
template <class Task>
struct pack_kernels {
  pack_kernel<Task> wide, narrow;
};

enum class extent_of_entries { usual, extreme, nonfinite };

/// Blocks of rows of a matrix, one in each lane. `memory` keeps what factor() leaves for multiply().
template <class T>
struct tall_kernels {
  index_t width;
  index_t (*bytes)(index_t m, index_t n);
  extent_of_entries (*factor)(pack_input<T> const& a, pack_output<T> const& r, void* memory);
  void (*multiply)(pack_input<T> const& c, index_t m, void* memory, pack_output<T> const& q,
                   void* scratch);
};

}  // namespace subspan::detail
