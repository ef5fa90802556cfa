// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/packs.inl.hpp.
//
// Implicitly shifted QR iterations on bidiagonal and tridiagonal packs. Every lane has its own
// active window [first, last], the lowest part whose off-diagonal entries are not negligible; lanes
// outside theirs are given rotations by zero, exactly. The rotations of several sweeps are kept and
// then applied to the vectors row by row, which reads and writes each vector once.

/// c = x / r, s = y / r, r = (x, y), which is one division and one root for all lanes. Entries are
/// scaled to about 1, so that what is lost below the square root of the smallest number is far
/// below rounding; such pairs are not rotated.
template <class V>
struct pack_rotation {
  V c, s, r;

  pack_rotation(V x, V y) {
    constexpr lane_type<V> least = sizeof(lane_type<V>) == 4 ? 1e-30f : 1e-280;
    V const square = x * x + y * y;
    auto const some = square > least;
    V const inverse = 1 / square_root(some ? square : all_lanes<V>(1));
    c = some ? x * inverse : all_lanes<V>(1);
    s = some ? y * inverse : V{};
    r = some ? square * inverse : x;
  }
};

/// Sweeps of rotations that are still to be applied: of columns k and k + 1, k in [begin, end).
template <class V, int Sides>
class rotation_list {
 public:
  static constexpr index_t k_sweeps = 8;
  static index_t size(index_t n) { return k_sweeps * n * 2 * Sides; }

  rotation_list(V* memory, index_t n) : memory_(memory), n_(n) {}

  bool full() const { return count_ == k_sweeps; }
  void start(index_t begin, index_t end) {
    begin_[count_] = begin;
    end_[count_] = end;
    current_ = memory_ + count_ * n_ * 2 * Sides;
    ++count_;
  }
  void set(int side, index_t k, V c, V s) {
    current_[(k * Sides + side) * 2] = c;
    current_[(k * Sides + side) * 2 + 1] = s;
  }

  /// All of a side to every row of q[rows, n].
  void apply(int side, V* q, index_t rows, index_t pitch) const {
    index_t i = 0;
    for (; i + 4 <= rows; i += 4) apply_to<4>(side, q + i * pitch, pitch);
    for (; i < rows; ++i) apply_to<1>(side, q + i * pitch, pitch);
  }
  void clear() { count_ = 0; }

  /// each(begin, end, angle) for every sweep of a side; angle(k, 0, lane) is the cosine, angle(k, 1,
  /// lane) the sine.
  template <class Each>
  void for_each_sweep(int side, Each&& each) const {
    for (index_t t = 0; t < count_; ++t) {
      auto const* const list =
          reinterpret_cast<lane_type<V> const*>(memory_ + t * n_ * 2 * Sides + side * 2);
      each(begin_[t], end_[t], [list](index_t k, index_t which, index_t lane) {
        return list[(k * 2 * Sides + which) * lane_count<V> + lane];
      });
    }
  }

 private:
  template <int Rows>
  void apply_to(int side, V* q, index_t pitch) const {
    for (index_t t = 0; t < count_; ++t) {
      V const* const list = memory_ + t * n_ * 2 * Sides + side * 2;
      V carried[Rows];
      for (int r = 0; r < Rows; ++r) carried[r] = q[r * pitch + begin_[t]];
      for (index_t k = begin_[t]; k < end_[t]; ++k) {
        V const c = list[k * 2 * Sides], s = list[k * 2 * Sides + 1];
        for (int r = 0; r < Rows; ++r) {
          V const next = q[r * pitch + k + 1];
          q[r * pitch + k] = c * carried[r] + s * next;
          carried[r] = c * next - s * carried[r];
        }
      }
      for (int r = 0; r < Rows; ++r) q[r * pitch + end_[t]] = carried[r];
    }
  }

  V* memory_;
  V* current_ = nullptr;
  index_t n_, count_ = 0;
  index_t begin_[k_sweeps] = {}, end_[k_sweeps] = {};
};

/// The greatest |d_k| + |e_k|: the norm of either matrix within a factor of 2.
template <class V>
V entry_norm(V const* d, V const* e, index_t n) {
  V norm{};
  for (index_t k = 0; k < n; ++k)
    norm = larger(norm, magnitude(d[k]) + (k + 1 < n ? magnitude(e[k]) : V{}));
  return norm;
}

/// What may be dropped from a matrix of this norm: a part of rounding. Between large entries of the
/// diagonal the rounding of every sweep leaves more, and that much may be dropped there.
template <class V>
V negligible_part(V norm) {
  return norm * (std::numeric_limits<lane_type<V>>::epsilon() / 4);
}
template <class V>
V negligible_between(V d, V next, V negligible) {
  return negligible +
         std::numeric_limits<lane_type<V>>::epsilon() * (magnitude(d) + magnitude(next));
}

