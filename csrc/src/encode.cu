// CUDA twin of encode.cpp: topk_encode. Products come from cuBLAS, tile by tile into scratch that
// stays in the cache, and each tile is reduced to what may be among the k best of its rows.

#include <algorithm>
#include <bit>
#include <limits>
#include <optional>
#include <type_traits>

#include "detail/cublas.hpp"
#include "detail/encode_bodies.hpp"
#include "detail/list_sums.cuh"

namespace subspan::cuda {
namespace {

using gpu::rectifier;
using gpu::topk_plan;

constexpr index_t k_tile_bytes = index_t{32} << 20;  // of products: they stay in the cache
constexpr index_t k_tile_rows = 1024;
// Few rows are not enough blocks for tiles: all of z up to here, and slices of it where k is beyond
// what a block holds.
constexpr index_t k_whole_bytes = index_t{64} << 20;

/// out[i] = sign v[i].
template <class T>
__global__ void __launch_bounds__(k_list_threads)
    widen_kernel(vector_view<T> const v, index_t count, wide<T> sign, wide<T>* out) {
  for_each_element(count, [&](index_t i) { out[i] = sign * v.at(i); });
}

/// out = rows less `shift`, in C order.
template <class T>
__global__ void __launch_bounds__(k_list_threads)
    centre_kernel(matrix_view<T const> const rows, vector_view<T> const shift, T* out) {
  for_each_element(rows.rows * rows.columns, [&](index_t i) {
    index_t const r = i / rows.columns, c = i % rows.columns;
    out[i] = rows.data[r * rows.row_stride + c * rows.column_stride] - shift.at(c);
  });
}

extern __shared__ __align__(16) unsigned char shared_memory[];

template <class T>
__global__ void __launch_bounds__(256, 4)
    select_kernel(gpu::encode_tile<T> const tile, topk_plan const plan) {
  using entry = typename gpu::encode_tile<T>::entry_type;
  auto* const entries = reinterpret_cast<entry*>(shared_memory);
  auto* const words = reinterpret_cast<int*>(entries + plan.capacity);
  gpu::device_lanes const lanes;
  for (index_t r = blockIdx.x; r < tile.rows; r += gridDim.x)
    gpu::select_of_tile(lanes, plan, tile, r, entries, words);
}

/// z [rows, n] from products, in place.
template <class P>
__global__ void __launch_bounds__(k_list_threads)
    finish_products_kernel(matrix_view<P> const z, P const* biases, rectifier where) {
  for_each_element(z.rows * z.columns, [&](index_t i) {
    index_t const j = i % z.columns;
    P& product = z.data[i / z.columns * z.row_stride + j];
    product = gpu::compared(product, biases == nullptr ? P(0) : biases[j], where);
  });
}

template <class T>
__global__ void __launch_bounds__(k_list_threads)
    deliver_kernel(wide<T> const* z, index_t count, rectifier where, T* values) {
  for_each_element(
      count, [&](index_t i) { values[i] = gpu::storage<T>::narrow(gpu::returned(z[i], where)); });
}

template <class T>
constexpr cudaDataType_t blas_type() {
  if constexpr (std::is_same_v<T, __half>) return CUDA_R_16F;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return CUDA_R_16BF;
  return std::is_same_v<T, float> ? CUDA_R_32F : CUDA_R_64F;
}

/// The transpose of a matrix as cuBLAS reads it; nothing for strides that it does not know.
template <class T>
std::optional<cublas_library::operand> operand_of(matrix_view<T const> const& m) {
  constexpr index_t most = std::numeric_limits<int>::max();
  index_t const across = m.rows == 1 ? m.columns : m.row_stride;
  if ((m.column_stride == 1 || m.columns == 1) && across >= m.columns && across <= most)
    return cublas_library::operand{m.data, static_cast<int>(std::max<index_t>(across, 1)), false};
  index_t const down = m.columns == 1 ? m.rows : m.column_stride;
  if ((m.row_stride == 1 || m.rows == 1) && down >= m.rows && down <= most)
    return cublas_library::operand{m.data, static_cast<int>(std::max<index_t>(down, 1)), true};
  return std::nullopt;
}

template <class T>
class encoding {
 public:
  using P = wide<T>;
  using key_type = typename gpu::encode_tile<T>::key_type;
  using entry_type = typename gpu::encode_tile<T>::entry_type;

