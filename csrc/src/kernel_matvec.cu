// CUDA twin of kernel_matvec.cpp.

#include <algorithm>

#include "detail/cuda_support.cuh"
#include "detail/kernel_functions.hpp"
#include "detail/kernel_packing.hpp"

namespace subspan::cuda {
namespace {

using gpu::kernel_form;
using gpu::kernel_task;

constexpr int k_threads = 256;                        // of kernels that walk over points
constexpr index_t k_difference_depth = 8;             // coordinates; beyond, products are faster
constexpr int k_few_sums = 4;                         // right-hand sides of points in registers
constexpr index_t k_sums_bytes = index_t{256} << 20;  // of sums that wait to be results
// Blocks that keep a device busy: with fewer tiles of x, segments of y have blocks of their own.
constexpr index_t k_blocks_per_processor = 4;
constexpr index_t k_mean_rows = 4096, k_most_means = 256;  // of a part of a mean; parts

constexpr index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }
constexpr int rounded_up(index_t n) {
  return static_cast<int>(ceil_div(n, gpu::k_depth_step)) * gpu::k_depth_step;
}
inline unsigned blocks_for(index_t work) {
  return static_cast<unsigned>(ceil_div(work, k_threads));
}

// ---- before and after the sums -------------------------------------------------------------------

/// Numbers of the host that travel as an argument, so that nobody waits for a copy.
struct few_numbers {
  static constexpr int most = 256;
  double at[most];
};
__global__ void put_kernel(few_numbers const numbers, int count, double* out) {
  if (int const i = static_cast<int>(threadIdx.x); i < count) out[i] = numbers.at[i];
}

template <class T>
__global__ void __launch_bounds__(k_threads)
    sum_columns_kernel(gpu::kernel_array<T> const a, index_t parts, int across, double* sums) {
  __shared__ double memory[2 * k_threads];
  index_t const part = blockIdx.x % parts, matrix = blockIdx.y;
  int const column = static_cast<int>(blockIdx.x / parts) * across;
  gpu::sum_finite(gpu::device_lanes{}, memory, a, matrix, column, across, part * a.rows / parts,
                  (part + 1) * a.rows / parts, sums + (matrix * parts + part) * 2 * a.columns);
}
__global__ void mean_kernel(double const* sums, index_t parts, index_t batch, int columns,
                            double* mean) {
  index_t const i = blockIdx.x * index_t{blockDim.x} + threadIdx.x;
  if (i >= batch * columns) return;
  index_t const matrix = i / columns;
  mean[i] = gpu::mean_of_parts(sums + matrix * parts * 2 * columns, parts, columns,
                               static_cast<int>(i % columns));
}

template <class T>
__global__ void pack_points_kernel(gpu::kernel_array<T> const a, index_t tiles, index_t points,
                                   double const* centre, double const* scale, int depth, T* panels,
                                   T* norms) {
  index_t const i = blockIdx.x * index_t{blockDim.x} + threadIdx.x;
  if (i < points) gpu::pack_point(a, tiles, i, centre, scale, depth, panels, norms);
}
template <class T, class Source>
__global__ void pack_more_kernel(Source const source, index_t tiles, index_t points, int size,
                                 T* panels) {
  index_t const i = blockIdx.x * index_t{blockDim.x} + threadIdx.x;
  if (i < points) gpu::pack_more(source, tiles, i, size, panels);
}

__global__ void split_factors_kernel(float const* panels, index_t points, int depth,
                                     float* factors) {
  index_t const i = blockIdx.x * index_t{blockDim.x} + threadIdx.x;
  if (i < points) factors[i] = gpu::split_factor_of(panels, i, depth);
}
template <bool Left>
__global__ void split_kernel(float const* panels, float const* factors, index_t lots, int depth,
                             gpu::split_lot* out) {
  index_t const i = blockIdx.x * index_t{blockDim.x} + threadIdx.x;
  if (i < lots) gpu::split_points<Left>(panels, factors, i, depth, out);
}

template <kernel_task Task, class T>
__global__ void merge_kernel(gpu::kernel_job<T> const job, index_t tiles) {
  constexpr int rows = gpu::kernel_shape<T>::rows;
  index_t const i = blockIdx.x * index_t{blockDim.x} + threadIdx.x;
  if (i >= tiles * rows) return;
  index_t const tile = job.first_tile + i / rows;
  int const row = static_cast<int>(i % rows);
  gpu::clear_row<Task>(job, tile, row);
  for (index_t slot = 1; slot < job.slots; ++slot) gpu::merge_row<Task>(job, tile, row, slot);
}
template <kernel_task Task, class T>
__global__ void finish_kernel(gpu::kernel_job<T> const job, gpu::kernel_results<T> const to,
                              index_t tiles) {
  constexpr int rows = gpu::kernel_shape<T>::rows;
  index_t const i = blockIdx.x * index_t{blockDim.x} + threadIdx.x;
  if (i < tiles * rows)
    gpu::finish_row<Task>(job, to, job.first_tile + i / rows, static_cast<int>(i % rows));
}

// ---- the sums ------------------------------------------------------------------------------------

extern __shared__ __align__(16) unsigned char shared_memory[];

template <kernel_task Task, class T>
__global__ void __launch_bounds__(gpu::kernel_shape<T>::threads, 2)
    sum_kernel(gpu::kernel_job<T> const job, index_t parts) {
  index_t const tile = job.first_tile + blockIdx.x / parts, part = blockIdx.x % parts;
  gpu::device_lanes const lanes;
  gpu::sum_segments<Task>(lanes, *reinterpret_cast<gpu::kernel_memory<T>*>(shared_memory), job,
                          tile, part * job.segments / parts, (part + 1) * job.segments / parts);
}

template <class T, int Coordinates, int Sums>
__global__ void __launch_bounds__(gpu::few_shape<T, Coordinates, Sums>::threads)
    sum_few_kernel(gpu::kernel_job<T> const job, index_t parts) {
  __shared__ __align__(16) T memory[gpu::few_shape<T, Coordinates, Sums>::memory];
  index_t const part = blockIdx.x % parts;
  gpu::sum_few<T, Coordinates, Sums>(gpu::device_lanes{}, memory, job, blockIdx.x / parts,
                                     part * job.segments / parts,
                                     (part + 1) * job.segments / parts);
}

/// The arrays of a call as kernels take them, for matrices from `first` on.
template <class T>
gpu::kernel_array<T> array_of(subspan_cuda_array const& a, index_t first) {
  return {static_cast<T const*>(a.data) + first * a.strides[0],
          {a.strides[0], a.strides[1], a.strides[2]},
          a.rows,
          static_cast<int>(a.columns)};
}

template <class T>
class kernel_sums_call {
 public:
  using shape = gpu::kernel_shape<T>;

