// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/gram_tiles.inl.hpp and detail/mttkrp_kernels.hpp.

template <class T>
void multiply_block(detail::gram_block<T> const& block) {
  run_gram_block<T>(block, nullptr);
}

/// The same sums of up to k_gram_depth rows, each added to what is there.
template <class T>
void multiply_add_block(detail::gram_block<T> const& block) {
  for (index_t first = 0; first < block.columns; first += k_gram_columns)
    for (index_t r = 0; r < block.depth; r += k_gram_depth) {
      detail::gram_block<T> part = block;
      part.depth = std::min(k_gram_depth, block.depth - r);
      part.columns = std::min(k_gram_columns, block.columns - first);
      part.corner = block.corner - first;
      part.x += r * block.x_row;
      part.y += r * block.y_row + first;
      part.out += first;
      if (block.x_column == 1)
        gram_slice<T, true>(part, true).run();
      else
        gram_slice<T, false>(part, true).run();
    }
}

template <class T>
void dot_rows(index_t rows, index_t columns, T const* a, T const* b, T const* weight, T* out) {
  constexpr index_t width = 4 * SUBSPAN_VECTOR_BYTES / static_cast<index_t>(sizeof(T));
  index_t first = 0;
  for (; first + width <= columns; first += width) {
    T sum[width] = {};
    for (index_t t = 0; t < rows; ++t)
#pragma omp simd
      for (index_t c = 0; c < width; ++c)
        sum[c] += a[t * columns + first + c] * b[t * columns + first + c];
    for (index_t c = 0; c < width; ++c) out[first + c] += weight[first + c] * sum[c];
  }
  T sum[width] = {};
  index_t const rest = columns - first;
  for (index_t t = 0; t < rows; ++t)
#pragma omp simd
    for (index_t c = 0; c < rest; ++c)
      sum[c] += a[t * columns + first + c] * b[t * columns + first + c];
  for (index_t c = 0; c < rest; ++c) out[first + c] += weight[first + c] * sum[c];
}

template <class T>
void add_rows(index_t rows, index_t columns, T const* a, T const* weight, T* out) {
  for (index_t t = 0; t < rows; ++t, a += columns, out += columns)
#pragma omp simd
    for (index_t c = 0; c < columns; ++c) out[c] += weight[c] * a[c];
}

template <class T>
void scale_rows(index_t rows, index_t columns, T const* a, T const* weight, T* out) {
  for (index_t t = 0; t < rows; ++t, a += columns, out += columns)
#pragma omp simd
    for (index_t c = 0; c < columns; ++c) out[c] = weight[c] * a[c];
}

template <class T>
inline constexpr detail::mttkrp_kernels<T> mttkrp_table{&multiply_block<T>, &multiply_add_block<T>,
                                                        &dot_rows<T>, &add_rows<T>, &scale_rows<T>};
