#include <cstdint>

#include "check.hpp"
#include "subspan/view.hpp"

using subspan::index_t;
using subspan::make_view;
using subspan::overlaps;
using subspan::strided_view;

namespace {

double memory[64];

strided_view<double, 2> view(double* data, index_t rows, index_t columns, index_t row_stride,
                             index_t column_stride) {
  return {data, {rows, columns}, {row_stride, column_stride}, {}};
}

}  // namespace

TEST(make_view_is_row_major) {
  auto const v = make_view<3>(memory, {2, 3, 4});
  CHECK(v.is_row_major());
  CHECK(v.inner_contiguous());
  CHECK_EQUAL(v.size(), 24);
  CHECK_EQUAL(&v(1, 2, 3) - memory, 23);
  CHECK_EQUAL(v.strides[0], 12);
  CHECK_EQUAL(v.strides[2], 1);
}

TEST(predicates_ignore_strides_of_short_axes) {
  CHECK(view(memory, 1, 4, -77, 1).is_row_major());
  CHECK(view(memory, 4, 1, 1, 99).is_row_major());
  CHECK(view(memory, 4, 1, 1, 99).inner_contiguous());
  CHECK(view(memory, 1, 1, 0, 0).is_row_major());
  CHECK(!view(memory, 2, 3, 4, 1).is_row_major());
  CHECK(view(memory, 2, 3, 4, 1).inner_contiguous());
  CHECK(!view(memory, 2, 3, 1, 2).inner_contiguous());
  CHECK(!view(memory, 2, 3, 1, 2).is_row_major());
  CHECK(!view(memory + 8, 2, 3, -3, 1).is_row_major());
}

TEST(byte_range_of_any_strides) {
  auto const forward = view(memory, 3, 4, 4, 1).byte_range();
  CHECK_EQUAL(forward[1] - forward[0], 12 * 8);
  auto const back = view(memory + 11, 3, 4, -4, -1).byte_range();
  CHECK(back[0] == reinterpret_cast<char const*>(memory));
  CHECK_EQUAL(back[1] - back[0], 12 * 8);
  auto const mixed = view(memory + 8, 3, 4, -4, 1).byte_range();
  CHECK(mixed[0] == reinterpret_cast<char const*>(memory));
  CHECK(mixed[1] == reinterpret_cast<char const*>(memory + 12));
  auto const broadcast = view(memory, 1000, 2, 0, 1).byte_range();
  CHECK_EQUAL(broadcast[1] - broadcast[0], 16);
}

TEST(overlaps_by_address_range) {
  auto const a = make_view<2>(memory, {2, 4});
  CHECK(overlaps(a, a));
  CHECK(!overlaps(a, make_view<2>(memory + 8, {2, 4})));
  CHECK(overlaps(a, make_view<2>(memory + 7, {2, 4})));
  CHECK(overlaps(make_view<2>(memory + 7, {2, 4}), a));
  // Another element type and rank at the same place.
  CHECK(overlaps(a, make_view<1>(reinterpret_cast<float*>(memory) + 15, {1})));
  CHECK(!overlaps(a, make_view<1>(reinterpret_cast<float*>(memory) + 16, {1})));
  // Negative strides reach down.
  CHECK(overlaps(a, view(memory + 16, 2, 2, -9, 1)));
  CHECK(!overlaps(a, view(memory + 17, 2, 2, -9, 1)));
  // Interleaved without meeting: counted as overlapping, on purpose.
  CHECK(overlaps(view(memory, 4, 1, 2, 1), view(memory + 1, 4, 1, 2, 1)));
}

TEST(empty_views_and_other_devices_never_overlap) {
  auto const a = make_view<2>(memory, {2, 4});
  CHECK(!overlaps(a, make_view<2>(memory, {0, 4})));
  CHECK(!overlaps(make_view<2>(memory, {4, 0}), a));
  auto elsewhere = a;
  elsewhere.device = {subspan::device_kind::cuda, 0};
  CHECK(!overlaps(a, elsewhere));
  auto second = elsewhere;
  second.device.index = 1;
  CHECK(!overlaps(second, elsewhere));
  CHECK(overlaps(elsewhere, elsewhere));
}

TEST(writable_views_convert_to_inputs) {
  auto const a = make_view<1>(memory, {5});
  strided_view<double const, 1> const input = a;
  CHECK(input.data == memory);
  CHECK_EQUAL(input.shape[0], 5);
  CHECK_EQUAL(input.strides[0], 1);
}

int main() { return check::run_all(); }