/// Where a sweep works in every lane, and the extremes over the lanes. Lanes that are done have
/// first = last = 0.
template <class V>
struct pack_window {
  using index = lane_mask<V>;
  index first{}, last{};
  V least{};  // smallest |d| in the window
  index_t begin = 0, end = 0;

  /// Looks at e[0, last_end): negligible ones become zero.
  pack_window(V const* d, V* e, index_t last_end, V negligible) {
    index running{};  // whether the entry before was active
    begin = last_end;
    for (index_t k = 0; k < last_end; ++k) {
      index const active = magnitude(e[k]) > negligible_between(d[k], d[k + 1], negligible);
      e[k] = active ? e[k] : V{};
      index const starts = active & ~running, at = index{} + static_cast<lane_type<index>>(k);
      first = starts ? at : first;
      last = active ? at + 1 : last;
      least = starts ? magnitude(d[k]) : least;
      least = active ? smaller(least, magnitude(d[k + 1])) : least;
      running = active;
    }
    for (int l = 0; l < lane_count<V>; ++l)
      if (last[l] > 0) {
        begin = std::min<index_t>(begin, first[l]);
        end = std::max<index_t>(end, last[l]);
      }
  }

  bool done() const { return end == 0; }

  /// The last two entries of d in the window, and that of e between them.
  struct corner {
    V top{}, off{}, bottom{};
  };
  corner last_two(V const* d, V const* e) const {
    corner found;
    for (index_t k = begin; k < end; ++k) {
      auto const here = ends_at(k + 1);
      found.top = here ? d[k] : found.top;
      found.off = here ? e[k] : found.off;
      found.bottom = here ? d[k + 1] : found.bottom;
    }
    return found;
  }
  index active_at(index_t k) const {
    index const at = index{} + static_cast<lane_type<index>>(k);
    return (at >= first) & (at < last);
  }
  index starts_at(index_t k) const { return first == index{} + static_cast<lane_type<index>>(k); }
  index ends_at(index_t k) const { return last == index{} + static_cast<lane_type<index>>(k); }
};

/// Sweeps until what is left is given up: LAPACK's 30 for every value.
constexpr index_t k_sweeps_per_value = 30;

/// How many entries of e are left, in each lane.
template <class V>
lane_mask<V> count_unconverged(V const* d, V const* e, index_t n, V negligible) {
  lane_mask<V> left{};
  for (index_t k = 0; k + 1 < n; ++k)
    left -= magnitude(e[k]) > negligible_between(d[k], d[k + 1], negligible);
  return left;
}

/// Smaller singular value of [[f, g], [0, h]] (LAPACK's las2, for numbers of about 1).
template <class V>
V smaller_singular_value(V f, V g, V h) {
  f = magnitude(f), g = magnitude(g), h = magnitude(h);
  V const low = smaller(f, h), high = larger(f, h), most = larger(high, g);
  V const inverse = most > 0 ? 1 / (most > 0 ? most : all_lanes<V>(1)) : V{};
  V const a = low * inverse, b = high * inverse, c = g * inverse;
  V const sum = square_root((a + b) * (a + b) + c * c);
  V const difference = square_root((b - a) * (b - a) + c * c);
  // sigma_min = |f h| / sigma_max, and the two roots are sigma_max +- sigma_min.
  V const greatest = sum + difference;
  return greatest > 0 ? 2 * low * b / (greatest > 0 ? greatest : all_lanes<V>(1)) : V{};
}