  explicit kernel_sums_call(subspan_cuda_kernel_call const& call)
      : call_(call),
        stream_(static_cast<cudaStream_t>(call.stream)),
        how_{static_cast<kernel_function>(call.function), call.alpha, call.degree, call.offset, 0},
        radial_(detail::is_radial(how_.function)),
        d_(call.x.columns),
        e_(call.of_y.columns),
        x_tiles_(ceil_div(call.x.rows, shape::rows)),
        y_tiles_(ceil_div(call.y.rows, shape::rows)),
        scales_(2 * d_, stream_) {}

  void run() {
    put_scales();
    index_t const points = (x_tiles_ + y_tiles_) * shape::rows;
    index_t const bytes = points * (d_ + e_ + 8) * static_cast<index_t>(sizeof(T)) +
                          (x_tiles_ + y_tiles_) * lots_of_tile() * 16 +
                          (is_few() ? 2 * 8 * k_few_sums * x_tiles_ * shape::rows : 0);
    index_t const slice = std::clamp<index_t>(k_slice_bytes / bytes, 1, call_.batch);
    for (index_t first = 0; first < call_.batch; first += slice)
      run_slice(first, std::min(slice, call_.batch - first));
  }

 private:
  bool is_softmax() const { return how_.function == kernel_function::softmax; }
  /// Whether points and sums stay in registers.
  bool is_few() const {
    return call_.task == subspan_cuda_kernel_product && radial_ && d_ <= k_difference_depth &&
           e_ <= k_few_sums;
  }
  int few_coordinates() const { return d_ <= 3 ? 3 : d_ <= 5 ? 5 : 8; }