  encoding(subspan_cuda_encode_call const& call, cublas_library& blas)
      : blas_(blas),
        stream_(static_cast<cudaStream_t>(call.stream)),
        handle_(blas.handle(call.device_index, stream_, lock_)),
        device_(call.device_index),
        x_{static_cast<T const*>(call.x.data), call.x.rows, call.x.columns, call.x.strides[0],
           call.x.strides[1]},
        w_{static_cast<T const*>(call.w_enc.data), call.w_enc.rows, call.w_enc.columns,
           call.w_enc.strides[0], call.w_enc.strides[1]},
        b_enc_{static_cast<T const*>(call.b_enc.data), call.b_enc.stride},
        b_pre_{static_cast<T const*>(call.b_pre.data), call.b_pre.stride},
        k_(call.k),
        where_(static_cast<rectifier>(call.activation)),
        values_(static_cast<T*>(call.values)),
        indices_(call.indices),
        copied_(operand_of(w_) ? 0 : w_.rows * w_.columns, stream_),
        biases_(has_biases() ? w_.columns : 0, stream_) {
    if (copied_.get() != nullptr) {
      matrix_view<T> const copy{copied_.get(), w_.rows, w_.columns, w_.columns, 1};
      copy_matrix<T>(w_, copy, stream_);
      w_ = {copy.data, copy.rows, copy.columns, copy.row_stride, 1};
    }
    if (has_biases()) make_biases();
  }

  void run() {
    constexpr index_t most = sizeof(P) == 4 ? 2048 : 1024;  // 64 KiB of shared memory
    if (k_ > most || bytes_of(x_.rows * w_.columns) <= k_whole_bytes)
      run_whole();
    else
      run_tiles();
  }

 private:
  static constexpr index_t bytes_of(index_t products) {
    return products * static_cast<index_t>(sizeof(P));
  }
  static constexpr index_t padded(index_t columns) { return (columns + 31) / 32 * 32; }

  /// x - b_pre is rounded to the type of x. Where that is coarser than the sums, it is not made:
  /// b_pre w_enc goes to the biases.
  static constexpr bool k_centres = std::is_same_v<T, P>;
  bool centres() const { return k_centres && b_pre_.data != nullptr; }
  bool has_biases() const {
    return b_enc_.data != nullptr || (!k_centres && b_pre_.data != nullptr);
  }

  void make_biases() {
    if (k_centres || b_pre_.data == nullptr) {
      widen(b_enc_, w_.columns, P(1), biases_.get());
      return;
    }
    buffer<P> const negated(w_.rows, stream_);
    if (w_.rows > 0) widen(b_pre_, w_.rows, P(-1), negated.get());
    multiply<T>(transposed(w_), negated.get(), b_enc_, biases_.get(), stream_);
  }
  void widen(vector_view<T> const& v, index_t count, P sign, P* out) const {
    widen_kernel<T>
        <<<list_blocks(count, k_list_threads), k_list_threads, 0, stream_>>>(v, count, sign, out);
    check_launch("widen_kernel");
  }

  /// Rows first, ..., as cuBLAS reads them: in place where that can be.
  cublas_library::operand rows(index_t first, index_t count, T* room) const {
    matrix_view<T const> const some{x_.data + first * x_.row_stride, count, x_.columns,
                                    x_.row_stride, x_.column_stride};
    if (!centres())
      if (auto const operand = operand_of(some)) return *operand;
    if (x_.columns > 0) {
      if constexpr (k_centres) {
        centre_kernel<T>
            <<<list_blocks(count * x_.columns, k_list_threads), k_list_threads, 0, stream_>>>(
                some, b_pre_, room);
        check_launch("centre_kernel");
      } else {
        copy_matrix<T>(some, {room, count, x_.columns, x_.columns, 1}, stream_);
      }
    }
    return {room, static_cast<int>(std::max<index_t>(x_.columns, 1)), false};
  }
  /// Elements that `rows` needs for so many.
  index_t room_of_rows(index_t count) const {
    return centres() || !operand_of(x_) ? count * x_.columns : 0;
  }

  /// products [rows, columns] of columns first, ... of w_enc.
  void multiply_tile(cublas_library::operand const& some, index_t rows, index_t first,
                     index_t columns, P* products, index_t pitch) const {
    if (x_.columns == 0) {
      check(cudaMemsetAsync(products, 0, static_cast<std::size_t>(bytes_of(rows * pitch)), stream_),
            "cudaMemsetAsync");
      return;
    }
    auto w = *operand_of(w_);
    w.data = w_.data + first * (w.transposed ? index_t{w.ld} : index_t{1});
    blas_.multiply(handle_, static_cast<int>(columns), static_cast<int>(rows),
                   static_cast<int>(x_.columns), w, some, blas_type<T>(), products,
                   static_cast<int>(pitch));
  }

