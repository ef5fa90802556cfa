#include "subspan/gram.hpp"

#include <span>
#include <vector>

#include "detail/batched.hpp"
#include "detail/dtypes.hpp"
#include "detail/gram_block.hpp"
#include "detail/product_tile.hpp"
#include "detail/symmetric_blocks.hpp"

#define SUBSPAN_FILE "gram.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {
#include "detail/product_tile.inl.hpp"

#include "detail/gram_tiles.inl.hpp"
}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace subspan {
namespace {

/// The smaller side up to which our tiles multiply; larger products go to BLAS.
constexpr index_t k_tiled_limit = 128;
/// Rows of the result that one task works out: a quarter of them, so that threads share a single
/// product, but no less than this, nor more than four times this, as BLAS packs y for each group.
constexpr index_t k_group_rows = 64;
/// Rows of a part of a long matrix, how many parts there may be, and elements of all their sums.
constexpr index_t k_part_rows = 4096, k_most_parts = 64, k_part_elements = index_t{1} << 20;
/// Elements of the tiles of all row Grams, least and largest side of a tile (a quarter of the rows at
/// most, so that threads share few rows too), and entries whose products are summed in the dtype of
/// the tiles. Between tiles a gap, as lines a multiple of 4096 bytes apart evict each other.
constexpr index_t k_row_elements = index_t{1} << 22, k_row_least = 64, k_row_most = 512;
constexpr index_t k_row_gap = 80;
constexpr index_t k_row_run = 4096;

/// A matrix with its rows or columns contiguous, as BLAS reads it; a copy where it has neither.
template <class T>
struct operand {
  operand(context const& ctx, T const* from, index_t row, index_t column, index_t rows,
          index_t columns)
      : data(from) {
    auto const fits = [](index_t step, index_t least) {
      return step >= std::max<index_t>(least, 1) && step <= 2147483647;
    };
    along_columns = row == 1 && fits(column, rows);
    pitch = static_cast<int>(along_columns ? column : row);
    if (along_columns || (column == 1 && fits(row, columns))) return;
    copy.emplace(ctx, rows * columns);
    for (index_t i = 0; i < rows; ++i)
      for (index_t j = 0; j < columns; ++j) (*copy)[i * columns + j] = from[i * row + j * column];
    data = copy->data();
    pitch = static_cast<int>(columns);
  }
  T const* data;
  int pitch;
  bool along_columns;
  std::optional<detail::workspace<T>> copy;
};

/// One product of a batch. How it is cut depends on its shape alone, and so do its bits.
template <class T>
class product {
 public:
  product(strided_view<T const, 3> x, strided_view<T const, 3> y, strided_view<T, 3> out,
          bool symmetric)
      : x_(x), y_(y), out_(out), n_(x.shape[1]), p_(out.shape[1]), q_(out.shape[2]) {
    symmetric_ = symmetric;
    index_t const quarter = (p_ + 4 * k_group_rows - 1) / (4 * k_group_rows) * k_group_rows;
    group_ = std::clamp(quarter, k_group_rows, 4 * k_group_rows);
    index_t const room = k_part_elements / std::max<index_t>(p_ * q_, 1);
    parts_ = std::clamp<index_t>(n_ / k_part_rows, 1, std::clamp<index_t>(room, 1, k_most_parts));
    part_ = (n_ + parts_ - 1) / parts_;
  }

  index_t batch() const { return out_.shape[0]; }
  index_t elements() const { return p_ * q_; }
  index_t parts() const { return parts_; }
  index_t groups() const { return (p_ + group_ - 1) / group_; }
  double flops() const {
    return (symmetric_ ? 1.0 : 2.0) * static_cast<double>(n_) * static_cast<double>(p_ * q_);
  }

  /// A group of rows of the result of matrix b, from all parts.
  void make(context const& ctx, index_t b, index_t group) const {
    T* const out = out_.data + b * elements();
    index_t const begin = group * group_, end = std::min(begin + group_, p_);
    multiply(ctx, b, 0, begin, end, out);
    if (parts_ > 1) {
      workspace sum(ctx, p_ * q_);
      for (index_t part = 1; part < parts_; ++part) {
        multiply(ctx, b, part, begin, end, sum.data());
        add(sum.data(), begin, end, out);
      }
    }
    if (symmetric_) mirror(begin, end, out);
  }

  /// The sum of one part of matrix b, [p, q]; and the result from those of all of them.
  void make_part(context const& ctx, index_t b, index_t part, T* sum) const {
    for (index_t begin = 0; begin < p_; begin += group_)
      multiply(ctx, b, part, begin, std::min(begin + group_, p_), sum);
  }
  void join(index_t b, T const* sums) const {
    T* const out = out_.data + b * elements();
    std::copy_n(sums, elements(), out);
    for (index_t part = 1; part < parts_; ++part) add(sums + part * elements(), 0, p_, out);
    if (symmetric_) mirror(0, p_, out);
  }

 private:
  using workspace = detail::workspace<T>;

  index_t columns(index_t end) const { return symmetric_ ? end : q_; }

  /// Rows [begin, end) of the sum [p, q] of one part; if symmetric, what lies left of the diagonal.
  void multiply(context const& ctx, index_t b, index_t part, index_t begin, index_t end,
                T* sum) const {
    index_t const first = part * part_, depth = std::min(part_, n_ - first);
    detail::gram_block<T> block{
        x_.data + b * x_.strides[0] + first * x_.strides[1] + begin * x_.strides[2],
        x_.strides[1],
        x_.strides[2],
        y_.data + b * y_.strides[0] + first * y_.strides[1],
        y_.strides[1],
        y_.strides[2],
        depth,
        end - begin,
        columns(end),
        symmetric_ ? begin : q_,
        sum + begin * q_,
        q_};
    if (depth == 0) {
      for (index_t i = 0; i < block.rows; ++i) std::fill_n(block.out + i * q_, block.columns, T{0});
    } else if (std::min(p_, q_) <= k_tiled_limit) {
      auto const& kernel = SUBSPAN_PICK(gram_kernels<T>);
      workspace scratch(ctx, block.y_column == 1 ? 0 : kernel.scratch);
      kernel.run(block, scratch.data());
    } else {
      by_blas(ctx, block);
    }
  }

  /// BLAS reads columns: the transpose y^T x, of which y^T is what lies in memory.
  static void by_blas(context const& ctx, detail::gram_block<T> const& block) {
    operand<T> const x(ctx, block.x, block.x_row, block.x_column, block.depth, block.rows);
    operand<T> const y(ctx, block.y, block.y_row, block.y_column, block.depth, block.columns);
    detail::gemm(y.along_columns ? 'T' : 'N', x.along_columns ? 'N' : 'T',
                 static_cast<int>(block.columns), static_cast<int>(block.rows),
                 static_cast<int>(block.depth), y.data, y.pitch, x.data, x.pitch, block.out,
                 static_cast<int>(block.pitch));
  }

  void add(T const* sum, index_t begin, index_t end, T* out) const {
    for (index_t i = begin; i < end; ++i)
      for (index_t j = 0; j < columns(i + 1); ++j) out[i * q_ + j] += sum[i * q_ + j];
  }

  void mirror(index_t begin, index_t end, T* out) const {
    for (index_t i = begin; i < end; ++i)
      for (index_t j = 0; j < i; ++j) out[j * q_ + i] = out[i * q_ + j];
  }

  strided_view<T const, 3> x_, y_;
  strided_view<T, 3> out_;
  bool symmetric_;
  index_t n_, p_, q_, group_, parts_, part_;
};

/// All products of a matrix by one thread where there are matrices enough.
template <class T>
void multiply_all(context const& ctx, std::span<product<T> const> products) {
  detail::blas_scope const scope;
  index_t const batch = products.front().batch();
  double flops = 1;
  bool single = true;
  for (auto const& each : products) {
    flops += each.flops();
    single &= each.groups() == 1;
  }
  index_t const grain = static_cast<index_t>(detail::k_chunk_flops / flops) + 1;
  if (single && batch >= 4 * detail::thread_count(ctx)) {
    detail::parallel_for(ctx, batch, grain, [&](index_t begin, index_t end) {
      for (index_t b = begin; b < end; ++b)
        for (auto const& each : products) each.make(ctx, b, 0);
    });
    return;
  }
  for (auto const& each : products) {
    bool const in_parts = each.parts() > 1 && batch * each.groups() < 4 * detail::thread_count(ctx);
    if (!in_parts) {
      index_t const groups = each.groups();
      double const share = std::max(each.flops(), 1.0) / static_cast<double>(groups);
      detail::parallel_for(ctx, batch * groups,
                           static_cast<index_t>(detail::k_chunk_flops / share) + 1,
                           [&](index_t begin, index_t end) {
                             for (index_t item = begin; item < end; ++item)
                               each.make(ctx, item / groups, item % groups);
                           });
      continue;
    }
    index_t const parts = each.parts();
    detail::workspace<T> sums(ctx, batch * parts * each.elements());
    detail::parallel_for(ctx, batch * parts, 1, [&](index_t begin, index_t end) {
      for (index_t item = begin; item < end; ++item)
        each.make_part(ctx, item / parts, item % parts, sums.data() + item * each.elements());
    });
    for (index_t b = 0; b < batch; ++b) each.join(b, sums.data() + b * parts * each.elements());
  }
}

/// Inner products of the row Grams x x^T of many matrices, a block of all of them at a time.
template <class T>
class row_grams {
 public:
  explicit row_grams(std::vector<strided_view<T const, 2>> const& xs)
      : xs_(xs), many_(static_cast<index_t>(xs.size())) {
    index_t const n = xs.front().shape[0];
    index_t side = k_row_least;
    for (index_t next = side; next <= std::min(k_row_most, n / 4 + k_row_least - 1) &&
                              next * next * many_ <= k_row_elements;
         next += k_row_least)
      side = next;
    detail::cover_symmetric(0, n, side, blocks_);
    // Bounds on the sums of all parts, which are added up in order.
    index_t const room = k_part_elements / (many_ * many_);
    index_t const parts = std::clamp<index_t>(room, 1, k_most_parts);
    grain_ = (static_cast<index_t>(blocks_.size()) + parts - 1) / parts;
    area_ = side * side + k_row_gap;
  }

  void run(context const& ctx, double* out) const {
    index_t const count = static_cast<index_t>(blocks_.size());
    index_t const parts = (count + grain_ - 1) / grain_, table = many_ * many_;
    detail::blas_scope const scope;
    detail::workspace<double> sums(ctx, parts * table);
    std::fill_n(sums.data(), parts * table, 0.0);
    detail::parallel_for(ctx, count, grain_, [&](index_t begin, index_t end) {
      detail::workspace<T> tiles(ctx, many_ * area_), products(ctx, table);
      detail::workspace<T> scratch(ctx, SUBSPAN_PICK(gram_kernels<T>).scratch);
      for (index_t b = begin; b < end; ++b) {
        for (index_t l = 0; l < many_; ++l)
          multiply(ctx, xs_[l], blocks_[b], tiles.data() + l * area_);
        add(blocks_[b], tiles.data(), products.data(), scratch.data(),
            sums.data() + begin / grain_ * table);
      }
    });
    for (index_t i = 0; i < many_; ++i)
      for (index_t j = 0; j <= i; ++j) {
        double sum = 0;
        for (index_t part = 0; part < parts; ++part) sum += sums[part * table + i * many_ + j];
        out[i * many_ + j] = out[j * many_ + i] = sum;
      }
  }

 private:
  /// tile[rows, columns] = x[rows] x[columns]^T; BLAS makes the transpose, in columns.
  static void multiply(context const& ctx, strided_view<T const, 2> const& x,
                       detail::symmetric_block const& block, T* tile) {
    index_t const depth = x.shape[1];
    if (depth == 0 || block.rows == 0) {
      std::fill_n(tile, block.rows * block.columns, T{0});
      return;
    }
    auto const [row, column] = x.strides;
    operand<T> const a(ctx, x.data + block.row * row, row, column, block.rows, depth);
    operand<T> const b(ctx, x.data + block.column * row, row, column, block.columns, depth);
    detail::gemm(b.along_columns ? 'N' : 'T', a.along_columns ? 'T' : 'N',
                 static_cast<int>(block.columns), static_cast<int>(block.rows),
                 static_cast<int>(depth), b.data, b.pitch, a.data, a.pitch, tile,
                 static_cast<int>(block.columns));
  }

  /// Adds the products of tiles, of which only the first entries are those of the block.
  void add(detail::symmetric_block const& block, T const* tiles, T* products, T* scratch,
           double* sums) const {
    index_t const entries = block.rows * block.columns;
    for (index_t first = 0; first < entries; first += k_row_run) {
      detail::gram_block<T> const run{tiles + first,
                                      1,
                                      area_,
                                      tiles + first,
                                      1,
                                      area_,
                                      std::min(k_row_run, entries - first),
                                      many_,
                                      many_,
                                      0,
                                      products,
                                      many_};
      SUBSPAN_PICK(gram_kernels<T>).run(run, scratch);
      for (index_t i = 0; i < many_; ++i)
        for (index_t j = 0; j <= i; ++j)
          sums[i * many_ + j] += block.weight * static_cast<double>(products[i * many_ + j]);
    }
  }

  std::vector<strided_view<T const, 2>> const& xs_;
  std::vector<detail::symmetric_block> blocks_;
  index_t many_, grain_, area_;
};

template <class T>
void check_input(char const* function, strided_view<T const, 3> const& x,
                 strided_view<T const, 3> const& y) {
  detail::require_cpu(function, x.device);
  detail::expects(x.shape[0] == y.shape[0] && x.shape[1] == y.shape[1] && y.device == x.device,
                  function, "y must be [", x.shape[0], ", ", x.shape[1],
                  ", q], on the device of x, got [", y.shape[0], ", ", y.shape[1], ", ", y.shape[2],
                  "]");
  for (index_t extent : {x.shape[1], x.shape[2], y.shape[2]})
    detail::expects(extent <= 2147483647, function,
                    "matrices must have fewer than 2^31 rows and columns, got ", extent);
}

template <class T>
product<T> checked(char const* function, char const* name, strided_view<T const, 3> x,
                   strided_view<T const, 3> y, strided_view<T, 3> out, bool symmetric) {
  detail::check_output<T, 3>(function, name, out, {x.shape[0], x.shape[2], y.shape[2]}, x);
  detail::expects(!overlaps(out, y), function, name, " must not overlap y");
  return {x, y, out, symmetric};
}

}  // namespace

inline namespace SUBSPAN_ABI {

template <class T>
void gram(context const& ctx, strided_view<T const, 3> x, strided_view<T const, 3> y,
          strided_view<T, 3> out) {
  check_input("gram", x, y);
  product<T> const one[] = {checked("gram", "out", x, y, out, false)};
  multiply_all<T>(ctx, one);
}

template <class T>
void gram(context const& ctx, strided_view<T const, 3> x, strided_view<T, 3> out) {
  check_input("gram", x, x);
  product<T> const one[] = {checked("gram", "out", x, x, out, true)};
  multiply_all<T>(ctx, one);
}

template <class T>
void grams(context const& ctx, strided_view<T const, 3> x, strided_view<T const, 3> y,
           strided_view<T, 3> xx, strided_view<T, 3> xy, strided_view<T, 3> yy) {
  check_input("grams", x, y);
  product<T> const all[] = {checked("grams", "xx", x, x, xx, true),
                            checked("grams", "xy", x, y, xy, false),
                            checked("grams", "yy", y, y, yy, true)};
  multiply_all<T>(ctx, all);
}

template <class T>
void gram_inner(context const& ctx, std::vector<strided_view<T const, 2>> const& xs,
                strided_view<double, 2> out) {
  constexpr char const* function = "gram_inner";
  auto const many = static_cast<index_t>(xs.size());
  detail::expects(many > 0, function, "xs must have at least one matrix, got none");
  for (auto const& x : xs) {
    detail::require_cpu(function, x.device);
    detail::expects(x.shape[0] == xs.front().shape[0] && x.shape[1] <= 2147483647, function,
                    "xs must have ", xs.front().shape[0], " rows and fewer than 2^31 columns, got ",
                    x.shape[0], " x ", x.shape[1]);
  }
  detail::expects(out.shape == std::array<index_t, 2>{many, many} && out.is_row_major() &&
                      out.device == xs.front().device,
                  function, "out must be C-ordered, [", many, ", ", many, "], on the CPU");
  row_grams<T>(xs).run(ctx, out.data);
}

#define SUBSPAN_INSTANTIATE(T)                                                               \
  template void gram<T>(context const&, strided_view<T const, 3>, strided_view<T const, 3>,  \
                        strided_view<T, 3>);                                                 \
  template void gram<T>(context const&, strided_view<T const, 3>, strided_view<T, 3>);       \
  template void grams<T>(context const&, strided_view<T const, 3>, strided_view<T const, 3>, \
                         strided_view<T, 3>, strided_view<T, 3>, strided_view<T, 3>);        \
  template void gram_inner<T>(context const&, std::vector<strided_view<T const, 2>> const&,  \
                              strided_view<double, 2>);
SUBSPAN_FOREACH_REAL(SUBSPAN_INSTANTIATE)
#undef SUBSPAN_INSTANTIATE

}  // namespace v0
}  // namespace subspan
#endif  // SUBSPAN_ONCE
