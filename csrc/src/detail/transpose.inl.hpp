// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/product_tile.inl.hpp and <utility>.

/// Both halves of two vectors, element by element in turn.
template <class P, int... I>
[[gnu::always_inline]] inline void interleave_vectors(typename tile_shape<P>::vector a,
                                                      typename tile_shape<P>::vector b,
                                                      typename tile_shape<P>::vector* out,
                                                      std::integer_sequence<int, I...>) {
  constexpr int lanes = sizeof...(I);
  out[0] = __builtin_shufflevector(a, b, (I / 2 + I % 2 * lanes)...);
  out[1] = __builtin_shufflevector(a, b, (lanes / 2 + I / 2 + I % 2 * lanes)...);
}

/// A square of vectors. Each round moves the highest bit of the row below those of the column.
template <class P>
[[gnu::always_inline]] inline void transpose(typename tile_shape<P>::vector* square) {
  constexpr int lanes = tile_shape<P>::lanes;
#pragma GCC unroll 8
  for (int round = 1; round < lanes; round *= 2) {
    typename tile_shape<P>::vector next[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes / 2; ++i)
      interleave_vectors<P>(square[i], square[i + lanes / 2], next + 2 * i,
                            std::make_integer_sequence<int, lanes>());
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) square[i] = next[i];
  }
}
