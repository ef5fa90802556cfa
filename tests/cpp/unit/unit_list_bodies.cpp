#include "check.hpp"
#include "code_on_host.hpp"

// The bodies of the kernels that sum rows of sparse codes, against loops in the order that they
// promise.

namespace {

/// All lists by the bodies: parts first, then lists, slice after slice.
template <bool Aligned, class T, class Lists, class Out>
void run_sums(gpu::list_sum<T, Lists, Out> const& call) {
  constexpr index_t slice = gpu::lane_columns<T, Aligned>::slice;
  index_t const slices = (call.rows.columns + slice - 1) / slice;
  if constexpr (requires { call.lists.list_at(0); })
    if (call.parts != nullptr) {
      index_t const parts = (call.lists.pairs + k_list_part - 1) / k_list_part;
      run_items(parts * slices, [&](host_lanes const& lanes, index_t i) {
        gpu::sum_part<Aligned>(lanes, call, i % parts, i / parts * slice);
      });
    }
  run_items(call.lists.lists * slices, [&](host_lanes const& lanes, index_t i) {
    gpu::sum_list<Aligned>(lanes, call, i % call.lists.lists, i / call.lists.lists * slice);
  });
}

/// The same sums, one after the other.
template <class T, class Lists, class Out>
wide<T> wanted_sum(gpu::list_sum<T, Lists, Out> const& call, index_t j, index_t c) {
  auto const range = call.lists.range(j);
  if (!range.valid) return std::numeric_limits<wide<T>>::quiet_NaN();
  wide<T> sum = call.init.at(c);
  for (index_t begin = range.begin; begin < range.end; begin += k_list_part) {
    wide<T> part = begin == range.begin ? sum : 0;
    for (index_t p = begin; p < std::min(begin + k_list_part, range.end); ++p) {
      auto const [row, weight] = call.lists.at(p);
      wide<T> const element =
          row < 0 ? 0 : wide<T>(storage<T>::widen(call.rows.data[row * call.rows.stride + c]));
      part = std::fma(weight, element - call.shift.at(c), part);
    }
    sum = begin == range.begin ? part : sum + part;
  }
  return sum;
}

template <bool Aligned, class T, class Lists>
void check_sums(gpu::list_sum<T, Lists> call, index_t gap = 0) {
  index_t const d = call.rows.columns, stride = d + gap;
  aligned_rows<T> out(call.lists.lists + 1, stride);
  std::vector<T> const before(out.data, out.data + (call.lists.lists + 1) * stride);
  call.out = out.data;
  call.out_stride = stride;
  run_sums<Aligned>(call);
  for (index_t j = 0; j <= call.lists.lists; ++j)
    for (index_t c = 0; c < stride; ++c) {
      T const found = out.data[j * stride + c];
      bool const written = j < call.lists.lists && c < d;
      T const wanted = written ? storage<T>::narrow(wanted_sum(call, j, c))
                               : before[static_cast<std::size_t>(j * stride + c)];
      CHECK(same(storage<T>::widen(found), storage<T>::widen(wanted)));
    }
}

template <class T>
void check_widths(index_t d, bool aligned, int offset) {
  index_t const n = 17, k = 37, stride = aligned ? d + gpu::pack<T>::width : d + 1;
  aligned_rows<T> const rows(n, stride, offset);
  auto const init = normal<T>(2 * d), shift = normal<T>(d);
  code<T> const some(5, k, n);
  gpu::list_sum<T, gpu::code_lists<T>> call{
      some.lists(), {rows.data, n, d, stride}, {}, {}, nullptr, nullptr, 0};
  for (bool const extras : {false, true}) {
    if (extras) {
      call.init = {init.data(), 2};
      call.shift = {shift.data(), 1};
    }
    if (aligned)
      check_sums<true>(call, extras ? gpu::pack<T>::width : 0);
    else
      check_sums<false>(call, extras ? 3 : 0);
  }
}

constexpr double k_nan = std::numeric_limits<double>::quiet_NaN();

}  // namespace

TEST(widths_around_packs_and_slices) {
  for (index_t const d : {1, 2, 3, 31, 33, 127, 128, 130, 300}) {
    check_widths<float>(d, false, 1);
    check_widths<double>(d, false, 1);
    check_widths<brief>(d, false, 3);
  }
  for (index_t const d : {8, 64, 128, 136, 256, 264, 520}) {
    check_widths<float>(d, true, 0);
    check_widths<double>(d, true, 0);
    check_widths<brief>(d, true, 0);
  }
}

