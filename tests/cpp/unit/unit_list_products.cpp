#include "check.hpp"
#include "code_on_host.hpp"

// The bodies of the kernels for products of rows of sparse codes, sums of weights and copies.

namespace {

template <class T>
void check_products(index_t d) {
  double const tolerance = sizeof(T) == 8 ? 1e-14 : 1e-5;
  aligned_rows<T> const a(6, d), b(4, d);
  code<T> const some(6, 2, 4);
  sorted_code<T> const sorted(some.lists());
  auto const v = normal<wide<T>>(d);
  auto const near = [&](double found, double wanted, double size) {
    CHECK(std::abs(found - wanted) <= tolerance * size);
  };
  for (int const layout : {0, 1, 2}) {  // packs, any alignment, columns
    std::vector<T> turned(static_cast<std::size_t>(6 * d));
    for (index_t i = 0; i < 6 * d; ++i)
      turned[static_cast<std::size_t>(i % d * 6 + i / d)] = a.data[i];
    if (layout == 0 && d % gpu::pack<T>::width != 0) continue;
    gpu::matrix_view<T const> const rows =
        layout == 2 ? gpu::matrix_view<T const>{turned.data(), 6, d, 1, 6}
                    : gpu::matrix_view<T const>{a.data, 6, d, d, 1};
    gpu::matrix_view<T const> const with{b.data, 4, d, d, 1};
    std::vector<wide<T>> found(12), sums(6);
    run_items(12, [&](host_lanes const& lanes, index_t q) {
      auto const product = layout == 0
                               ? gpu::pair_product<true>(lanes, sorted.lists, q, with, rows)
                               : gpu::pair_product<false>(lanes, sorted.lists, q, with, rows);
      if (lanes.lane() == q) found[static_cast<std::size_t>(q)] = product;  // all have it
    });
    run_items(6, [&](host_lanes const& lanes, index_t i) {
      auto const sum = gpu::weighted_sum(lanes, rows.data + i * rows.row_stride, rows.column_stride,
                                         v.data(), d);
      if (lanes.lane() == 31) sums[static_cast<std::size_t>(i)] = sum;
    });
    for (std::size_t q = 0; q < 12; ++q) {
      double wanted = 0, size = 1;
      for (index_t c = 0; c < d; ++c) {
        double const term = double(storage<T>::widen(b.data[sorted.keys[q] * d + c])) *
                            storage<T>::widen(a.data[sorted.rows[q] * d + c]);
        wanted += term;
        size += std::abs(term);
      }
      near(found[q], wanted, size);
    }
    for (std::size_t i = 0; i < 6; ++i) {
      double wanted = 0, size = 1;
      for (index_t c = 0; c < d; ++c) {
        double const term = double(storage<T>::widen(a.data[static_cast<index_t>(i) * d + c])) *
                            v[static_cast<std::size_t>(c)];
        wanted += term;
        size += std::abs(term);
      }
      near(sums[i], wanted, size);
    }
  }
}

}  // namespace

TEST(products_of_rows) {
  for (index_t const d : {0, 1, 2, 8, 31, 32, 33, 128, 200, 255, 264, 1000}) {
    check_products<float>(d);
    check_products<double>(d);
    check_products<brief>(d);
  }
}

TEST(products_and_weights_of_features) {
  code<float> some(400, 3, 4);
  for (std::size_t p = 0; p < some.features.size(); ++p)
    if (p % 50 == 7) some.features[p] = p % 100 == 7 ? -1 : 4;
  sorted_code<float> const sorted(some.lists());
  aligned_rows<float> const a(400, 8), b(4, 8);
  gpu::matrix_view<float const> const rows{a.data, 400, 8, 8, 1}, with{b.data, 4, 8, 8, 1};
  run_items(some.pairs(), [&](host_lanes const& lanes, index_t q) {
    float const product = gpu::pair_product<true>(lanes, sorted.lists, q, with, rows);
    bool const none = some.lists().feature(sorted.order[static_cast<std::size_t>(q)]) < 0;
    CHECK((product != product) == none);
  });
  std::vector<float> found(4);
  run_items(4, [&](host_lanes const& lanes, index_t j) {
    float const sum = gpu::sum_weights(lanes, sorted.lists, j);
    if (lanes.lane() == 5) found[static_cast<std::size_t>(j)] = sum;
  });
  for (std::int64_t j = 0; j < 4; ++j) {
    double wanted = 0;
    for (std::size_t p = 0; p < some.features.size(); ++p)
      if (some.features[p] == j) wanted += some.values[p];
    CHECK(std::abs(found[static_cast<std::size_t>(j)] - wanted) < 1e-4);
  }
}

TEST(copies_of_any_strides) {
  for (auto const& [rows, columns] :
       {std::pair<index_t, index_t>{1, 1}, {5, 70}, {70, 5}, {64, 33}}) {
    auto const source = normal<float>(9 * rows * columns);
    index_t const r = rows, c = columns;
    // Row and column strides, and where the first element lies.
    struct layout {
      index_t row, column, first;
    };
    layout const layouts[] = {
        {c, 1, 0}, {1, r, 0}, {2 * c + 1, 2, 1}, {-c, 1, (r - 1) * c}, {1, -r, (c - 1) * r},
        {0, 1, 4}};
    for (layout const& in : layouts)
      for (layout const& out : layouts) {
        if (out.row == 0) continue;
        std::vector<float> target(9 * static_cast<std::size_t>(rows * columns), 7.0f);
        gpu::matrix_view<float const> const from{source.data() + in.first, r, c, in.row, in.column};
        gpu::matrix_view<float> const to{target.data() + out.first, r, c, out.row, out.column};
        std::vector<float> memory(32 * 33);
        host_block::launch(256, [&](host_lanes const& lanes) {
          for (index_t top = 0; top < r; top += 32)
            for (index_t left = 0; left < c; left += 32)
              gpu::copy_tile(lanes, memory.data(), from, to, top, left);
        });
        auto const at = [](auto const& m, index_t i, index_t j) -> auto& {
          return m.data[i * m.row_stride + j * m.column_stride];
        };
        for (index_t i = 0; i < r; ++i)
          for (index_t j = 0; j < c; ++j) {
            CHECK(at(to, i, j) == at(from, i, j));
            at(to, i, j) = 7;
          }
        CHECK(std::all_of(target.begin(), target.end(), [](float v) { return v == 7; }));
      }
  }
}

int main() { return check::run_all(); }
