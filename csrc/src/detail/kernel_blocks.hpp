#pragma once

#include <type_traits>

#include "detail/kernel_panels.hpp"
#include "detail/kernel_scalars.hpp"
#include "detail/kernel_split.hpp"

/// What a block of kernel_matvec.cu does: a tile of points x against runs of points y. Scores go to a
/// tile in shared memory, and what the task makes of them is made there, so that scores and kernels
/// need not know of each other. Within a run sums are made in T, beyond in double, in the order of the
/// points y: a segment of runs, then the next.

namespace subspan::gpu {

enum class kernel_form {
  products,     ///< <x, y>
  differences,  ///< sum of (x - y)^2
  expanded      ///< |x|^2 + |y|^2 - 2 <x, y>, and by differences where that cancels
};

/// What is summed up for every x_i, over j.
enum class kernel_task {
  product,       ///< K_ij v_j
  softmax,       ///< exp(P_ij - greatest) v_j
  logs,          ///< K_ij v_j over the greatest of them, v as logarithms
  gradient,      ///< slope_ij <g_i, v_j> (x_i - y_j), of kernels of products y_j
  terms,         ///< 2^(a_i + b_j) p_i q_j K_ij
  term_gradient  ///< the same of the slope, times (x_i - y_j), of kernels of products y_j
};

constexpr bool has_greatest(kernel_task task) {
  return task == kernel_task::softmax || task == kernel_task::logs;
}

/// A tile of x and a run of y, packed; `more`: what the task has besides, [..][rows].
template <class T>
struct kernel_run {
  T const *x, *y, *x_norms, *y_norms, *x_more, *y_more;
  int count;        // points y
  split_run split;  // of float, where products are made of halves
};

struct kernel_sizes {
  kernel_params how;
  kernel_form form;
  int depth;        // coordinates as packed
  int more_depth;   // of a gradient: right-hand sides as packed
  int sums;         // of a row of x
  bool radial;      // sums over coordinates are those of differences
  bool rows_first;  // whose exponents join the logarithm first
};

/// The threads of a block, one tile of x, the task.
template <kernel_task Task, class T, class Lanes>
class kernel_block {
 public:
  using shape = kernel_shape<T>;
  using lot = lot_of<T>;

  /// sums: [sizes.sums][rows], of this block alone.
  SUBSPAN_DEVICE kernel_block(Lanes const& lanes, kernel_memory<T>& memory,
                              kernel_sizes const& sizes, double* sums, T* greatest)
      : lanes_(lanes), memory_(memory), sizes_(sizes), sums_(sums), greatest_(greatest) {}

  SUBSPAN_DEVICE void clear() {
    one_ = 0;
    if (!alone())
      for (int i = lanes_.rank(); i < sizes_.sums * shape::rows; i += shape::threads) sums_[i] = 0;
    if (is_row()) memory_.greatest[lanes_.rank()] = -std::numeric_limits<T>::infinity();
    lanes_.sync();
  }

