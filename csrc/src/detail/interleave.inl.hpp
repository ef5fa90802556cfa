// Compiled once per level, inside the namespace of the level; no include guard on purpose.

/// Four lines of 4 n elements side by side: out[c * width + i] = line i [c].
template <class P>
void interleave(P const* lines, index_t line, index_t n, index_t width, P* out) {
  typedef P four __attribute__((vector_size(4 * sizeof(P)), aligned(sizeof(P))));
  auto const at = [&](int i, index_t c) -> four const& {
    return *reinterpret_cast<four const*>(lines + i * line + c);
  };
  for (index_t c = 0; c < n; c += 4, out += 4 * width) {
    four const w = at(0, c), x = at(1, c), y = at(2, c), z = at(3, c);
    four const wy0 = __builtin_shufflevector(w, y, 0, 4, 1, 5);
    four const wy1 = __builtin_shufflevector(w, y, 2, 6, 3, 7);
    four const xz0 = __builtin_shufflevector(x, z, 0, 4, 1, 5);
    four const xz1 = __builtin_shufflevector(x, z, 2, 6, 3, 7);
    auto const to = [&](int r) -> four& { return *reinterpret_cast<four*>(out + r * width); };
    to(0) = __builtin_shufflevector(wy0, xz0, 0, 4, 1, 5);
    to(1) = __builtin_shufflevector(wy0, xz0, 2, 6, 3, 7);
    to(2) = __builtin_shufflevector(wy1, xz1, 0, 4, 1, 5);
    to(3) = __builtin_shufflevector(wy1, xz1, 2, 6, 3, 7);
  }
}
