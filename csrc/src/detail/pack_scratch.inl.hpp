// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/packs.inl.hpp and detail/batched.hpp.

/// Hands out parts of a scratch, or counts them where there is none yet.
template <class V>
class pack_scratch {
 public:
  explicit pack_scratch(void* memory) : memory_(static_cast<V*>(memory)) {}
  V* take(index_t n) {
    V* const part = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += n;
    return part;
  }
  index_t bytes() const { return used_ * static_cast<index_t>(sizeof(V)); }

 private:
  V* memory_;
  index_t used_ = 0;
};

/// The rows of a matrix of one lane in the order of its values.
template <class T, class M>
void sort_rows(T const* from, index_t pitch, index_t n, M const* order, index_t lane, T* to) {
  for (index_t j = 0; j < n; ++j) std::copy_n(from + order[j][lane] * pitch, pitch, to + j * pitch);
}

/// order[j]: in every lane, which of the n values comes j-th.
template <bool Descending, class V>
void sort_lanes(V* values, lane_mask<V>* order, index_t n) {
  for (index_t j = 0; j < n; ++j) order[j] = lane_mask<V>{} + static_cast<lane_index<V>>(j);
  // Insertion, all lanes at once, by compare and exchange: the values are nearly in order.
  for (index_t j = 1; j < n; ++j)
    for (index_t i = j; i > 0; --i) {
      V const a = values[i - 1], b = values[i];
      auto const exchange = Descending ? b > a : b < a;
      if (!any(exchange)) break;
      values[i - 1] = exchange ? b : a;
      values[i] = exchange ? a : b;
      auto const p = order[i - 1], q = order[i];
      order[i - 1] = exchange ? q : p;
      order[i] = exchange ? p : q;
    }
}

/// The end of a decomposition: its values in order and at their own scale, and what to say of each
/// matrix. left: what of it had not converged.
template <bool Descending, class V, class Task>
void finish_values(V* values, lane_mask<V>* order, index_t n, pack_scale<V> const& scale,
                   lane_mask<V> const& left, Task const& task, index_t count) {
  sort_lanes<Descending>(values, order, n);
  for (index_t j = 0; j < n; ++j) values[j] = scale.undo(values[j]);
  store_pack<V>(values, n, 1, 1, nullptr, scale.finite, task.values, count);
  for (index_t l = 0; l < count; ++l)
    task.info[l] = scale.finite[l] ? static_cast<std::int32_t>(left[l]) : detail::k_info_nonfinite;
}
