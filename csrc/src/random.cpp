#include "subspan/random.hpp"

#include "detail/contract.hpp"
#include "detail/dtypes.hpp"
#include "detail/parallel.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

template <class T>
void fill_normal(context const& ctx, strided_view<T, 1> out, std::uint64_t seed,
                 std::uint64_t stream) {
  detail::expects(out.device.kind == device_kind::cpu, "fill_normal", "out must be on the CPU");
  detail::parallel_for(ctx, out.shape[0], 4096, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i)
      out(i) = static_cast<T>(random_normal(seed, stream, static_cast<std::uint64_t>(i)));
  });
}

#define SUBSPAN_INSTANTIATE(T) \
  template void fill_normal<T>(context const&, strided_view<T, 1>, std::uint64_t, std::uint64_t);
SUBSPAN_FOREACH_REAL(SUBSPAN_INSTANTIATE)
#undef SUBSPAN_INSTANTIATE

}  // namespace v0
}  // namespace subspan