  SUBSPAN_DEVICE void add(kernel_run<T> const& run) {
    make_scores(run);
    if constexpr (Task == kernel_task::gradient) weigh_slopes(run);
    lanes_.sync();
    if constexpr (Task == kernel_task::product) {
      if (alone()) {
        with_function<T>(sizes_.how, [&](auto f) {
          one_ += weigh(run.count, run.y_more, [&](T s) { return f.value(s); });
        });
        return;
      }
      with_function<T>(
          sizes_.how, [&](auto f) { apply(run.count, [&](T s, int, int) { return f.value(s); }); });
    } else if constexpr (Task == kernel_task::softmax) {
      raise(run.count);
      apply(run.count, [&](T s, int, int i) { return exp2_of(s - memory_.greatest[i]); });
    } else if constexpr (Task == kernel_task::logs) {
      with_log_function<T>(sizes_.how, [&](auto f) {
        apply(run.count, [&](T s, int j, int) {
          T const all = f.log_value(s) + run.y_more[j];
          return all < lowest() ? lowest() : all;  // infinities do not subtract
        });
      });
      lanes_.sync();
      one_ *= static_cast<double>(raise(run.count));
      T greatest[shape::lot];
      SUBSPAN_UNROLL
      for (int q = 0; q < shape::lot; ++q)
        greatest[q] = memory_.greatest[lanes_.lane() * shape::lot + q];
      one_ += weigh_lanes(run.count, [&](T s, int, int q) { return exp2_of(s - greatest[q]); });
      return;
    } else if constexpr (Task == kernel_task::terms || Task == kernel_task::term_gradient) {
      with_log_function<T>(sizes_.how, [&](auto f) {
        apply(run.count, [&](T s, int j, int i) {
          T const of_x = run.x_more[i], of_y = run.y_more[j];
          T const first = sizes_.rows_first ? of_x : of_y;
          T const second = sizes_.rows_first ? of_y : of_x;
          T value = exp2_of((f.log_value(s) + first) + second);
          if constexpr (Task == kernel_task::term_gradient) value *= f.log_slope(s);
          return value * (run.x_more[shape::rows + i] * run.y_more[shape::rows + j]);
        });
      });
    }
    if constexpr (Task != kernel_task::gradient) lanes_.sync();
    if constexpr (Task == kernel_task::terms)
      one_ += weigh_lanes(run.count, [](T s, int, int) { return s; });
    else if constexpr (Task == kernel_task::product || Task == kernel_task::softmax)
      add_sums<false>(run.count, run.y_more, run.x);
    else if (sizes_.radial)
      add_sums<true>(run.count, run.y, run.x);
    else
      add_sums<false>(run.count, run.y, run.x);
  }

  /// What has not been written yet.
  SUBSPAN_DEVICE void store() {
    if (is_row() && alone()) sums_[lanes_.rank()] = one_;
    if (is_row() && has_greatest(Task)) greatest_[lanes_.rank()] = memory_.greatest[lanes_.rank()];
  }

 private:
  static SUBSPAN_DEVICE T lowest() { return sizeof(T) == 4 ? T(-0x1p120) : T(-0x1p1000); }
  SUBSPAN_DEVICE bool is_row() const { return lanes_.rank() < shape::rows; }
  /// Whether a thread keeps the only sum of its row.
  SUBSPAN_DEVICE bool alone() const {
    return Task == kernel_task::logs || Task == kernel_task::terms ||
           (Task == kernel_task::product && sizes_.sums == 1);
  }
  SUBSPAN_DEVICE T& at(int j, int i) const { return memory_.tile[j * shape::pitch + i]; }
  SUBSPAN_DEVICE lot& lot_at(int j, int i) const { return reinterpret_cast<lot&>(at(j, i)); }
  SUBSPAN_DEVICE int own_x(int c) const { return shape::point(lanes_.rank() % shape::side, c); }
  SUBSPAN_DEVICE int own_y(int r) const { return shape::point(lanes_.rank() / shape::side, r); }

  SUBSPAN_DEVICE void make_scores(kernel_run<T> const& run) {
    constexpr int own = shape::own;
    T sum[own][own];
    if (std::is_same_v<T, float> && run.split.x != nullptr) {
      if (!make_split_scores(run)) return;
    } else if (sizes_.form != kernel_form::differences) {
      multiply_panels<false>(lanes_, memory_, run.x, run.y, sizes_.depth, sum);
      if (sizes_.form == kernel_form::products) return put(sum);
      T x_norm[own];
      SUBSPAN_UNROLL
      for (int c = 0; c < own; ++c) x_norm[c] = run.x_norms[own_x(c)];
      bool cancels = false;
      SUBSPAN_UNROLL
      for (int r = 0; r < own; ++r) {
        T const y_norm = run.y_norms[own_y(r)];
        SUBSPAN_UNROLL
        for (int c = 0; c < own; ++c) {
          T const both = x_norm[c] + y_norm;
          sum[r][c] = both - 2 * sum[r][c];
          cancels |= sum[r][c] < both * k_cancelled;
        }
      }
      put(sum);
      if (!lanes_.any_of_block(cancels)) return;
    }
    multiply_panels<true>(lanes_, memory_, run.x, run.y, sizes_.depth, sum);
    if (sizes_.form == kernel_form::differences) return put(sum);
    // Pair by pair: what becomes of one depends on no other.
    SUBSPAN_UNROLL
    for (int r = 0; r < own; ++r) SUBSPAN_UNROLL
    for (int c = 0; c < own; ++c) {
      T& score = at(own_y(r), own_x(c));
      if (score < (run.x_norms[own_x(c)] + run.y_norms[own_y(r)]) * k_cancelled) score = sum[r][c];
    }
  }