  /// What coordinates are multiplied by: of x, then of y.
  void put_scales() {
    double const scale = detail::scale_of(how_);
    bool const exchanged = call_.exchanged != 0;
    few_numbers numbers{};
    for (index_t first = 0; first < 2 * d_; first += few_numbers::most) {
      index_t const count = std::min<index_t>(few_numbers::most, 2 * d_ - first);
      for (index_t i = 0; i < count; ++i) {
        index_t const c = (first + i) % d_;
        bool const scaled = radial_ || exchanged == (first + i >= d_);
        numbers.at[i] = scaled ? scale / call_.bandwidth[c] : 1.0;
      }
      put_kernel<<<1, few_numbers::most, 0, stream_>>>(numbers, static_cast<int>(count),
                                                       scales_.get() + first);
      check_launch("put_kernel");
    }
  }

  void take_mean(gpu::kernel_array<T> const& a, index_t batch, double* mean) {
    if (a.columns == 0) return;
    int across = 1;
    while (across < gpu::k_warp && across < a.columns) across *= 2;
    index_t const parts = std::clamp<index_t>(a.rows / k_mean_rows, 1, k_most_means);
    buffer<double> const sums(batch * parts * 2 * a.columns, stream_);
    constexpr index_t most = 65535;  // blocks in y
    for (index_t b = 0; b < batch; b += most) {
      gpu::kernel_array<T> from = a;
      from.data += b * a.strides[0];
      dim3 const grid(static_cast<unsigned>(parts * ceil_div(a.columns, across)),
                      static_cast<unsigned>(std::min(most, batch - b)));
      sum_columns_kernel<T><<<grid, k_threads, 0, stream_>>>(
          from, parts, across, sums.get() + b * parts * 2 * a.columns);
      check_launch("sum_columns_kernel");
    }
    mean_kernel<<<blocks_for(batch * a.columns), k_threads, 0, stream_>>>(sums.get(), parts, batch,
                                                                          a.columns, mean);
    check_launch("mean_kernel");
  }

  void pack_points(gpu::kernel_array<T> const& a, index_t tiles, index_t batch,
                   double const* centre, double const* scale, int depth, T* panels, T* norms) {
    index_t const points = batch * tiles * shape::rows;
    if (points == 0) return;
    pack_points_kernel<T><<<blocks_for(points), k_threads, 0, stream_>>>(
        a, tiles, points, centre, scale, depth, panels, norms);
    check_launch("pack_points_kernel");
  }
  template <class Source>
  void pack_more(Source const& source, index_t tiles, index_t batch, int size, T* panels) {
    index_t const points = batch * tiles * shape::rows;
    if (points == 0) return;
    pack_more_kernel<T, Source>
        <<<blocks_for(points), k_threads, 0, stream_>>>(source, tiles, points, size, panels);
    check_launch("pack_more_kernel");
  }

