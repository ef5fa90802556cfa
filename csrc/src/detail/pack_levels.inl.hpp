// Compiled once per level, inside the namespace of the level; no include guard on purpose. What
// svd.cpp, eigh.cpp and qr.cpp have in common per level; the order counts.

#include "detail/interleave.inl.hpp"

#include "detail/packs.inl.hpp"

#include "detail/pack_reflections.inl.hpp"
#include "detail/pack_rotations.inl.hpp"
#include "detail/pack_scratch.inl.hpp"
#include "detail/row_reflections.inl.hpp"

template <class T>
constexpr int k_wide_pack = SUBSPAN_VECTOR_BYTES / static_cast<int>(sizeof(T));
template <class T>
constexpr int k_narrow_pack = 16 / static_cast<int>(sizeof(T));
