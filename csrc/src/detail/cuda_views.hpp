#pragma once

#include <optional>

#include "detail/contract.hpp"
#include "detail/cuda_table.hpp"
#include "detail/route.hpp"
#include "subspan/context.hpp"
#include "subspan/decode.hpp"

/// Views as libsubspan_cuda takes them.

namespace subspan::detail {

template <class T>
subspan_cuda_vector cuda_vector(strided_view<T, 1> const& v) {
  return {v.data, v.strides[0]};
}
template <class T>
subspan_cuda_vector cuda_vector(std::optional<strided_view<T, 1>> const& v) {
  return v ? cuda_vector(*v) : subspan_cuda_vector{};
}

template <class T>
subspan_cuda_matrix cuda_matrix(strided_view<T, 2> const& m) {
  return {const_cast<std::remove_const_t<T>*>(m.data),
          m.shape[0],
          m.shape[1],
          {m.strides[0], m.strides[1]}};
}
template <class T>
subspan_cuda_matrix cuda_matrix(std::optional<strided_view<T, 2>> const& m) {
  return m ? cuda_matrix(*m) : subspan_cuda_matrix{};
}

/// The data of an output that need not be there.
template <class View>
auto* data_of(std::optional<View> const& view) {
  return view ? view->data : nullptr;
}

/// Checks of a code what its shapes tell.
template <class T>
subspan_cuda_code cuda_code(context const& ctx, char const* function, sparse_code<T> const& code,
                            index_t n) {
  index_t const pairs = code.values.shape[0], rows = code.rows;
  expects(code.indices.shape[0] == pairs, function, "indices must be as many as values, ", pairs,
          ", got ", code.indices.shape[0]);
  if (code.offsets.data == nullptr)
    expects(rows == 0 ? pairs == 0 : pairs % rows == 0, function,
            "values must be as many in each of ", rows, " rows, got ", pairs);
  else
    expects(code.offsets.shape[0] == rows + 1, function, "offsets must have ", rows + 1,
            " elements, got ", code.offsets.shape[0]);
  expects(rows > 0 || pairs == 0, function, "values must be none where there are no rows, got ",
          pairs);
  return {cuda_vector(code.values),
          cuda_vector(code.indices),
          cuda_vector(code.offsets),
          rows,
          pairs,
          n,
          cuda_dtype<T>(),
          code.values.device.index,
          ctx.stream};
}

}  // namespace subspan::detail