  /// Scores by tensor cores; whether some want to be made again.
  SUBSPAN_DEVICE bool make_split_scores(kernel_run<T> const& run) {
    if constexpr (std::is_same_v<T, float>) {
      bool const expanded = sizes_.form == kernel_form::expanded;
      bool cancels = false;
      multiply_split(lanes_, memory_, run.split, sizes_.depth,
                     [&](float product, float x_norm, float y_norm) {
                       if (!expanded) return product;
                       float const both = x_norm + y_norm, score = both - 2 * product;
                       cancels |= score < both * k_cancelled;
                       return score;
                     });
      return expanded && lanes_.any_of_block(cancels);
    }
    return false;
  }

  SUBSPAN_DEVICE void put(T const (&sum)[shape::own][shape::own]) {
    SUBSPAN_UNROLL
    for (int r = 0; r < shape::own; ++r) SUBSPAN_UNROLL
    for (int half = 0; half < 2; ++half) {
      lot out;
      SUBSPAN_UNROLL
      for (int q = 0; q < shape::lot; ++q) out.at[q] = sum[r][half * shape::lot + q];
      lot_at(own_y(r), own_x(half * shape::lot)) = out;
    }
  }

  /// Scores become slopes times <g_i, v_j>; every thread its own.
  SUBSPAN_DEVICE void weigh_slopes(kernel_run<T> const& run) {
    T sum[shape::own][shape::own];
    multiply_panels<false>(lanes_, memory_, run.x_more, run.y_more, sizes_.more_depth, sum);
    with_function<T>(sizes_.how, [&](auto f) {
      SUBSPAN_UNROLL
      for (int r = 0; r < shape::own; ++r) SUBSPAN_UNROLL
      for (int c = 0; c < shape::own; ++c) {
        T& score = at(own_y(r), own_x(c));
        score = own_y(r) < run.count ? f.slope(score) * sum[r][c] : T(0);
      }
    });
  }

  /// tile = value(tile, j, i), and 0 beyond the points y.
  template <class Value>
  SUBSPAN_DEVICE void apply(int count, Value const& value) {
    SUBSPAN_NO_UNROLL
    for (int j = lanes_.warp(); j < shape::rows; j += shape::warps) {
      int const i = lanes_.lane() * shape::lot;
      lot all = lot_at(j, i);
      SUBSPAN_UNROLL
      for (int q = 0; q < shape::lot; ++q)
        all.at[q] = j < count ? value(all.at[q], j, i + q) : T(0);
      lot_at(j, i) = all;
    }
  }

  /// The sum over j of value(tile, j, q) in row rank(), q being the place within the lot.
  template <class Value>
  SUBSPAN_DEVICE double weigh_lanes(int count, Value const& value) {
    constexpr int share = shape::rows / shape::warps;
    int const first = lanes_.warp() * share, i = lanes_.lane() * shape::lot;
    int const last = first + share < count ? first + share : count;
    lot sum = {};
    SUBSPAN_UNROLL_4
    for (int j = first; j < last; ++j) {
      lot const all = lot_at(j, i);
      SUBSPAN_UNROLL
      for (int q = 0; q < shape::lot; ++q) sum.at[q] += value(all.at[q], j, q);
    }
    reinterpret_cast<lot&>(memory_.partial[lanes_.warp() * shape::rows + i]) = sum;
    lanes_.sync();
    double total = 0;
    if (is_row())
      for (int w = 0; w < shape::warps; ++w)
        total += static_cast<double>(memory_.partial[w * shape::rows + lanes_.rank()]);
    return total;
  }
  template <class Value>
  SUBSPAN_DEVICE double weigh(int count, T const* v, Value const& value) {
    return weigh_lanes(count, [&](T s, int j, int) { return value(s) * v[j]; });
  }