  /// Panels for tensor cores: `lots` and `factors` of all points x, then y.
  void split(gpu::kernel_job<T>& job, index_t x_points, index_t y_points, gpu::split_lot* lots,
             float* factors) {
    if constexpr (std::is_same_v<T, float>) {
      index_t const size = lots_of_tile();
      index_t const x_lots = x_points / shape::rows * size, y_lots = y_points / shape::rows * size;
      auto const take = [&]<bool Left>(float const* panels, index_t points, index_t count,
                                       gpu::split_lot* to, float* of) {
        if (points == 0) return;
        split_factors_kernel<<<blocks_for(points), k_threads, 0, stream_>>>(panels, points,
                                                                            job.sizes.depth, of);
        check_launch("split_factors_kernel");
        split_kernel<Left>
            <<<blocks_for(count), k_threads, 0, stream_>>>(panels, of, count, job.sizes.depth, to);
        check_launch("split_kernel");
      };
      take.template operator()<false>(job.x, x_points, x_lots, lots, factors);
      take.template operator()<true>(job.y, y_points, y_lots, lots + x_lots, factors + x_points);
      job.x_split = lots;
      job.y_split = lots + x_lots;
      job.x_factors = factors;
      job.y_factors = factors + x_points;
    }
  }
  bool is_split() const {
    return std::is_same_v<T, float> && form() != kernel_form::differences && d_ > 0;
  }
  index_t lots_of_tile() const {
    return is_split() ? index_t{gpu::split_steps(rounded_up(d_))} * gpu::k_split_lots : 0;
  }

  void run_slice(index_t first, index_t batch) {
    auto const x = array_of<T>(call_.x, first), y = array_of<T>(call_.y, first);
    bool const few = is_few();
    int const depth = few ? few_coordinates() : rounded_up(d_);
    int const sums = sums_of_row();
    auto const [x_more_size, y_more_size] = more_sizes();
    index_t const x_points = batch * x_tiles_ * shape::rows,
                  y_points = batch * y_tiles_ * shape::rows;
    // A centre for each matrix, and one of zeros.
    buffer<double> const centres(2 * batch * d_, stream_);
    double *const centre = centres.get(), *const nowhere = centre + batch * d_;
    check(cudaMemsetAsync(centre, 0, static_cast<std::size_t>(2 * batch * d_) * sizeof(double),
                          stream_),
          "cudaMemsetAsync");
    if (radial_ || is_softmax()) take_mean(call_.exchanged != 0 ? x : y, batch, centre);
    buffer<T> const panels((x_points + y_points) * (depth + 1), stream_);
    buffer<T> const more(x_points * x_more_size + y_points * y_more_size, stream_);
    T* const x_panels = panels.get();
    T* const y_panels = x_panels + x_points * depth;
    T* const x_norms = y_panels + y_points * depth;
    T* const x_more = more.get();
    pack_points(x, x_tiles_, batch, radial_ ? centre : nowhere, scales_.get(), depth, x_panels,
                x_norms);
    pack_points(y, y_tiles_, batch, centre, scales_.get() + d_, depth, y_panels,
                x_norms + x_points);
    gpu::kernel_job<T> job{{how_, form(), depth, y_more_size, sums, radial_, call_.exchanged == 0},
                           x_more_size,
                           y_more_size,
                           call_.y.rows,
                           x_tiles_,
                           y_tiles_,
                           gpu::kernel_job<T>::runs_of_segment(y_tiles_),
                           0,
                           x_panels,
                           y_panels,
                           x_norms,
                           x_norms + x_points,
                           x_more,
                           x_more + x_points * x_more_size,
                           nullptr,
                           nullptr,
                           nullptr,
                           nullptr,
                           0,
                           2,
                           nullptr,
                           nullptr};
    job.segments = ceil_div(y_tiles_, job.segment_runs);
    buffer<gpu::split_lot> const lots(batch * (x_tiles_ + y_tiles_) * lots_of_tile(), stream_);
    buffer<float> const factors(is_split() ? x_points + y_points : 0, stream_);
    if (is_split()) split(job, x_points, y_points, lots.get(), factors.get());
    gpu::kernel_results<T> to{x,
                              static_cast<T*>(call_.out) + first * call_.x.rows * columns_of_out(),
                              static_cast<int>(columns_of_out()),
                              0,
                              nullptr,
                              detail::factor_of_gradient(how_),
                              centre,
                              scales_.get()};
    T* const y_more = x_more + x_points * x_more_size;
    switch (call_.task) {
      case subspan_cuda_kernel_product:
        pack_more(gpu::kernel_columns<T>{array_of<T>(call_.of_y, first), is_softmax()}, y_tiles_,
                  batch, y_more_size, y_more);
        if (call_.more != nullptr) to.more = call_.more + first * call_.x.rows;
        if (few) return sum_few(job, to, batch);
        if (is_softmax()) return sum<kernel_task::softmax>(job, to, batch);
        return sum<kernel_task::product>(job, to, batch);
      case subspan_cuda_kernel_gradient:
        pack_more(gpu::kernel_columns<T>{array_of<T>(call_.of_x, first), false}, x_tiles_, batch,
                  x_more_size, x_more);
        pack_more(gpu::kernel_columns<T>{array_of<T>(call_.of_y, first), false}, y_tiles_, batch,
                  y_more_size, y_more);
        return sum<kernel_task::gradient>(job, to, batch);
      case subspan_cuda_kernel_logs:
        if (call_.more != nullptr) to.more = call_.more + first * call_.x.rows * 2 * e_;
        for (; to.column < e_; ++to.column) {
          pack_more(gpu::kernel_logs<T>{array_of<T>(call_.of_y, first), to.column}, y_tiles_, batch,
                    1, y_more);
          sum<kernel_task::logs>(job, to, batch);
        }
        return;
      default:
        pack_more(gpu::kernel_terms<T>{array_of<double>(call_.of_x, first)}, x_tiles_, batch, 2,
                  x_more);
        pack_more(gpu::kernel_terms<T>{array_of<double>(call_.of_y, first)}, y_tiles_, batch, 2,
                  y_more);
        if (call_.task == subspan_cuda_kernel_terms) return sum<kernel_task::terms>(job, to, batch);
        return sum<kernel_task::term_gradient>(job, to, batch);
    }
  }

