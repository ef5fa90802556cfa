#include "subspan/decode.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <bit>
#include <numeric>
#include <sstream>
#include <utility>

#include "detail/contract.hpp"
#include "detail/cuda_views.hpp"
#include "detail/dtypes.hpp"
#include "detail/list_sums.hpp"
#include "detail/product_tile.hpp"
#include "detail/route.hpp"
#include "detail/sparse_lists.hpp"

#define SUBSPAN_FILE "decode.cpp"
#include "detail/foreach_level.hpp"

namespace subspan::cpu::SUBSPAN_LEVEL {
namespace {
// In this order: the later ones need the earlier.
// clang-format off
#include "detail/widen.inl.hpp"
#include "detail/narrow.inl.hpp"
#include "detail/product_tile.inl.hpp"
#include "detail/transpose.inl.hpp"
#include "detail/gather_rows.inl.hpp"
// clang-format on
}  // namespace
}  // namespace subspan::cpu::SUBSPAN_LEVEL

#if SUBSPAN_ONCE

namespace subspan {
namespace {

using detail::expects;
using detail::wide;
using detail::workspace;

/// What the entries below share: kernels, checks, and sums over all rows of a matrix.
template <class T>
class task {
 public:
  using P = wide<T>;
  using call_type = detail::list_sums_call<T>;

  task(context const& ctx, char const* function, sparse_code<T> const& code)
      : ctx(ctx),
        function(function),
        kernels(SUBSPAN_PICK(list_sums_table<T>)),
        where_(code.values.device) {
    beside("indices", code.indices);
    if (code.offsets.data != nullptr) beside("offsets", code.offsets);
  }

  /// Runs the CPU's part or the device's: cuda(table, message, size) returns a status.
  template <class Cpu, class Cuda>
  void route(Cpu&& cpu, Cuda&& cuda) const {
    detail::route(function, where_, cpu, [&](subspan_cuda_table const& table) {
      char message[256] = {};
      detail::check_cuda(function, cuda(table, message, static_cast<int>(sizeof message)), message);
    });
  }

  template <class View>
  void input(char const* name, View const& view, decltype(View::shape) wanted) const {
    auto const list = [](auto const& shape) {
      std::ostringstream text;
      for (std::size_t axis = 0; axis < shape.size(); ++axis)
        text << (axis == 0 ? "" : ", ") << shape[axis];
      return text.str();
    };
    expects(view.shape == wanted, function, name, " must have shape (", list(wanted), "), got (",
            list(view.shape), ")");
    beside(name, view);
  }

  /// An output must be C-ordered and apart from what is read.
  template <class View, class... In>
  void output(char const* name, View const& view, decltype(View::shape) wanted, bool ordered,
              In const&... in) const {
    input(name, view, wanted);
    expects(ordered, function, name, " must be of the documented strides");
    bool const apart = !(overlaps(view, in) || ...);
    expects(apart, function, name, " must not overlap what is read");
  }

  void sum(call_type const& call) const { detail::list_sums<T>(ctx, kernels, call).run(); }

  /// out = the sum of weight[r] rows[r] over all rows; weight null: of the rows.
  void sum_all(strided_view<T const, 2> rows, P const* weight, T* out) const {
    index_t const count = rows.shape[0];
    workspace<index_t> index(ctx, count);
    workspace<P> ones(ctx, weight ? 0 : count);
    std::iota(index.data(), index.data() + count, index_t{0});
    if (weight == nullptr) std::fill_n(ones.data(), count, P(1));
    index_t const offsets[2] = {0, count};
    call_type call;
    call.offsets = offsets;
    call.index = index.data();
    call.weight = weight ? weight : ones.data();
    call.lists = 1;
    call.rows = rows;
    call.out = out;
    sum(call);
  }

  /// out[r] = rows[r] . with, for all rows.
  void multiply(strided_view<T const, 2> rows, P const* with, T* out) const {
    constexpr index_t length = 32;  // of a list: as many as are worth a change of thread
    index_t const count = rows.shape[0], lists = (count + length - 1) / length;
    workspace<index_t> index(ctx, count), offsets(ctx, lists + 1);
    workspace<P> dots(ctx, count);
    std::iota(index.data(), index.data() + count, index_t{0});
    for (index_t j = 0; j <= lists; ++j) offsets[j] = std::min(j * length, count);
    std::fill_n(dots.data(), count, P(0));
    call_type call;
    call.offsets = offsets.data();
    call.index = index.data();
    call.lists = lists;
    call.rows = rows;
    call.with_one = with;
    call.dots = dots.data();
    sum(call);
    kernels.store(dots.data(), count, out, false);
  }

  /// A vector of any stride, widened; nothing where there is none.
  struct widened {
    widened(task const& self, std::optional<strided_view<T const, 1>> const& from)
        : memory(self.ctx, from ? from->shape[0] : 0) {
      if (from) self.kernels.widen(from->data, from->strides[0], from->shape[0], memory.data());
    }
    P const* data() const { return memory.data(); }
    workspace<P> memory;
  };

  context const& ctx;
  char const* function;
  detail::list_sums_kernels<T> const& kernels;

