#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "detail/list_bodies.hpp"
#include "host_lanes.hpp"

/// Sparse codes and rows on the host, and a type that is narrower than what it is computed in.

/// A bfloat16.
struct brief {
  std::uint16_t bits;
};

namespace subspan::gpu {
template <>
struct storage<brief> {
  static float widen(brief v) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(v.bits) << 16);
  }
  static brief narrow(float v) {
    auto const bits = std::bit_cast<std::uint32_t>(v);
    if (v != v) return {0x7fc0};
    return {static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
  }
};
}  // namespace subspan::gpu

using namespace subspan;
using gpu::host_block;
using gpu::host_lanes;
using gpu::k_list_part;
using gpu::storage;
using gpu::wide;

inline std::mt19937 generator(11);

template <class T>
std::vector<T> normal(index_t n) {
  std::normal_distribution<float> draw;
  std::vector<T> x(static_cast<std::size_t>(n));
  for (T& v : x) v = storage<T>::narrow(static_cast<wide<T>>(draw(generator)));
  return x;
}

inline std::vector<std::int64_t> indices(index_t n, std::int64_t below) {
  std::uniform_int_distribution<std::int64_t> draw(0, below - 1);
  std::vector<std::int64_t> x(static_cast<std::size_t>(n));
  for (auto& v : x) v = draw(generator);
  return x;
}

/// Memory that starts at a multiple of 16 bytes, or `offset` elements behind it.
template <class T>
struct aligned_rows {
  std::vector<gpu::pack<T>> memory;
  T* data;
  index_t rows, stride;
  aligned_rows(index_t rows, index_t stride, int offset = 0)
      : memory(static_cast<std::size_t>(rows * stride) / gpu::pack<T>::width + 3),
        data(memory[0].at + offset),
        rows(rows),
        stride(stride) {
    auto const values = normal<T>(rows * stride);
    std::copy(values.begin(), values.end(), data);
  }
};

template <class P>
bool same(P a, P b) {
  return a == b || (a != a && b != b);
}

/// body(item) for all items, spread over the warps of a block as the kernels do it.
template <class Body>
void run_items(index_t items, Body const& body) {
  host_block::launch(64, [&](host_lanes const& lanes) {
    for (index_t i = lanes.warp(); i < items; i += lanes.warps()) body(lanes, i);
  });
}

template <class T>
struct code {
  std::vector<T> values;
  std::vector<std::int64_t> features, offsets;
  index_t rows, n;
  code(index_t rows, index_t k, index_t n)
      : values(normal<T>(rows * k)), features(indices(rows * k, n)), rows(rows), n(n) {}
  index_t pairs() const { return static_cast<index_t>(values.size()); }
  gpu::code_lists<T> lists() const {
    index_t const each = rows == 0 ? 0 : pairs() / rows;
    return {values.data(), 1,    features.data(), 1, offsets.empty() ? nullptr : offsets.data(), 1,
            each,          rows, pairs(),         n};
  }
};

/// A code by feature, as the kernels of decode.cu sort it.
template <class T>
struct sorted_code {
  std::vector<std::uint32_t> keys, order, rows, offsets;
  std::vector<wide<T>> weights;
  gpu::feature_lists<wide<T>> lists;
  explicit sorted_code(gpu::code_lists<T> const& code)
      : order(static_cast<std::size_t>(code.pairs)) {
    auto const key = [&](std::uint32_t p) {
      index_t const f = code.feature(p);
      return static_cast<std::uint32_t>(f < 0 ? code.features : f);
    };
    std::iota(order.begin(), order.end(), 0u);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return key(a) < key(b); });
    for (std::uint32_t const p : order) {
      keys.push_back(key(p));
      rows.push_back(static_cast<std::uint32_t>(code.row_of(p)));
      weights.push_back(code.weight(p));
    }
    for (index_t f = 0; f <= code.features; ++f)
      offsets.push_back(static_cast<std::uint32_t>(
          gpu::lower_bound(keys.data(), code.pairs, static_cast<std::uint32_t>(f))));
    lists = {keys.data(), rows.data(), weights.data(), offsets.data(), code.features, code.pairs};
  }
};