  kernel_form form() const {
    return !radial_                   ? kernel_form::products
           : d_ <= k_difference_depth ? kernel_form::differences
                                      : kernel_form::expanded;
  }
  bool is_gradient() const {
    return call_.task == subspan_cuda_kernel_gradient ||
           call_.task == subspan_cuda_kernel_term_gradient;
  }
  index_t columns_of_out() const {
    return is_gradient() ? d_ : call_.task == subspan_cuda_kernel_terms ? 1 : e_;
  }
  int sums_of_row() const {
    if (is_gradient()) return static_cast<int>(d_);
    if (call_.task != subspan_cuda_kernel_product) return 1;
    if (is_few()) return e_ == 1 ? 1 : k_few_sums;
    return static_cast<int>(e_) + (is_softmax() ? 1 : 0);
  }
  /// Elements that points x and y have besides coordinates.
  std::pair<int, int> more_sizes() const {
    switch (call_.task) {
      case subspan_cuda_kernel_product:
        return {0, sums_of_row()};
      case subspan_cuda_kernel_gradient:
        return {rounded_up(e_), rounded_up(e_)};
      case subspan_cuda_kernel_logs:
        return {0, 1};
      default:
        return {2, 2};
    }
  }

  static index_t blocks_wanted() {
    return k_blocks_per_processor * device_attribute(cudaDevAttrMultiProcessorCount);
  }
  /// Blocks that share the segments of one place.
  static index_t parts_of(index_t places, index_t segments) {
    return std::clamp<index_t>(ceil_div(blocks_wanted(), std::max<index_t>(places, 1)), 1,
                               std::max<index_t>(segments, 1));
  }