 private:
  template <class View>
  void beside(char const* name, View const& view) const {
    expects(view.device == where_, function, name, " must be on the device of values");
  }

  device where_;
};

template <class T>
strided_view<T, 2> transposed(strided_view<T, 2> v) {
  return {v.data, {v.shape[1], v.shape[0]}, {v.strides[1], v.strides[0]}, v.device};
}

}  // namespace

inline namespace SUBSPAN_ABI {

template <class T>
void sparse_decode(context const& ctx, sparse_code<T> const& code, strided_view<T const, 2> w_dec,
                   std::optional<strided_view<T const, 1>> b_dec, strided_view<T, 2> out) {
  task<T> const task(ctx, "sparse_decode", code);
  auto const [n, d] = w_dec.shape;
  task.input("w_dec", w_dec, {n, d});
  if (b_dec) task.input("b_dec", *b_dec, {d});
  task.output("out", out, {code.rows, d}, out.is_row_major(), w_dec, code.values, code.indices,
              code.offsets, b_dec ? *b_dec : strided_view<T const, 1>{});
  task.route(
      [&] {
        detail::row_lists<T> const lists(ctx, task.function, code, n, task.kernels.widen);
        typename subspan::task<T>::widened const init(task, b_dec);
        detail::list_sums_call<T> call;
        call.offsets = lists.offsets.data();
        call.index = lists.index.data();
        call.weight = lists.weight.data();
        call.lists = code.rows;
        call.rows = w_dec;
        call.init = init.data();
        call.out = out.data;
        task.sum(call);
      },
      [&](subspan_cuda_table const& cuda, char* message, int size) {
        subspan_cuda_decode_call const call{detail::cuda_code(ctx, task.function, code, n),
                                            detail::cuda_matrix(w_dec), detail::cuda_vector(b_dec),
                                            out.data};
        return cuda.decode(&call, message, size);
      });
}

template <class T>
void sparse_decode_backward(context const& ctx, sparse_code<T> const& code,
                            strided_view<T const, 2> w_dec, strided_view<T const, 2> grad_out,
                            std::optional<strided_view<T, 1>> grad_values,
                            std::optional<strided_view<T, 2>> grad_w_dec,
                            std::optional<strided_view<T, 1>> grad_b_dec) {
  task<T> const task(ctx, "sparse_decode_backward", code);
  auto const [n, d] = w_dec.shape;
  task.input("grad_out", grad_out, {code.rows, d});
  auto const check = [&](char const* name, auto const& out, auto const& shape) {
    task.output(name, out, shape, out.is_row_major(), w_dec, grad_out, code.values, code.indices,
                code.offsets);
  };
  if (grad_values) check("grad_values", *grad_values, std::array<index_t, 1>{code.values.shape[0]});
  if (grad_w_dec) check("grad_w_dec", *grad_w_dec, std::array<index_t, 2>{n, d});
  if (grad_b_dec) check("grad_b_dec", *grad_b_dec, std::array<index_t, 1>{d});
  task.route(
      [&] {
        if (grad_values || grad_w_dec) {
          detail::row_lists<T> const rows(ctx, task.function, code, n, task.kernels.widen);
          detail::feature_lists<T> const lists(ctx, rows, n);
          workspace<wide<T>> dots(ctx, grad_values ? rows.pairs : 0);
          if (grad_values) std::fill_n(dots.data(), rows.pairs, wide<T>(0));
          detail::list_sums_call<T> call;
          call.offsets = lists.offsets.data();
          call.index = lists.row.data();
          call.weight = lists.weight.data();
          call.lists = n;
          call.rows = grad_out;
          if (grad_values) call.with = w_dec;
          call.dots = dots.data();
          call.out = grad_w_dec ? grad_w_dec->data : nullptr;
          task.sum(call);
          if (grad_values) {
            workspace<wide<T>> placed(ctx, rows.pairs);
            for (index_t p = 0; p < rows.pairs; ++p) placed[lists.place[p]] = dots[p];
            task.kernels.store(placed.data(), rows.pairs, grad_values->data, false);
          }
        }
        if (grad_b_dec) task.sum_all(grad_out, nullptr, grad_b_dec->data);
      },
      [&](subspan_cuda_table const& cuda, char* message, int size) {
        subspan_cuda_decode_gradients_call const call{
            detail::cuda_code(ctx, task.function, code, n),
            detail::cuda_matrix(w_dec),
            detail::cuda_matrix(grad_out),
            detail::data_of(grad_values),
            detail::data_of(grad_w_dec),
            detail::data_of(grad_b_dec)};
        return cuda.decode_gradients(&call, message, size);
      });
}

template <class T>
void topk_encode_backward(context const& ctx, sparse_code<T> const& code, index_t n,
                          std::optional<strided_view<T const, 2>> x,
                          std::optional<strided_view<T const, 1>> b_pre,
                          std::optional<strided_view<T const, 2>> w_enc,
                          encode_gradients<T> const& gradients) {
  using P = wide<T>;
  task<T> const task(ctx, "topk_encode_backward", code);
  auto const& [grad_w, grad_b, grad_x, grad_pre] = gradients;
  expects(x || !grad_w, task.function, "x must be given for the gradient of w_enc, got none");
  expects(w_enc || !(grad_x || grad_pre), task.function,
          "w_enc must be given for the gradients of x and b_pre, got none");
  index_t const d = x ? x->shape[1] : w_enc ? w_enc->shape[0] : 0;
  if (x) task.input("x", *x, {code.rows, d});
  if (b_pre) task.input("b_pre", *b_pre, {d});
  if (w_enc) task.input("w_enc", *w_enc, {d, n});
  auto const check = [&](char const* name, auto const& out, auto const& shape, bool ordered) {
    task.output(name, out, shape, ordered, x ? *x : strided_view<T const, 2>{},
                w_enc ? *w_enc : strided_view<T const, 2>{}, code.values, code.indices,
                code.offsets);
  };
  bool const by_columns = grad_w && grad_w->is_row_major();
  if (grad_w)
    check("grad_w_enc", *grad_w, std::array<index_t, 2>{d, n},
          by_columns || transposed(*grad_w).is_row_major());
  if (grad_b) check("grad_b_enc", *grad_b, std::array<index_t, 1>{n}, grad_b->is_row_major());
  if (grad_x)
    check("grad_x", *grad_x, std::array<index_t, 2>{code.rows, d}, grad_x->is_row_major());
  if (grad_pre) check("grad_b_pre", *grad_pre, std::array<index_t, 1>{d}, grad_pre->is_row_major());
  task.route(
      [&] {
        detail::row_lists<T> const rows(ctx, task.function, code, n, task.kernels.widen);
        if (grad_w || grad_b || grad_pre) {
          detail::feature_lists<T> const lists(ctx, rows, n);
          if (grad_w) {
            typename subspan::task<T>::widened const shift(task, b_pre);
            detail::list_sums_call<T> call;
            call.offsets = lists.offsets.data();
            call.index = lists.row.data();
            call.weight = lists.weight.data();
            call.lists = n;
            call.rows = *x;
            call.shift = shift.data();
            call.out = grad_w->data;
            call.columns = by_columns;
            task.sum(call);
          }
          if (grad_b || grad_pre) {
            workspace<P> sums(ctx, n);
            for (index_t j = 0; j < n; ++j) {
              P sum = 0;
              for (index_t p = lists.offsets[j]; p < lists.offsets[j + 1]; ++p)
                sum += lists.weight[p];
              sums[j] = sum;
            }
            if (grad_b) task.kernels.store(sums.data(), n, grad_b->data, false);
            if (grad_pre) {
              for (index_t j = 0; j < n; ++j) sums[j] = -sums[j];
              if (w_enc->inner_contiguous())
                task.multiply(*w_enc, sums.data(), grad_pre->data);
              else
                task.sum_all(transposed(*w_enc), sums.data(), grad_pre->data);
            }
          }
        }
        if (grad_x) {
          detail::list_sums_call<T> call;
          call.offsets = rows.offsets.data();
          call.index = rows.index.data();
          call.weight = rows.weight.data();
          call.lists = code.rows;
          call.rows = transposed(*w_enc);
          call.out = grad_x->data;
          task.sum(call);
        }
      },
      [&](subspan_cuda_table const& cuda, char* message, int size) {
        subspan_cuda_encode_gradients_call call{detail::cuda_code(ctx, task.function, code, n),
                                                detail::cuda_matrix(x),
                                                detail::cuda_matrix(w_enc),
                                                detail::cuda_vector(b_pre),
                                                {},
                                                detail::data_of(grad_b),
                                                detail::data_of(grad_x),
                                                detail::data_of(grad_pre)};
        // As checked above; an axis of one element may have said anything.
        if (grad_w)
          call.grad_w_enc = {grad_w->data, d, n, {by_columns ? n : 1, by_columns ? 1 : d}};
        return cuda.encode_gradients(&call, message, size);
      });
}

#define SUBSPAN_INSTANTIATE(T)                                                                    \
  template void sparse_decode<T>(context const&, sparse_code<T> const&, strided_view<T const, 2>, \
                                 std::optional<strided_view<T const, 1>>, strided_view<T, 2>);    \
  template void sparse_decode_backward<T>(                                                        \
      context const&, sparse_code<T> const&, strided_view<T const, 2>, strided_view<T const, 2>,  \
      std::optional<strided_view<T, 1>>, std::optional<strided_view<T, 2>>,                       \
      std::optional<strided_view<T, 1>>);                                                         \
  template void topk_encode_backward<T>(                                                          \
      context const&, sparse_code<T> const&, index_t, std::optional<strided_view<T const, 2>>,    \
      std::optional<strided_view<T const, 1>>, std::optional<strided_view<T const, 2>>,           \
      encode_gradients<T> const&);
SUBSPAN_FOREACH_STORAGE(SUBSPAN_INSTANTIATE)
#undef SUBSPAN_INSTANTIATE

}  // namespace v0
}  // namespace subspan

#endif  // SUBSPAN_ONCE