  void run_tiles() {
    index_t const n = w_.columns;
    auto const even = [](index_t count, index_t most, index_t multiple) {
      index_t const parts = (count + most - 1) / most, each = (count + parts - 1) / parts;
      return (each + multiple - 1) / multiple * multiple;
    };
    index_t const height = even(x_.rows, k_tile_rows, 1);
    index_t const fits = k_tile_bytes / bytes_of(height) / 64 * 64;
    index_t const width = std::min(even(n, fits, 64), n), pitch = padded(width);
    int const k = static_cast<int>(k_), room = 2 * topk_plan::power_above(k);
    topk_plan const plan =
        topk_plan::of(k, width, std::bit_width(static_cast<std::uint64_t>(n - 1)));
    std::size_t const shared = static_cast<std::size_t>(plan.capacity) * sizeof(entry_type) +
                               topk_plan::words * sizeof(int);
    auto const kernel = &select_kernel<T>;
    allow_shared(kernel, shared);
    buffer<P> const products(height * pitch, stream_);
    buffer<T> const room_of_x(room_of_rows(height), stream_);
    bool const many = width < n;
    buffer<entry_type> const kept(many ? height * room : 0, stream_);
    buffer<entry_type> const bounds(many ? height : 0, stream_);
    buffer<int> const counts(many ? height : 0, stream_);
    for (index_t row = 0; row < x_.rows; row += height) {
      index_t const rows_here = std::min(height, x_.rows - row);
      auto const some = rows(row, rows_here, room_of_x.get());
      for (index_t first = 0; first < n; first += width) {
        index_t const columns = std::min(width, n - first);
        multiply_tile(some, rows_here, first, columns, products.get(), pitch);
        gpu::encode_tile<T> const tile{products.get(),
                                       rows_here,
                                       columns,
                                       pitch,
                                       has_biases() ? biases_.get() + first : nullptr,
                                       first,
                                       where_,
                                       first == 0,
                                       first + columns == n,
                                       kept.get(),
                                       bounds.get(),
                                       counts.get(),
                                       room,
                                       values_ + row * k_,
                                       indices_ + row * k_};
        kernel<<<static_cast<unsigned>(rows_here), plan.threads, shared, stream_>>>(tile, plan);
        check_launch("select_kernel");
      }
    }
  }

  /// By the rows of z, some at a time.
  void run_whole() {
    index_t const n = w_.columns, pitch = padded(n);
    index_t const height = std::clamp<index_t>(k_whole_bytes / bytes_of(pitch), 1, x_.rows);
    buffer<P> const z(height * pitch, stream_), best(height * k_, stream_);
    buffer<T> const room_of_x(room_of_rows(height), stream_);
    for (index_t row = 0; row < x_.rows; row += height) {
      index_t const rows_here = std::min(height, x_.rows - row), found = rows_here * k_;
      multiply_tile(rows(row, rows_here, room_of_x.get()), rows_here, 0, n, z.get(), pitch);
      if (has_biases() || where_ == rectifier::before) {
        finish_products_kernel<P>
            <<<list_blocks(rows_here * n, k_list_threads), k_list_threads, 0, stream_>>>(
                {z.get(), rows_here, n, pitch, 1}, has_biases() ? biases_.get() : nullptr, where_);
        check_launch("finish_products_kernel");
      }
      select(z.get(), rows_here, pitch, best.get(), indices_ + row * k_);
      deliver_kernel<T><<<list_blocks(found, k_list_threads), k_list_threads, 0, stream_>>>(
          best.get(), found, where_, values_ + row * k_);
      check_launch("deliver_kernel");
    }
  }

  void select(P const* z, index_t rows, index_t pitch, P* values, index_t* indices) const {
    auto const type = sizeof(P) == 4 ? subspan_cuda_float : subspan_cuda_double;
    subspan_cuda_topk_call const call{
        z, 1, rows, w_.columns, k_, {0, pitch, 1}, type, device_, stream_, 1, 1, values, indices};
    char message[256] = {};
    int const status = topk(&call, message, static_cast<int>(sizeof message));
    if (status != subspan_cuda_ok) throw failure(static_cast<subspan_cuda_status>(status), message);
  }

  cublas_library& blas_;
  cudaStream_t stream_;
  std::unique_lock<std::mutex> lock_;
  void* handle_;
  std::int32_t device_;
  matrix_view<T const> x_, w_;
  vector_view<T> b_enc_, b_pre_;
  index_t k_;
  rectifier where_;
  T* values_;
  index_t* indices_;
  buffer<T> copied_;  // of w_enc, where cuBLAS does not know its strides
  buffer<P> biases_;
};

}  // namespace

int encode(subspan_cuda_encode_call const* call, char* message, int size) {
  return guarded(message, size, [&] {
    if (call->x.rows == 0) return;
    if (call->x.columns > std::numeric_limits<int>::max())
      throw failure(subspan_cuda_unsupported, "x on a device must have fewer than 2^31 columns");
    cublas_library* const blas = cublas_library::get();
    if (blas == nullptr)
      throw failure(subspan_cuda_unsupported,
                    "found no cuBLAS (libcublas.so.13 or .12). Import torch for CUDA, or install "
                    "nvidia-cublas where the loader finds it");
    device_scope const scope(call->device_index);
    visit_storage(call->dtype, [&]<class T>(T) { encoding<T>(*call, *blas).run(); });
  });
}

}  // namespace subspan::cuda