/// Singular values of bidiagonal packs: d becomes them up to sign and order. `turn(list)` is called
/// whenever the list of rotations (side 0: left vectors, 1: right) is to be applied and cleared.
template <class V, class Turn>
lane_mask<V> iterate_bidiagonal(V* d, V* e, index_t n, rotation_list<V, 2>& list, Turn&& turn) {
  V const norm = entry_norm(d, e, n), negligible = negligible_part(norm);
  index_t end = n - 1;
  for (index_t sweep = 0; sweep < k_sweeps_per_value * n && end > 0; ++sweep) {
    pack_window<V> const w(d, e, end, negligible);
    end = w.end;
    if (w.done()) break;
    // Shift: from the last two columns. With an entry of d that is zero no shift is right, and it
    // ends in one sweep (Demmel and Kahan 1990).
    auto const [top, off, bottom] = w.last_two(d, e);
    auto const unshifted = w.least <= 4 * negligible;
    V const shift = unshifted ? V{} : smaller_singular_value(top, off, bottom);
    V x{}, y{};
    V left_c = all_lanes<V>(1), left_s{};
    list.start(w.begin, w.end);
    for (index_t k = w.begin; k < w.end; ++k) {
      auto const active = w.active_at(k), starts = w.starts_at(k), ends = w.ends_at(k + 1);
      V const dk = d[k], ek = e[k], dn = d[k + 1];
      x = starts ? (unshifted ? dk : (dk - shift) * (dk + shift)) : x;
      y = starts ? (unshifted ? ek : dk * ek) : y;
      left_c = starts ? all_lanes<V>(1) : left_c;
      pack_rotation<V> const right(x, y);
      // The entry above the window is not touched by its first rotation.
      if (k > w.begin) {
        V const above = unshifted ? left_s * right.r : right.r;
        e[k - 1] = active & ~starts ? above : e[k - 1];
      }
      V const dr = unshifted ? left_c * right.r : right.c * dk + right.s * ek;
      V const er = unshifted ? V{} : right.c * ek - right.s * dk;
      V const bulge = right.s * dn, dm = right.c * dn;
      pack_rotation<V> const left(dr, bulge);
      d[k] = active ? left.r : dk;
      V const en = k + 2 < n ? e[k + 1] : V{};
      // What the next step starts from, or the last entries of the window.
      V const xs = left.c * er + left.s * dm, ds = left.c * dm - left.s * er;
      x = unshifted ? dm : xs;
      y = unshifted ? en : left.s * en;
      V const last_e = unshifted ? left.s * dm : xs, last_d = unshifted ? left.c * dm : ds;
      e[k] = active & ends ? last_e : ek;
      d[k + 1] = active ? (ends ? last_d : ds) : dn;
      if (k + 2 < n) e[k + 1] = active & ~ends & ~unshifted ? left.c * en : en;
      left_c = left.c;
      left_s = left.s;
      list.set(0, k, active ? left.c : all_lanes<V>(1), active ? left.s : V{});
      list.set(1, k, active ? right.c : all_lanes<V>(1), active ? right.s : V{});
    }
    if (list.full()) turn(list);
  }
  turn(list);
  return count_unconverged(d, e, n, negligible);
}

/// Eigenvalues of tridiagonal packs, by the symmetric step with Wilkinson's shift (Golub and Van
/// Loan, algorithm 8.3.2).
template <class V, class Turn>
lane_mask<V> iterate_tridiagonal(V* d, V* e, index_t n, rotation_list<V, 1>& list, Turn&& turn) {
  V const norm = entry_norm(d, e, n), negligible = negligible_part(norm);
  index_t end = n - 1;
  for (index_t sweep = 0; sweep < k_sweeps_per_value * n && end > 0; ++sweep) {
    pack_window<V> const w(d, e, end, negligible);
    end = w.end;
    if (w.done()) break;
    auto const [top, off, bottom] = w.last_two(d, e);
    V const half = (top - bottom) / 2;
    V const reach = magnitude(half) + square_root(half * half + off * off);
    V const part = reach > 0 ? off / (reach > 0 ? reach : all_lanes<V>(1)) : V{};
    V const shift = bottom - with_sign_of(magnitude(off * part), half);
    V x{}, y{};
    list.start(w.begin, w.end);
    for (index_t k = w.begin; k < w.end; ++k) {
      auto const active = w.active_at(k), starts = w.starts_at(k), ends = w.ends_at(k + 1);
      V const dk = d[k], ek = e[k], dn = d[k + 1];
      x = starts ? dk - shift : x;
      y = starts ? ek : y;
      pack_rotation<V> const g(x, y);
      if (k > w.begin) e[k - 1] = active & ~starts ? g.r : e[k - 1];
      // [[dk, ek], [ek, dn]] turned; the change of dk is taken from dn, so that their sum is kept.
      V const part_s = g.s * (dn - dk) + 2 * (g.c * ek);
      V const change = g.s * part_s;
      V const turned = g.c * part_s - ek;
      d[k] = active ? dk + change : dk;
      d[k + 1] = active ? dn - change : dn;
      V const en = k + 2 < n ? e[k + 1] : V{};
      x = turned;
      y = g.s * en;
      e[k] = active ? turned : ek;
      if (k + 2 < n) e[k + 1] = active & ~ends ? g.c * en : en;
      list.set(0, k, active ? g.c : all_lanes<V>(1), active ? g.s : V{});
    }
    if (list.full()) turn(list);
  }
  turn(list);
  return count_unconverged(d, e, n, negligible);
}
