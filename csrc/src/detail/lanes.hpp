#pragma once

#include <cmath>
#include <cstdint>

/// What the body of a CUDA kernel sees of the threads that run it. Bodies are function templates
/// over `Lanes`, written for one thread as in CUDA; the kernels in the .cu files hand them
/// `device_lanes`, the host's tests an emulation (tests/cpp/unit/host_lanes.hpp), so that indexing,
/// networks and reductions are tested where there is no device. A `Lanes` has
///
///   rank(), size()         this thread and the number of threads of the block
///   lane(), warp()         rank() % 32, rank() / 32; size() is a multiple of 32
///   warps()                size() / 32
///   sync()                 barrier of the block, memory included
///   sync_warp()            barrier of the warp, memory included
///   shuffle(v, source)     v of that lane of the warp
///   shuffle_xor(v, mask)   v of lane() ^ mask
///   any(condition)         whether it holds in any lane of the warp
///   ballot(condition)      one bit per lane of the warp
///   any_of_block(cond)     whether it holds in any thread of the block; a barrier, too
///   multiply_halves(c,a,b) c += a b of a warp, [16][8] += [16][16] [16][8], products of float16 and
///                          sums of float: with g = lane() / 4 and t = lane() % 4, c holds [g][2 t],
///                          [g][2 t + 1], and the same of row g + 8; a pairs of columns from 2 t on of
///                          rows g, g + 8, then the same from 2 t + 8 on; b pairs of rows from 2 t
///                          and from 2 t + 8 on, of column g; the first of a pair in the lower half
///
/// Each of the last eight must be reached by all threads that it gathers.

#ifdef __CUDACC__
#define SUBSPAN_DEVICE __device__ __forceinline__
#define SUBSPAN_UNROLL _Pragma("unroll")
#define SUBSPAN_UNROLL_4 _Pragma("unroll 4")
#define SUBSPAN_NO_UNROLL _Pragma("unroll 1")
#else
#define SUBSPAN_DEVICE inline
#define SUBSPAN_UNROLL
#define SUBSPAN_UNROLL_4
#define SUBSPAN_NO_UNROLL
#endif

