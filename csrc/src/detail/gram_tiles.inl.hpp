// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/product_tile.inl.hpp and detail/gram_block.hpp.
//
// x^T y by register tiles that read both where they lie. Tiles at an edge overlap their neighbours
// instead of being cut, or are of narrower vectors: every element is the same chain of sums wherever
// it stands in a tile.

constexpr index_t k_gram_depth = 256;    // rows whose products are one chain of sums
constexpr index_t k_gram_columns = 256;  // of a panel, which stays in the second cache

template <class T, int Bytes>
struct gram_lanes {
  static constexpr int count = Bytes / static_cast<int>(sizeof(T));
  typedef T vector __attribute__((vector_size(Bytes)));
  typedef T in_memory __attribute__((vector_size(Bytes), aligned(sizeof(T))));
};

/// The products of at most k_gram_depth rows. Unit: columns of x lie beside each other.
template <class T, bool Unit>
class gram_slice {
 public:
  /// `more`: to be added to what is there already.
  gram_slice(detail::gram_block<T> const& block, bool more) : b_(block), more_(more) {}

  void run() const { strips<SUBSPAN_VECTOR_BYTES>(); }

 private:
  template <int Bytes>
  void strips() const {
    constexpr int lanes = gram_lanes<T, Bytes>::count;
    constexpr int vectors = Bytes == SUBSPAN_VECTOR_BYTES ? tile_shape<T>::vectors : 1;
    if constexpr (lanes > 1)
      if (b_.columns < lanes) return strips<Bytes / 2>();
    for (index_t j = 0; j < b_.columns;) {
      bool const wide = b_.columns - j > lanes && b_.columns >= vectors * lanes;
      index_t const width = wide ? vectors * lanes : lanes;
      index_t const at = std::min(j, b_.columns - width);
      if (wide)
        strip<Bytes, vectors, tile_shape<T>::rows>(at, j - at);
      else
        strip<Bytes, 1, tile_shape<T>::rows>(at, j - at);
      j = at + width;
    }
  }

  /// All rows of some columns, of which the first `done` are there already.
  template <int Bytes, int Vectors, int Rows>
  void strip(index_t j, index_t done) const {
    if constexpr (Rows > 1)
      if (b_.rows < Rows) return strip<Bytes, Vectors, Rows / 2>(j, done);
    constexpr int lanes = gram_lanes<T, Bytes>::count;
    for (index_t i = 0; i < b_.rows; i += Rows) {
      index_t const at = std::min(i, b_.rows - Rows), wanted = b_.corner + at + Rows - j;
      if (wanted > lanes)
        tile<Bytes, Vectors, Rows>(at, j, i - at, done);
      else if (wanted > 0)
        tile<Bytes, 1, Rows>(at, j, i - at, done);
    }
  }

  template <int Bytes, int Vectors, int Rows>
  [[gnu::noinline]] void tile(index_t i, index_t j, index_t rows_done, index_t columns_done) const {
    using lanes = gram_lanes<T, Bytes>;
    using vector = typename lanes::vector;
    constexpr int width = Vectors * lanes::count;
    index_t const step = Unit ? 1 : b_.x_column;
    T const *left = b_.x + i * step, *right = b_.y + j;
    vector sum[Rows][Vectors] = {};
    for (index_t r = 0; r < b_.depth; ++r, left += b_.x_row, right += b_.y_row) {
      vector line[Vectors];
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v)
        line[v] = *reinterpret_cast<typename lanes::in_memory const*>(right + v * lanes::count);
#pragma GCC unroll 8
      for (int k = 0; k < Rows; ++k)
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) sum[k][v] += left[k * step] * line[v];
    }
    T* const to = b_.out + i * b_.pitch + j;
    if (!more_) {
#pragma GCC unroll 8
      for (int k = 0; k < Rows; ++k)
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v)
          *reinterpret_cast<typename lanes::in_memory*>(to + k * b_.pitch + v * lanes::count) =
              sum[k][v];
      return;
    }
    if (rows_done == 0 && columns_done == 0) {
#pragma GCC unroll 8
      for (int k = 0; k < Rows; ++k)
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v)
          *reinterpret_cast<typename lanes::in_memory*>(to + k * b_.pitch + v * lanes::count) +=
              sum[k][v];
      return;
    }
    alignas(64) T spilled[Rows * width];
    __builtin_memcpy(spilled, sum, sizeof spilled);
    for (index_t k = rows_done; k < Rows; ++k)
      for (index_t c = columns_done; c < width; ++c) to[k * b_.pitch + c] += spilled[k * width + c];
  }

  detail::gram_block<T> b_;
  bool more_;
};

template <class T>
void run_gram_block(detail::gram_block<T> const& block, T* scratch) {
  for (index_t first = 0; first < block.columns; first += k_gram_columns)
    for (index_t r = 0; r < block.depth; r += k_gram_depth) {
      detail::gram_block<T> part = block;
      part.depth = std::min(k_gram_depth, block.depth - r);
      part.columns = std::min(k_gram_columns, block.columns - first);
      part.corner = block.corner - first;
      part.x += r * block.x_row;
      part.y += r * block.y_row + first * block.y_column;
      part.out += first;
      if (block.y_column != 1) {
        for (index_t i = 0; i < part.depth; ++i)
          for (index_t j = 0; j < part.columns; ++j)
            scratch[i * part.columns + j] = part.y[i * block.y_row + j * block.y_column];
        part.y = scratch;
        part.y_row = part.columns;
      }
      if (block.x_column == 1)
        gram_slice<T, true>(part, r > 0).run();
      else
        gram_slice<T, false>(part, r > 0).run();
    }
}

template <class T>
inline constexpr detail::gram_kernel<T> gram_kernels{k_gram_depth * k_gram_columns,
                                                     &run_gram_block<T>};
