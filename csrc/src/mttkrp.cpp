#include "subspan/mttkrp.hpp"

#include <algorithm>
#include <vector>

#include "detail/batched.hpp"
#include "detail/dtypes.hpp"
#include "detail/mttkrp_kernels.hpp"
#include "detail/mttkrp_plan.hpp"
#include "detail/product_tile.hpp"

#define SUBSPAN_FILE "mttkrp.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {
#include "detail/product_tile.inl.hpp"

#include "detail/gram_tiles.inl.hpp"

#include "detail/mttkrp_kernels.inl.hpp"
}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace subspan {
namespace {

/// Columns that are worked on together: a slab of the tensor meets them while it is in a cache.
constexpr index_t k_columns = 256;

/// One tensor and the factors of one or several members of the batch, side by side as columns.
template <class T>
class mttkrp_job {
 public:
  using plan = detail::mttkrp_plan;
  using factor_view = strided_view<T const, 3>;

  mttkrp_job(context const& ctx, plan const& walk, T const* x,
             std::vector<factor_view> const& factors, int mode, index_t first, index_t count,
             strided_view<T, 3> out)
      : ctx_(ctx),
        walk_(walk),
        x_(x),
        mode_(mode),
        first_(first),
        count_(count),
        columns_(count * out.shape[2]),
        rows_(out.shape[1]),
        out_(out),
        packed_(ctx, room(factors)),
        kernels_(SUBSPAN_PICK(mttkrp_table<T>)) {
    T* to = packed_.data();
    for (std::size_t n = 0; n < factors.size(); ++n) {
      extents_.push_back(factors[n].shape[1]);
      factors_.push_back(static_cast<int>(n) == mode ? nullptr : pack(factors[n], to));
    }
    if (walk_.at != plan::place::columns) of_columns_ = table(walk_.columns, to);
    if (walk_.at != plan::place::rows) of_rows_ = table(walk_.rows, to);
  }

  void run() {
    index_t const parts = walk_.parts, size = rows_ * columns_;
    bool const direct = parts == 1 && count_ == 1;
    workspace sums(ctx_, direct ? 0 : parts * size);
    T* const to = direct ? out_.data + first_ * size : sums.data();
    index_t const tasks = parts * walk_.targets;
    double const share = flops(walk_, columns_) / static_cast<double>(tasks);
    detail::parallel_for(ctx_, tasks,
                         static_cast<index_t>(detail::k_chunk_flops / std::max(share, 1.0)) + 1,
                         [&](index_t begin, index_t end) {
                           scratch memory(ctx_, walk_, columns_);
                           for (index_t task = begin; task < end; ++task)
                             make(memory, task % walk_.targets, task / walk_.targets,
                                  to + task / walk_.targets * size);
                         });
    if (direct) return;
    for (index_t part = 1; part < parts; ++part)
      for (index_t i = 0; i < size; ++i) to[i] += to[part * size + i];
    index_t const r = out_.shape[2];
    for (index_t b = 0; b < count_; ++b)
      for (index_t i = 0; i < rows_; ++i)
        std::copy_n(to + i * columns_ + b * r, r, out_.data + ((first_ + b) * rows_ + i) * r);
  }

  static double flops(plan const& walk, index_t columns) {
    return 2.0 * static_cast<double>(walk.elements) * static_cast<double>(columns);
  }

 private:
  using workspace = detail::workspace<T>;

  /// Of a thread: a product of a slab or its weighted rows, and the weights.
  struct scratch {
    scratch(context const& ctx, plan const& walk, index_t columns)
        : block(ctx, walk.row_pieces.size * columns), weight(ctx, columns) {}
    workspace block, weight;
    plan::slab slab;
  };

  index_t room(std::vector<factor_view> const& factors) const {
    index_t rows = walk_.rows.extent + walk_.columns.extent;
    for (auto const& factor : factors) rows += factor.shape[1];
    return rows * columns_;
  }

  /// The factor [I, columns] of all members; where it lies, or at `to`.
  T const* pack(factor_view const& from, T*& to) const {
    index_t const n = from.shape[1], r = from.shape[2];
    T const* const source = from.data + first_ * from.strides[0];
    if (count_ == 1 && (r <= 1 || from.strides[2] == 1) && (n <= 1 || from.strides[1] == r))
      return source;
    T* const start = to;
    for (index_t i = 0; i < n; ++i)
      for (index_t b = 0; b < count_; ++b, to += r) {
        T const* const row = source + b * from.strides[0] + i * from.strides[1];
        for (index_t c = 0; c < r; ++c) to[c] = row[c * from.strides[2]];
      }
    return start;
  }

  /// The Khatri-Rao product of the modes of a group, the last of them fastest.
  T const* table(detail::mttkrp_group const& group, T*& to) const {
    std::size_t n = group.modes.size() - 1;
    if (n == 0) return factors_[group.modes.front()];
    T* const start = to;
    to += group.extent * columns_;
    index_t made = extents_[group.modes[n]];
    std::copy_n(factors_[group.modes[n]], made * columns_, start);
    while (n-- > 0) {
      index_t const extent = extents_[group.modes[n]];
      // The first rows are those that all others are made of.
      for (index_t i = extent; i-- > 0;)
        kernels_.scale_rows(made, columns_, start, factors_[group.modes[n]] + i * columns_,
                            start + i * made * columns_);
      made *= extent;
    }
    return start;
  }

  /// What part `part` of the items adds to the rows of a target.
  void make(scratch& memory, index_t target, index_t part, T* sums) const {
    index_t const length = walk_.at == plan::place::rows      ? walk_.row_pieces.length(target)
                           : walk_.at == plan::place::columns ? walk_.column_pieces.length(target)
                                                              : 1;
    T* const to = sums + walk_.first(target) * columns_;
    std::fill_n(to, length * columns_, T{0});
    index_t const end = walk_.items * (part + 1) / walk_.parts;
    for (index_t item = walk_.items * part / walk_.parts; item < end; ++item) {
      walk_.locate(target, item, memory.slab);
      add(memory, to);
    }
  }

  void add(scratch& memory, T* to) const {
    plan::slab const& slab = memory.slab;
    T* const weight = memory.weight.data();
    std::fill_n(weight, columns_, T{1});
    for (std::size_t n = 0; n < walk_.outer.size(); ++n) {
      int const mode = walk_.outer[n].modes.front();
      if (mode == mode_) continue;
      T const* const row = factors_[mode] + slab.index[n] * columns_;
      for (index_t c = 0; c < columns_; ++c) weight[c] *= row[c];
    }
    T* const block = memory.block.data();
    detail::gram_block<T> product{};
    product.x = x_ + slab.offset;
    product.columns = product.corner = product.pitch = product.y_row = columns_;
    product.y_column = 1;
    if (walk_.at == plan::place::columns) {
      fetch(slab);
      kernels_.scale_rows(slab.rows, columns_, of_rows_ + slab.first_row * columns_, weight, block);
      product.x_row = walk_.rows.stride;
      product.x_column = walk_.columns.stride;
      product.y = block;
      product.depth = slab.rows;
      product.rows = slab.columns;
      product.out = to;
      kernels_.multiply_add(product);
      return;
    }
    product.x_row = walk_.columns.stride;
    product.x_column = walk_.rows.stride;
    product.y = of_columns_ + slab.first_column * columns_;
    product.depth = slab.columns;
    product.rows = slab.rows;
    product.out = block;
    kernels_.multiply(product);
    if (walk_.at == plan::place::rows)
      kernels_.add_rows(slab.rows, columns_, block, weight, to);
    else
      kernels_.dot_rows(slab.rows, columns_, block, of_rows_ + slab.first_row * columns_, weight,
                        to);
  }

  /// Tiles read a slab in strips of columns, which no hardware foresees: asks for it in its order.
  void fetch(plan::slab const& slab) const {
    constexpr index_t line = 64 / static_cast<index_t>(sizeof(T));
    if (walk_.columns.stride != 1) return;
    for (index_t t = 0; t < slab.rows; ++t) {
      T const* const row = x_ + slab.offset + t * walk_.rows.stride;
      for (index_t k = 0; k < slab.columns; k += line) __builtin_prefetch(row + k, 0, 2);
    }
  }

  context const& ctx_;
  plan const& walk_;
  T const* x_;
  int mode_;
  index_t first_, count_, columns_, rows_;
  strided_view<T, 3> out_;
  workspace packed_;
  detail::mttkrp_kernels<T> kernels_;
  std::vector<index_t> extents_;
  std::vector<T const*> factors_;
  T const *of_rows_ = nullptr, *of_columns_ = nullptr;
};

template <class T>
void check(mttkrp_tensor<T> const& x, std::vector<strided_view<T const, 3>> const& factors,
           int mode, strided_view<T, 3> const& out) {
  constexpr char const* function = "mttkrp";
  detail::require_cpu(function, x.device);
  auto const order = static_cast<index_t>(x.shape.size()) - 1;
  detail::expects(order >= 2 && x.strides.size() == x.shape.size(), function,
                  "x must have a batch axis and 2 or more modes, with a stride for each, got ",
                  x.shape.size(), " axes and ", x.strides.size(), " strides");
  detail::expects(static_cast<index_t>(factors.size()) == order, function,
                  "factors must be one for each of the ", order, " modes of x, got ",
                  factors.size());
  detail::expects(mode >= 0 && mode < order, function, "mode must be in 0..", order - 1, ", got ",
                  mode);
  index_t const batch = x.shape[0], columns = out.shape[2];
  for (index_t n = 0; n < order; ++n)
    detail::expects(
        n == mode || (factors[n].shape == std::array<index_t, 3>{batch, x.shape[n + 1], columns} &&
                      factors[n].device == x.device),
        function, "factor ", n, " must be [", batch, ", ", x.shape[n + 1], ", ", columns,
        "], on the device of x, got [", factors[n].shape[0], ", ", factors[n].shape[1], ", ",
        factors[n].shape[2], "]");
  detail::expects(out.shape[0] == batch && out.shape[1] == x.shape[mode + 1] &&
                      out.is_row_major() && out.device == x.device,
                  function, "out must be C-ordered, [", batch, ", ", x.shape[mode + 1],
                  ", R], on the device of x, got [", out.shape[0], ", ", out.shape[1], ", ",
                  out.shape[2], "]");
  for (index_t n = 0; n < order; ++n)
    detail::expects(n == mode || !overlaps(out, factors[n]), function,
                    "out must not overlap a factor, got overlap with factor ", n);
  strided_view<T const, 1> reach{x.data, {1}, {1}, x.device};
  for (std::size_t axis = 0; axis < x.shape.size(); ++axis) {
    index_t const last = (x.shape[axis] - 1) * x.strides[axis];
    if (x.shape[axis] == 0) reach.shape[0] = 0;
    if (last < 0) reach.data += last;
    reach.shape[0] += reach.shape[0] == 0 ? 0 : std::abs(last);
  }
  detail::expects(!overlaps(out, reach), function, "out must not overlap x");
}

}  // namespace

inline namespace SUBSPAN_ABI {

template <class T>
void mttkrp(context const& ctx, mttkrp_tensor<T> const& x,
            std::vector<strided_view<T const, 3>> const& factors, int mode,
            strided_view<T, 3> out) {
  check(x, factors, mode, out);
  index_t const batch = x.shape[0], columns = out.shape[2];
  if (out.size() == 0) return;
  std::vector<index_t> const shape(x.shape.begin() + 1, x.shape.end());
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) {
    std::fill_n(out.data, out.size(), T{0});
    return;
  }
  detail::mttkrp_plan const walk(shape, {x.strides.begin() + 1, x.strides.end()}, mode);
  // Members that share the tensor are columns of one problem, of which a small one is not cut itself.
  bool const whole = walk.parts * walk.targets == 1;
  index_t const most = x.strides[0] != 0 ? 1 : (whole ? k_columns / 4 : k_columns) / columns;
  index_t const jobs = (batch + std::max<index_t>(most, 1) - 1) / std::max<index_t>(most, 1);
  index_t const together = (batch + jobs - 1) / jobs;
  auto const range = [&](index_t begin, index_t end) {
    for (index_t job = begin; job < end; ++job) {
      index_t const first = job * together, count = std::min(together, batch - first);
      mttkrp_job<T>(ctx, walk, x.data + first * x.strides[0], factors, mode, first, count, out)
          .run();
    }
  };
  double const flops = mttkrp_job<T>::flops(walk, together * columns);
  if (whole || jobs >= 4 * detail::thread_count(ctx))
    detail::parallel_for(ctx, jobs, static_cast<index_t>(detail::k_chunk_flops / flops) + 1, range);
  else
    range(0, jobs);
}

#define SUBSPAN_INSTANTIATE(T)                                     \
  template void mttkrp<T>(context const&, mttkrp_tensor<T> const&, \
                          std::vector<strided_view<T const, 3>> const&, int, strided_view<T, 3>);
SUBSPAN_FOREACH_REAL(SUBSPAN_INSTANTIATE)
#undef SUBSPAN_INSTANTIATE

}  // namespace v0
}  // namespace subspan
#endif  // SUBSPAN_ONCE
