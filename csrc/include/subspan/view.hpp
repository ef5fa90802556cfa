#pragma once

#include <array>
#include <cstddef>

#include "subspan/abi.hpp"
#include "subspan/device.hpp"
#include "subspan/types.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

/// A non-owning window on elements: pointer, shape and strides (in elements, any sign), device.
/// `T const` marks inputs. It does no arithmetic; kernels do.
template <class T, int Rank>
struct strided_view {
  T* data = nullptr;
  std::array<index_t, Rank> shape{};
  std::array<index_t, Rank> strides{};
  subspan::device device{};

  template <class... Index>
  T& operator()(Index... index) const {
    static_assert(sizeof...(Index) == Rank, "one index per axis");
    index_t offset = 0;
    std::size_t axis = 0;
    ((offset += static_cast<index_t>(index) * strides[axis++]), ...);
    return data[offset];
  }

  index_t size() const noexcept {
    index_t n = 1;
    for (index_t extent : shape) n *= extent;
    return n;
  }

  /// The last axis has stride 1 (or at most one element).
  bool inner_contiguous() const noexcept { return shape[Rank - 1] <= 1 || strides[Rank - 1] == 1; }

  /// C order without gaps.
  bool is_row_major() const noexcept {
    if (size() == 0) return true;  // nothing can be out of place
    index_t expected = 1;
    for (int axis = Rank - 1; axis >= 0; --axis) {
      if (shape[axis] > 1 && strides[axis] != expected) return false;
      expected *= shape[axis];
    }
    return true;
  }

  /// First byte and one past the last byte that the view can reach.
  std::array<char const*, 2> byte_range() const noexcept {
    index_t low = 0, high = 1;
    for (int axis = 0; axis < Rank; ++axis) {
      index_t const reach = (shape[axis] - 1) * strides[axis];
      (reach < 0 ? low : high) += reach;
    }
    auto const* base = reinterpret_cast<char const*>(data);
    auto const width = static_cast<index_t>(sizeof(T));
    return {base + low * width, base + high * width};
  }

  /// Inputs are taken as `T const`; a writable view converts.
  operator strided_view<T const, Rank>() const noexcept { return {data, shape, strides, device}; }
};

/// A C-ordered view of memory on the CPU: `make_view<2>(p, {rows, columns})`.
template <int Rank, class T>
strided_view<T, Rank> make_view(T* data, std::array<index_t, Rank> shape) {
  strided_view<T, Rank> view{data, shape, {}, {}};
  index_t stride = 1;
  for (int axis = Rank - 1; axis >= 0; --axis) {
    view.strides[axis] = stride;
    stride *= shape[axis];
  }
  return view;
}

/// Whether two views may share memory; judged by their address ranges, so strided views that
/// interleave without meeting count as overlapping.
template <class A, int RankA, class B, int RankB>
bool overlaps(strided_view<A, RankA> const& a, strided_view<B, RankB> const& b) {
  if (a.size() == 0 || b.size() == 0 || a.device != b.device) return false;
  auto const [a0, a1] = a.byte_range();
  auto const [b0, b1] = b.byte_range();
  return a0 < b1 && b0 < a1;
}

}  // namespace v0
}  // namespace subspan
