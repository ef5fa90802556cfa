#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "subspan/types.hpp"

/// The C interface between the core and libsubspan_cuda, a shared library of its own: the core
/// imports where no CUDA exists, and opens it at the first device array. Plain types only.

extern "C" {

enum subspan_cuda_dtype : std::int32_t {
  subspan_cuda_half,
  subspan_cuda_bfloat16,
  subspan_cuda_float,
  subspan_cuda_double,
  subspan_cuda_int8,
  subspan_cuda_uint8,
  subspan_cuda_int16,
  subspan_cuda_int32,
  subspan_cuda_int64,
};

/// What a function of the table returns; all but `ok` come with a text.
enum subspan_cuda_status : std::int32_t {
  subspan_cuda_ok,
  subspan_cuda_no_memory,
  subspan_cuda_unsupported,  // a library that is not there, a size beyond the kernels
  subspan_cuda_failed,       // the device or its driver
};

/// Moments of one batch of rows on the device, written to host memory.
struct subspan_cuda_moments_call {
  void const* x;  // device, C order [n, d] with row stride row_stride (elements)
  std::int32_t dtype;
  std::int32_t device_index;
  std::int64_t n, d, row_stride;
  double const* weights;   // device [n] or null
  std::int32_t precision;  // 0: float products for storage types and float, 1: float64 products
  void* stream;
  double* mean;       // host [d]
  double* m2;         // host [d, d], both triangles
  double* totals;     // host [3]: rows of weight > 0, sum w, sum w^2
  std::int64_t* bad;  // host [2]: row and column of the first non-finite element or bad weight
                      // (column -1); -1, -1 if there is none
};

/// svd, eigh and qr of a batch on the device; k = min(m, n). Nothing waits for the device.
struct subspan_cuda_decomposition_call {
  void const* a;  // [batch, m, n], strides in elements
  std::int64_t batch, m, n, strides[3];
  std::int32_t dtype;  // float or double
  std::int32_t device_index;
  void* stream;
  std::int32_t check_finite;  // 0: the caller vouches for it
  void* values;               // svd: s [batch, k]; eigh: values [batch, n]
  void* left;                 // svd: u [batch, m, k] or null; eigh: vectors or null; qr: q or null
  void* right;                // svd: vh [batch, k, n] or null; qr: r [batch, k, n]
  std::int32_t* info;         // [batch]: 0, -1 (non-finite: outputs are NaN), > 0 (not converged)
};

/// The k best of every row on the device. Nothing waits for it.
struct subspan_cuda_topk_call {
  void const* x;  // [outer, inner, n], strides in elements
  std::int64_t outer, inner, n, k, strides[3];
  std::int32_t dtype;
  std::int32_t device_index;
  void* stream;
  std::int32_t largest, sorted;
  void* values;           // [outer, inner, k] of dtype, C order
  std::int64_t* indices;  // [outer, inner, k], C order
};

/// What kernel_matvec and its logarithm and gradients sum up, for every x_i over j.
enum subspan_cuda_kernel_task : std::int32_t {
  subspan_cuda_kernel_product,        // K_ij v_j; of softmax over the sum of K_ij
  subspan_cuda_kernel_gradient,       // the gradient in x_i of <g_i, K_ij v_j>
  subspan_cuda_kernel_logs,           // log of the sum of K_ij v_j
  subspan_cuda_kernel_terms,          // 2^(a_i + b_j) p_i q_j K_ij
  subspan_cuda_kernel_term_gradient,  // the gradient in x_i of that, for constant a and p
};

/// An array [batch, rows, columns], strides in elements.
struct subspan_cuda_array {
  void const* data;
  std::int64_t rows, columns, strides[3];
};

/// Sums over kernel matrices on the device. Nothing waits for it.
struct subspan_cuda_kernel_call {
  std::int32_t task;
  std::int32_t function;  // subspan::kernel_function
  double alpha, offset;
  std::int32_t degree;
  std::int32_t dtype;  // float or double
  std::int32_t device_index;
  std::int32_t exchanged;  // x is the y of another call, to be rounded as there
  void* stream;
  std::int64_t batch;
  subspan_cuda_array x, y, of_x, of_y;  // of_x: g, or terms; of_y: v, or terms (double)
  double const* bandwidth;              // host [d]
  void* out;     // [batch, n, e]; of gradients [batch, n, d], of terms [batch, n, 1]; C order
  double* more;  // null, or of softmax lse [batch, n], of logs parts [batch, n, 2 e]
};

struct subspan_cuda_vector {
  void const* data;  // null: there is none
  std::int64_t stride;
};
struct subspan_cuda_matrix {
  void* data;  // null: there is none
  std::int64_t rows, columns, strides[2];
};

/// A sparse code: subspan::sparse_code with its number of features. What is wrong with its indices
/// or offsets gives NaN, and nothing waits for the device.
struct subspan_cuda_code {
  subspan_cuda_vector values, indices, offsets;
  std::int64_t rows, pairs, features;
  std::int32_t dtype;
  std::int32_t device_index;
  void* stream;
};

struct subspan_cuda_decode_call {
  subspan_cuda_code code;
  subspan_cuda_matrix w_dec;  // [features, d]
  subspan_cuda_vector b_dec;  // [d]
  void* out;                  // [rows, d], C order
};

struct subspan_cuda_decode_gradients_call {
  subspan_cuda_code code;
  subspan_cuda_matrix w_dec, grad_out;          // [features, d], [rows, d]
  void *grad_values, *grad_w_dec, *grad_b_dec;  // C order, or null
};

struct subspan_cuda_encode_gradients_call {
  subspan_cuda_code code;
  subspan_cuda_matrix x, w_enc;            // [rows, d], [d, features]
  subspan_cuda_vector b_pre;               // [d]
  subspan_cuda_matrix grad_w_enc;          // [d, features]; or null, as the others
  void *grad_b_enc, *grad_x, *grad_b_pre;  // C order
};

/// topk_encode. Nothing waits for the device.
struct subspan_cuda_encode_call {
  subspan_cuda_matrix x, w_enc;  // [rows, d], [d, n]
  subspan_cuda_vector b_enc, b_pre;
  std::int64_t k;
  std::int32_t activation;  // as subspan::activation
  std::int32_t dtype;
  std::int32_t device_index;
  void* stream;
  void* values;           // [rows, k], C order
  std::int64_t* indices;  // [rows, k], C order
};

/// A step of Adam on rows [rows, d] in C order; or, where `squares` is not null, the sum of squares
/// of g, without what is parallel to w unless that is null. Only the sum waits for the device.
struct subspan_cuda_adam_call {
  void *w, *m, *v;
  void const* g;
  std::int64_t rows, d;
  std::int32_t dtype;  // float or double
  std::int32_t device_index;
  void* stream;
  double numbers[7];  // of detail::adam_numbers, in its order
  double scale, row_limit;
  std::int32_t remove_parallel, unit_rows;
  double* squares;  // host
};

struct subspan_cuda_table {
  std::int32_t abi;  // subspan_cuda_abi; a library of another ABI is not used
  int (*device_count)();
  /// These return a subspan_cuda_status, with a text in `message` (at most `size` bytes).
  int (*fetch)(void* host, void const* device, std::size_t bytes, std::int32_t device_index,
               void* stream, char* message, int size);  // waits for the stream
  int (*moments)(subspan_cuda_moments_call const* call, char* message, int size);
  int (*svd)(subspan_cuda_decomposition_call const* call, char* message, int size);
  int (*eigh)(subspan_cuda_decomposition_call const* call, char* message, int size);
  int (*qr)(subspan_cuda_decomposition_call const* call, char* message, int size);
  int (*topk)(subspan_cuda_topk_call const* call, char* message, int size);
  int (*kernel_sums)(subspan_cuda_kernel_call const* call, char* message, int size);
  int (*decode)(subspan_cuda_decode_call const* call, char* message, int size);
  int (*decode_gradients)(subspan_cuda_decode_gradients_call const* call, char* message, int size);
  int (*encode)(subspan_cuda_encode_call const* call, char* message, int size);
  int (*encode_gradients)(subspan_cuda_encode_gradients_call const* call, char* message, int size);
  int (*adam)(subspan_cuda_adam_call const* call, char* message, int size);
};

using subspan_cuda_entry = subspan_cuda_table const* (*)();
}

