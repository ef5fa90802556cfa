#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "subspan/abi.hpp"
#include "subspan/context.hpp"
#include "subspan/types.hpp"
#include "subspan/view.hpp"

#if defined(__CUDACC__)
#define SUBSPAN_HOST_DEVICE __host__ __device__
#else
#define SUBSPAN_HOST_DEVICE
#endif

namespace subspan {
inline namespace SUBSPAN_ABI {

/// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3;
/// SC 2011). A pure function of key and counter: the same numbers on any device, for any number
/// of threads, and nothing to pass round.
SUBSPAN_HOST_DEVICE inline std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter,
                                                               std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    std::uint64_t const a = std::uint64_t{0xD2511F53u} * counter[0];
    std::uint64_t const b = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {
        static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
        static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

/// The four words that belong to (seed, stream, index).
SUBSPAN_HOST_DEVICE inline std::array<std::uint32_t, 4> random_words(std::uint64_t seed,
                                                                     std::uint64_t stream,
                                                                     std::uint64_t index) {
  return philox({static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
                 static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32)},
                {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
}

/// Standard normal number of (seed, stream, index) by Box and Muller in double precision.
SUBSPAN_HOST_DEVICE inline double random_normal(std::uint64_t seed, std::uint64_t stream,
                                                std::uint64_t index) {
  auto const w = random_words(seed, stream, index);
  // 53 bits each; the first is moved into (0, 1] so that its logarithm is finite.
  double const scale = 1.0 / 9007199254740992.0;
  double const u = (static_cast<double>(((std::uint64_t{w[0]} << 32 | w[1]) >> 11)) + 1.0) * scale;
  double const v = static_cast<double>((std::uint64_t{w[2]} << 32 | w[3]) >> 11) * scale;
  return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * v);
}

/// Fills `out` [n] with standard normals: element i is random_normal(seed, stream, i) rounded to T.
/// T: float, double. CPU. O(n).
template <class T>
void fill_normal(context const& ctx, strided_view<T, 1> out, std::uint64_t seed,
                 std::uint64_t stream);

}  // namespace v0
}  // namespace subspan