  /// Lets `greatest` see a run; sums so far shrink. Returns by what, for row rank().
  SUBSPAN_DEVICE T raise(int count) {
    lot most;
    SUBSPAN_UNROLL
    for (int q = 0; q < shape::lot; ++q) most.at[q] = -std::numeric_limits<T>::infinity();
    int const i = lanes_.lane() * shape::lot;
    for (int j = lanes_.warp(); j < count; j += shape::warps) {
      lot const all = lot_at(j, i);
      SUBSPAN_UNROLL
      for (int q = 0; q < shape::lot; ++q)
        if (all.at[q] > most.at[q]) most.at[q] = all.at[q];
    }
    reinterpret_cast<lot&>(memory_.partial[lanes_.warp() * shape::rows + i]) = most;
    lanes_.sync();
    T change = 1;
    if (is_row()) {
      T const before = memory_.greatest[lanes_.rank()];
      T now = before;
      for (int w = 0; w < shape::warps; ++w) {
        T const other = memory_.partial[w * shape::rows + lanes_.rank()];
        if (other > now) now = other;
      }
      memory_.greatest[lanes_.rank()] = now;
      change = exp2_of(before - now);
      if (!alone() && change != 1)
        for (int k = 0; k < sizes_.sums; ++k)
          sums_[k * shape::rows + lanes_.rank()] *= static_cast<double>(change);
    }
    lanes_.sync();
    return change;
  }

  /// sums[k] += the sum over j of tile y[k][j], or of tile (x[k] - y[k][j]).
  template <bool Differences>
  SUBSPAN_DEVICE void add_sums(int count, T const* y, T const* x) {
    constexpr int together = 2;  // sums that a thread makes of each of its rows
    int const of_x = lanes_.rank() % shape::side, of_k = lanes_.rank() / shape::side;
    SUBSPAN_NO_UNROLL
    for (int first = of_k; first < sizes_.sums; first += together * shape::side) {
      T const* from[together];
      T sum[together][shape::own] = {}, own[together][shape::own] = {};
      SUBSPAN_UNROLL
      for (int s = 0; s < together; ++s) {
        int const k = first + s * shape::side < sizes_.sums ? first + s * shape::side : first;
        from[s] = y + k * shape::rows;
        if constexpr (Differences) {
          SUBSPAN_UNROLL
          for (int c = 0; c < shape::own; ++c) own[s][c] = x[k * shape::rows + own_x(c)];
        }
      }
      SUBSPAN_NO_UNROLL
      for (int j = 0; j < count; j += shape::lot) {
        lot weights[together];
        SUBSPAN_UNROLL
        for (int s = 0; s < together; ++s) weights[s] = *reinterpret_cast<lot const*>(from[s] + j);
        SUBSPAN_UNROLL
        for (int q = 0; q < shape::lot; ++q) {
          lot const all[2] = {lot_at(j + q, of_x * shape::lot),
                              lot_at(j + q, (of_x + shape::side) * shape::lot)};
          SUBSPAN_UNROLL
          for (int s = 0; s < together; ++s) SUBSPAN_UNROLL
          for (int c = 0; c < shape::own; ++c) {
            T const of_y = weights[s].at[q];
            sum[s][c] +=
                all[c / shape::lot].at[c % shape::lot] * (Differences ? own[s][c] - of_y : of_y);
          }
        }
      }
      SUBSPAN_UNROLL
      for (int s = 0; s < together; ++s) {
        int const k = first + s * shape::side;
        if (k >= sizes_.sums) continue;
        SUBSPAN_UNROLL
        for (int c = 0; c < shape::own; ++c)
          sums_[k * shape::rows + own_x(c)] += static_cast<double>(sum[s][c]);
      }
    }
  }

  static constexpr T k_cancelled = T(1) / 64;

  Lanes const& lanes_;
  kernel_memory<T>& memory_;
  kernel_sizes const& sizes_;
  double* sums_;
  T* greatest_;
  double one_ = 0;
};

}  // namespace subspan::gpu