TEST(lists_of_every_length) {
  index_t const n = 40, d = 36;
  aligned_rows<float> const rows(n, d);
  code<float> some(0, 0, n);
  some.offsets = {0};
  for (index_t const length :
       {0, 1, 7, 8, 9, 31, 32, 33, 40, 64, 100, 1023, 1024, 1025, 2048, 3000})
    some.offsets.push_back(some.offsets.back() + length);
  some.rows = static_cast<index_t>(some.offsets.size()) - 1;
  some.values = normal<float>(some.offsets.back());
  some.features = indices(some.offsets.back(), n);
  gpu::list_sum<float, gpu::code_lists<float>> const call{
      some.lists(), {rows.data, n, d, d}, {}, {}, nullptr, nullptr, 0};
  check_sums<true>(call);
  check_sums<false>(call);
  auto const lists = some.lists();
  for (index_t t = 0; t < some.rows; ++t)
    for (index_t p = lists.range(t).begin; p < lists.range(t).end; p += 13)
      CHECK(lists.row_of(p) == t);
}

TEST(strides_of_a_code) {
  index_t const n = 9, d = 20;
  aligned_rows<double> const rows(n, d);
  code<double> const some(6, 3, n);
  std::vector<double> values(54, k_nan);
  std::vector<std::int64_t> features(36, 1000);
  for (std::size_t p = 0; p < 18; ++p) {
    values[3 * p] = some.values[p];
    features[2 * p + 1] = some.features[p];
  }
  std::vector<std::int64_t> const ends{12, -1, 10, -1, 4, -1, 0};  // backwards: rows of 4, 6, 2
  gpu::code_lists<double> lists{values.data(), 3, features.data() + 1, 2, nullptr, 0, 3, 6, 18, n};
  gpu::list_sum<double, gpu::code_lists<double>> call{
      lists, {rows.data, n, d, d}, {}, {}, nullptr, nullptr, 0};
  check_sums<true>(call);
  call.lists.offsets = ends.data() + 6;
  call.lists.offset_stride = -2;
  call.lists.lists = 3;
  call.lists.pairs = 12;
  CHECK(call.lists.range(1).begin == 4 && call.lists.range(1).end == 10);
  CHECK(call.lists.range(2).valid);
  check_sums<true>(call);
}

TEST(what_names_no_feature_is_nan) {
  index_t const n = 5, d = 12;
  aligned_rows<float> const rows(n, d);
  code<float> some(4, 3, n);
  some.features[4] = 5;
  some.features[11] = -1;
  gpu::list_sum<float, gpu::code_lists<float>> const call{
      some.lists(), {rows.data, n, d, d}, {}, {}, nullptr, nullptr, 0};
  check_sums<true>(call);
  for (index_t j = 0; j < 4; ++j) {
    float const sum = wanted_sum(call, j, 0);
    CHECK((sum != sum) == (j == 1 || j == 3));
  }
  some.n = 0;  // nothing is read
  check_sums<false>(gpu::list_sum<float, gpu::code_lists<float>>{
      some.lists(), {nullptr, 0, d, d}, {}, {}, nullptr, nullptr, 0});
}

TEST(offsets_that_do_not_ascend_are_nan) {
  code<float> some(0, 0, 5);
  some.values = normal<float>(10);
  some.features = indices(10, 5);
  auto const valid = [&](std::vector<std::int64_t> offsets) {
    some.offsets = std::move(offsets);
    some.rows = static_cast<index_t>(some.offsets.size()) - 1;
    auto const lists = some.lists();
    std::vector<bool> out;
    for (index_t t = 0; t < some.rows; ++t) out.push_back(lists.range(t).valid);
    for (index_t p = 0; p < 10; ++p) CHECK(lists.row_of(p) >= 0 && lists.row_of(p) < some.rows);
    return out;
  };
  CHECK(valid({0, 3, 3, 10}) == (std::vector<bool>{true, true, true}));
  CHECK(valid({1, 3, 3, 10}) == (std::vector<bool>{false, true, true}));
  CHECK(valid({0, 7, 3, 10}) == (std::vector<bool>{true, false, true}));
  CHECK(valid({0, 3, 11, 10}) == (std::vector<bool>{true, false, false}));
  CHECK(valid({0, 3, 4, 9}) == (std::vector<bool>{true, true, false}));
  CHECK(valid({0, -5, 4, 10}) == (std::vector<bool>{false, false, true}));
  CHECK(valid({10, 0}) == std::vector<bool>{false});
  aligned_rows<float> const rows(5, 8);
  valid({0, 7, 3, 10});
  check_sums<true>(gpu::list_sum<float, gpu::code_lists<float>>{
      some.lists(), {rows.data, 5, 8, 8}, {}, {}, nullptr, nullptr, 0});
}