inline constexpr std::int32_t subspan_cuda_abi = 4;
inline constexpr char const* subspan_cuda_symbol = "subspan_cuda_functions";

namespace subspan::detail {

template <class T>
constexpr std::int32_t cuda_dtype() {
  if constexpr (std::is_same_v<T, half>) return subspan_cuda_half;
  if constexpr (std::is_same_v<T, bfloat16>) return subspan_cuda_bfloat16;
  if constexpr (std::is_same_v<T, float>) return subspan_cuda_float;
  if constexpr (std::is_same_v<T, std::int8_t>) return subspan_cuda_int8;
  if constexpr (std::is_same_v<T, std::uint8_t>) return subspan_cuda_uint8;
  if constexpr (std::is_same_v<T, std::int16_t>) return subspan_cuda_int16;
  if constexpr (std::is_same_v<T, std::int32_t>) return subspan_cuda_int32;
  if constexpr (std::is_same_v<T, std::int64_t>) return subspan_cuda_int64;
  return subspan_cuda_double;
}

/// The table of the loaded library. Throws error{unsupported} that names `function` when there is
/// no such library beside this one, or no device.
subspan_cuda_table const& cuda_functions(char const* function);

/// Throws the error of a status that is not ok, in the name of `function`.
void check_cuda(char const* function, int status, char const* message);

}  // namespace subspan::detail