  /// Launches for all tiles, as many at a time as have room for their sums.
  template <kernel_task Task>
  void sum(gpu::kernel_job<T> job, gpu::kernel_results<T> const& to, index_t batch) {
    index_t const tiles = batch * x_tiles_;
    index_t const parts = parts_of(tiles, job.segments);
    job.slots = parts > 1 ? job.segments + 1 : 2;
    index_t const values = job.slots * job.sizes.sums * shape::rows;
    index_t const bytes = 8 * std::max<index_t>(values, 1);
    index_t const slice = std::clamp<index_t>(
        std::max(k_sums_bytes / bytes, std::min(blocks_wanted(), k_slice_bytes / bytes)), 1, tiles);
    buffer<double> const sums(slice * values, stream_);
    buffer<T> const greatest(gpu::has_greatest(Task) ? slice * job.slots * shape::rows : 0,
                             stream_);
    job.sums = sums.get();
    job.greatest = greatest.get();
    auto const kernel = &sum_kernel<Task, T>;
    allow_shared(kernel, sizeof(gpu::kernel_memory<T>));
    for (index_t first = 0; first < tiles; first += slice) {
      index_t const count = std::min(slice, tiles - first);
      job.first_tile = first;
      kernel<<<static_cast<unsigned>(count * parts), shape::threads, sizeof(gpu::kernel_memory<T>),
               stream_>>>(job, parts);
      check_launch("sum_kernel");
      finish<Task>(job, to, count);
    }
  }

  void sum_few(gpu::kernel_job<T> const& job, gpu::kernel_results<T> const& to, index_t batch) {
    switch (few_coordinates()) {
      case 3:
        return job.sizes.sums == 1 ? sum_points<3, 1>(job, to, batch)
                                   : sum_points<3, k_few_sums>(job, to, batch);
      case 5:
        return job.sizes.sums == 1 ? sum_points<5, 1>(job, to, batch)
                                   : sum_points<5, k_few_sums>(job, to, batch);
      default:
        return job.sizes.sums == 1 ? sum_points<8, 1>(job, to, batch)
                                   : sum_points<8, k_few_sums>(job, to, batch);
    }
  }
  template <int Coordinates, int Sums>
  void sum_points(gpu::kernel_job<T> job, gpu::kernel_results<T> const& to, index_t batch) {
    using few = gpu::few_shape<T, Coordinates, Sums>;
    index_t const tiles = batch * x_tiles_, blocks = batch * few::blocks(x_tiles_);
    index_t const parts = parts_of(blocks, job.segments);
    job.slots = parts > 1 ? job.segments + 1 : 2;
    buffer<double> const sums(tiles * job.slots * Sums * shape::rows, stream_);
    job.sums = sums.get();
    sum_few_kernel<T, Coordinates, Sums>
        <<<static_cast<unsigned>(blocks * parts), few::threads, 0, stream_>>>(job, parts);
    check_launch("sum_few_kernel");
    finish<kernel_task::product>(job, to, tiles);
  }

  template <kernel_task Task>
  void finish(gpu::kernel_job<T> const& job, gpu::kernel_results<T> const& to, index_t tiles) {
    unsigned const blocks = blocks_for(tiles * shape::rows);
    if (job.slots > 2) {
      merge_kernel<Task, T><<<blocks, k_threads, 0, stream_>>>(job, tiles);
      check_launch("merge_kernel");
    }
    finish_kernel<Task, T><<<blocks, k_threads, 0, stream_>>>(job, to, tiles);
    check_launch("finish_kernel");
  }

  subspan_cuda_kernel_call const& call_;
  cudaStream_t stream_;
  kernel_params how_;
  bool radial_;
  index_t d_, e_, x_tiles_, y_tiles_;
  buffer<double> scales_;
};

}  // namespace

int kernel_sums(subspan_cuda_kernel_call const* call, char* message, int size) {
  return guarded(message, size, [&] {
    if (call->batch == 0 || call->x.rows == 0) return;
    device_scope const scope(call->device_index);
    if (call->dtype == subspan_cuda_float)
      kernel_sums_call<float>(*call).run();
    else
      kernel_sums_call<double>(*call).run();
  });
}

}  // namespace subspan::cuda