template <class T>
void check_features(index_t rows, index_t k, index_t n, index_t d, bool skewed) {
  code<T> some(rows, k, n);
  if (skewed)  // two features fire in nearly every row, some never
    for (std::size_t p = 0; p < some.features.size(); ++p)
      some.features[p] = p % 3 == 0 ? n / 2 : p % 3 == 1 ? n - 1 : some.features[p] / 2;
  some.features[1] = -7;
  some.features.back() = n;
  sorted_code<T> const sorted(some.lists());
  aligned_rows<T> const x(rows, d);
  auto const shift = normal<T>(d);
  index_t const parts = (some.pairs() + k_list_part - 1) / k_list_part;
  std::vector<wide<T>> memory(static_cast<std::size_t>(parts * d), wide<T>(k_nan));
  gpu::list_sum<T, gpu::feature_lists<wide<T>>> call{
      sorted.lists, {x.data, rows, d, d}, {}, {shift.data(), 1}, nullptr, nullptr, 0};
  check_sums<true>(call);
  call.parts = memory.data();
  check_sums<true>(call);
  check_sums<false>(call);
}

TEST(features_and_the_parts_of_long_lists) {
  check_features<float>(50, 4, 30, 16, false);
  check_features<float>(1500, 6, 11, 8, true);
  check_features<float>(4000, 3, 5, 8, true);
  check_features<double>(2600, 2, 3, 6, false);
  check_features<brief>(3000, 4, 2, 16, false);
}

TEST(lists_that_end_around_a_part) {
  // One feature after the other, so that lists begin and end on both sides of multiples of 1024.
  std::vector<index_t> const lengths{1024, 1, 1023, 2048, 1025, 1, 3071, 1024, 0, 1024, 5000, 2};
  auto const n = static_cast<index_t>(lengths.size());
  code<float> some(std::accumulate(lengths.begin(), lengths.end(), index_t{0}), 1, n);
  std::size_t p = 0;
  for (index_t f = 0; f < n; ++f)
    for (index_t i = 0; i < lengths[static_cast<std::size_t>(f)]; ++i) some.features[p++] = f;
  sorted_code<float> const sorted(some.lists());
  aligned_rows<float> const x(some.rows, 4);
  std::vector<float> memory(static_cast<std::size_t>(some.rows / k_list_part + 1) * 4,
                            std::numeric_limits<float>::quiet_NaN());
  check_sums<true>(gpu::list_sum<float, gpu::feature_lists<float>>{
      sorted.lists, {x.data, some.rows, 4, 4}, {}, {}, memory.data(), nullptr, 0});
}

TEST(one_list_of_all_rows) {
  for (index_t const count : {0, 1, 1000, 1024, 1025, 5000}) {
    aligned_rows<float> const rows(std::max<index_t>(count, 1), 12);
    auto const weights = normal<float>(count), init = normal<float>(12);
    std::vector<float> memory(static_cast<std::size_t>(count / k_list_part + 1) * 12, 0.0f);
    for (float const* const weight : {static_cast<float const*>(nullptr), weights.data()})
      check_sums<true>(gpu::list_sum<float, gpu::all_rows<float>>{{weight, count},
                                                                  {rows.data, count, 12, 12},
                                                                  {init.data(), 1},
                                                                  {},
                                                                  memory.data(),
                                                                  nullptr,
                                                                  0});
  }
}

TEST(sums_that_stay_wide) {
  aligned_rows<brief> const rows(70, 24);
  auto const weights = normal<float>(70);
  std::vector<float> out(24);
  gpu::list_sum<brief, gpu::all_rows<float>, float> const call{
      {weights.data(), 70}, {rows.data, 70, 24, 24}, {}, {}, nullptr, out.data(), 24};
  for (bool const aligned : {true, false}) {
    std::fill(out.begin(), out.end(), 7.0f);
    aligned ? run_sums<true>(call) : run_sums<false>(call);
    for (index_t c = 0; c < 24; ++c)
      CHECK(out[static_cast<std::size_t>(c)] == wanted_sum(call, 0, c));
  }
}

int main() { return check::run_all(); }