namespace subspan::gpu {

inline constexpr int k_warp = 32;

#ifdef __CUDACC__
struct device_lanes {
  SUBSPAN_DEVICE int rank() const { return static_cast<int>(threadIdx.x); }
  SUBSPAN_DEVICE int size() const { return static_cast<int>(blockDim.x); }
  SUBSPAN_DEVICE int lane() const { return rank() % k_warp; }
  SUBSPAN_DEVICE int warp() const { return rank() / k_warp; }
  SUBSPAN_DEVICE int warps() const { return size() / k_warp; }
  SUBSPAN_DEVICE void sync() const { __syncthreads(); }
  SUBSPAN_DEVICE void sync_warp() const { __syncwarp(); }
  template <class T>
  SUBSPAN_DEVICE T shuffle(T v, int source) const {
    return __shfl_sync(0xffffffffu, v, source);
  }
  template <class T>
  SUBSPAN_DEVICE T shuffle_xor(T v, int mask) const {
    return __shfl_xor_sync(0xffffffffu, v, mask);
  }
  SUBSPAN_DEVICE bool any(bool condition) const { return __any_sync(0xffffffffu, condition) != 0; }
  SUBSPAN_DEVICE std::uint32_t ballot(bool condition) const {
    return __ballot_sync(0xffffffffu, condition);
  }
  SUBSPAN_DEVICE bool any_of_block(bool condition) const {
    return __syncthreads_or(condition) != 0;
  }
  SUBSPAN_DEVICE void multiply_halves(float (&c)[4], std::uint32_t const (&a)[4], std::uint32_t b0,
                                      std::uint32_t b1) const {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};
#endif

/// x 2^exponent. One factor alone could overflow for subnormal matrices.
template <class T>
SUBSPAN_DEVICE T scaled(T x, int exponent) {
  int const half = exponent / 2;
  return x * std::ldexp(T(1), half) * std::ldexp(T(1), exponent - half);
}

/// 1 / x and 1 / sqrt(x) of positive normal numbers, to about 20 bits on the device: seeds for
/// Newton steps, and enough where only convergence depends on them.
SUBSPAN_DEVICE float rough_inverse(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1 / x;
#endif
}
SUBSPAN_DEVICE double rough_inverse(double x) {
#ifdef __CUDA_ARCH__
  double y;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(x));
  return y;
#else
  return 1 / x;
#endif
}
SUBSPAN_DEVICE float rough_rsqrt(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1 / std::sqrt(x);
#endif
}
SUBSPAN_DEVICE double rough_rsqrt(double x) {
#ifdef __CUDA_ARCH__
  double y;
  asm("rsqrt.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(x));
  return y;
#else
  return 1 / std::sqrt(x);
#endif
}

/// The same to nearly full precision.
template <class T>
SUBSPAN_DEVICE T fast_inverse(T x) {
  T y = rough_inverse(x);
  SUBSPAN_UNROLL
  for (int step = 0; step < (sizeof(T) == 8 ? 2 : 1); ++step) y *= 2 - x * y;
  return y;
}
template <class T>
SUBSPAN_DEVICE T fast_rsqrt(T x) {
  T y = rough_rsqrt(x);
  SUBSPAN_UNROLL
  for (int step = 0; step < (sizeof(T) == 8 ? 2 : 1); ++step) y *= T(1.5) - T(0.5) * x * y * y;
  return y;
}

/// Sum over groups of `Width` consecutive lanes (a power of two), the same bits in each of them.
template <int Width = k_warp, class Lanes, class T>
SUBSPAN_DEVICE T lane_sum(Lanes const& lanes, T v) {
  SUBSPAN_UNROLL
  for (int mask = Width / 2; mask > 0; mask /= 2) v += lanes.shuffle_xor(v, mask);
  return v;
}

template <int Width = k_warp, class Lanes, class T>
SUBSPAN_DEVICE T lane_max(Lanes const& lanes, T v) {
  SUBSPAN_UNROLL
  for (int mask = Width / 2; mask > 0; mask /= 2) {
    T const other = lanes.shuffle_xor(v, mask);
    v = other > v ? other : v;
  }
  return v;
}

/// The threads that work on one matrix: a warp on its own, several of them to a block, or a whole
/// block. Bodies take either. rank(), size(), sync(), any(), sum() and max() are the team's;
/// publish(v), by all threads with one v per warp, lets all read published(warp) until they sync().
template <class Lanes>
class warp_team {
 public:
  SUBSPAN_DEVICE explicit warp_team(Lanes const& lanes) : lanes_(lanes) {}
  SUBSPAN_DEVICE Lanes const& lanes() const { return lanes_; }
  SUBSPAN_DEVICE int rank() const { return lanes_.lane(); }
  SUBSPAN_DEVICE int size() const { return k_warp; }
  SUBSPAN_DEVICE int warp() const { return 0; }
  SUBSPAN_DEVICE int warps() const { return 1; }
  SUBSPAN_DEVICE void sync() const { lanes_.sync_warp(); }
  SUBSPAN_DEVICE bool any(bool condition) const { return lanes_.any(condition); }
  template <class T>
  SUBSPAN_DEVICE T sum(T v) const {
    return lane_sum(lanes_, v);
  }
  template <class T>
  SUBSPAN_DEVICE T max(T v) const {
    return lane_max(lanes_, v);
  }
  SUBSPAN_DEVICE void publish(double v) const { published_ = v; }
  SUBSPAN_DEVICE double published(int) const { return published_; }

 private:
  Lanes const& lanes_;
  mutable double published_ = 0;
};

/// Doubles that a block_team needs: one for each warp that a block can have.
inline constexpr int k_team_scratch = 32;

/// `scratch`: k_team_scratch doubles of shared memory that nothing else uses.
template <class Lanes>
class block_team {
 public:
  SUBSPAN_DEVICE block_team(Lanes const& lanes, double* scratch)
      : lanes_(lanes), scratch_(scratch) {}
  SUBSPAN_DEVICE Lanes const& lanes() const { return lanes_; }
  SUBSPAN_DEVICE int rank() const { return lanes_.rank(); }
  SUBSPAN_DEVICE int size() const { return lanes_.size(); }
  SUBSPAN_DEVICE int warp() const { return lanes_.warp(); }
  SUBSPAN_DEVICE int warps() const { return lanes_.warps(); }
  SUBSPAN_DEVICE void sync() const { lanes_.sync(); }
  SUBSPAN_DEVICE bool any(bool condition) const { return lanes_.any_of_block(condition); }
  template <class T>
  SUBSPAN_DEVICE T sum(T v) const {
    return across(lane_sum(lanes_, v), T(0), [](T a, T b) { return a + b; });
  }
  template <class T>
  SUBSPAN_DEVICE T max(T v) const {
    T const most = lane_max(lanes_, v);
    return across(most, most, [](T a, T b) { return b > a ? b : a; });
  }
  SUBSPAN_DEVICE void publish(double v) const {
    if (lanes_.lane() == 0) scratch_[lanes_.warp()] = v;
    lanes_.sync();
  }
  SUBSPAN_DEVICE double published(int warp) const { return scratch_[warp]; }

 private:
  template <class T, class Join>
  SUBSPAN_DEVICE T across(T of_warp, T start, Join join) const {
    T* const slots = reinterpret_cast<T*>(scratch_);
    if (lanes_.lane() == 0) slots[lanes_.warp()] = of_warp;
    lanes_.sync();
    T all = start;
    for (int w = 0; w < lanes_.warps(); ++w) all = join(all, slots[w]);
    lanes_.sync();
    return all;
  }

  Lanes const& lanes_;
  double* scratch_;
};

}  // namespace subspan::gpu
