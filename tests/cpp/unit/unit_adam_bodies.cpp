// The bodies of the kernels of adam.cu against the formula in more digits.

#include <cmath>
#include <random>
#include <vector>

#include "check.hpp"
#include "detail/adam_bodies.hpp"
#include "host_lanes.hpp"

using namespace subspan;
using gpu::host_block;
using gpu::host_lanes;

namespace {

std::mt19937 generator(5);

template <class T>
std::vector<T> normal(index_t count) {
  std::normal_distribution<double> draw;
  std::vector<T> out(static_cast<std::size_t>(count));
  for (T& v : out) v = static_cast<T>(draw(generator));
  return out;
}

constexpr double k_lr = 0.1, k_beta1 = 0.8, k_beta2 = 0.9, k_eps = 1e-3, k_decay = 0.02;

template <class T>
struct problem {
  index_t rows, d;
  std::vector<T> w, m, v, g;

  problem(index_t n, index_t columns)
      : rows(n),
        d(columns),
        w(normal<T>(n * columns)),
        m(normal<T>(n * columns)),
        v(normal<T>(n * columns)),
        g(normal<T>(n * columns)) {
    for (T& value : v) value = std::abs(value);
  }
  detail::adam_task<T> task(bool parallel, double limit, bool unit, double scale) {
    return {w.data(),
            m.data(),
            v.data(),
            g.data(),
            d,
            // As after many steps: corrections of 1.
            {T(1 - k_beta1), T(k_beta2), T(1 - k_beta2), T(-k_lr), T(1), T(k_eps),
             T(1 - k_lr * k_decay)},
            scale,
            limit,
            parallel,
            unit};
  }
};

/// w after the step, in double.
template <class T>
std::vector<double> wanted(problem<T> const& p, detail::adam_task<T> const& task) {
  std::vector<double> out;
  for (index_t r = 0; r < p.rows; ++r) {
    double gw = 0, ww = 0, gg = 0, length = 0;
    std::vector<double> g;
    for (index_t i = r * p.d; i < (r + 1) * p.d; ++i) {
      gw += double(p.g[i]) * p.w[i];
      ww += double(p.w[i]) * p.w[i];
    }
    for (index_t i = r * p.d; i < (r + 1) * p.d; ++i) {
      g.push_back(task.scale * (p.g[i] - (task.remove_parallel && ww > 0 ? gw / ww * p.w[i] : 0)));
      gg += g.back() * g.back();
    }
    double const most = task.row_limit > 0 ? std::max(std::sqrt(gg), task.row_limit) : 1;
    double const shrink = task.row_limit > 0 ? task.row_limit / most : 1;
    for (index_t c = 0; c < p.d; ++c) {
      index_t const i = r * p.d + c;
      double const gradient = g[c] * shrink;
      double const m = k_beta1 * p.m[i] + (1 - k_beta1) * gradient;
      double const v = k_beta2 * p.v[i] + (1 - k_beta2) * gradient * gradient;
      out.push_back((1 - k_lr * k_decay) * p.w[i] - k_lr * m / (std::sqrt(v) + k_eps));
      length += out.back() * out.back();
    }
    if (!task.unit_rows || length == 0) continue;
    for (index_t c = 0; c < p.d; ++c) out[r * p.d + c] /= std::sqrt(length);
  }
  return out;
}

template <class T>
void check_rows(index_t rows, index_t d, bool by_block) {
  for (bool const parallel : {false, true})
    for (double const limit : {0.0, 0.7})
      for (bool const unit : {false, true}) {
        problem<T> p(rows, d);
        auto const task = p.task(parallel, limit, unit, 0.5);
        auto const truth = wanted(p, task);
        if (by_block) {
          std::vector<double> scratch(gpu::k_team_scratch);
          host_block::launch(96, [&](host_lanes const& lanes) {
            gpu::block_team const team(lanes, scratch.data());
            for (index_t r = 0; r < rows; ++r) gpu::step_row(team, task, r);
          });
        } else {
          host_block::launch(64, [&](host_lanes const& lanes) {
            gpu::warp_team const team(lanes);
            for (index_t r = lanes.warp(); r < rows; r += lanes.warps())
              gpu::step_row(team, task, r);
          });
        }
        double worst = 0;
        for (std::size_t i = 0; i < truth.size(); ++i)
          worst = std::max(worst, std::abs(p.w[i] - truth[i]) / (1 + std::abs(truth[i])));
        CHECK(worst <= 64 * std::numeric_limits<T>::epsilon());
      }
}

}  // namespace

TEST(rows_by_warps_and_by_blocks) {
  for (index_t const d : {1, 31, 32, 33, 100})
    for (bool const by_block : {false, true}) {
      check_rows<float>(5, d, by_block);
      check_rows<double>(4, d, by_block);
    }
}

TEST(elements_one_by_one) {
  problem<float> p(3, 50);
  auto const task = p.task(false, 0, false, 1);
  auto const truth = wanted(p, task);
  for (index_t i = 0; i < 150; ++i) gpu::step_element(task, i, 0.0f, 1.0f);
  for (std::size_t i = 0; i < truth.size(); ++i)
    CHECK(std::abs(p.w[i] - truth[i]) <= 1e-6 * (1 + std::abs(truth[i])));
}

TEST(rows_of_zeros_stay_and_what_is_not_finite_stays_in_its_row) {
  problem<float> p(3, 40);
  for (index_t i = 0; i < 40; ++i) p.w[i] = p.m[i] = p.g[i] = 0;
  p.g[45] = std::nanf("");
  auto const task = p.task(true, 0.5, true, 1);
  host_block::launch(32, [&](host_lanes const& lanes) {
    gpu::warp_team const team(lanes);
    for (index_t r = 0; r < 3; ++r) gpu::step_row(team, task, r);
  });
  for (index_t i = 0; i < 40; ++i) CHECK_EQUAL(p.w[i], 0.0f);
  for (index_t i = 40; i < 80; ++i) CHECK(std::isnan(p.w[i]));
  for (index_t i = 80; i < 120; ++i) CHECK(std::isfinite(p.w[i]));
}

TEST(norms_by_rows_and_in_one_piece) {
  for (bool const parallel : {false, true}) {
    index_t const rows = 7, d = 45;
    problem<float> p(rows, d);
    double truth = 0;
    for (index_t r = 0; r < rows; ++r) {
      double gw = 0, ww = 0;
      for (index_t i = r * d; i < (r + 1) * d; ++i) {
        gw += double(p.g[i]) * p.w[i];
        ww += double(p.w[i]) * p.w[i];
      }
      for (index_t i = r * d; i < (r + 1) * d; ++i) {
        double const rest = p.g[i] - (parallel ? gw / ww * p.w[i] : 0);
        truth += rest * rest;
      }
    }
    std::vector<double> scratch(gpu::k_team_scratch);
    double sum = 0;
    for (index_t block = 0; block < 3; ++block)
      host_block::launch(64, [&](host_lanes const& lanes) {
        gpu::block_team const team(lanes, scratch.data());
        // Without rows, pieces of 100 elements and a shorter one.
        double const part =
            gpu::squares_of_rows(team, p.g.data(), parallel ? p.w.data() : nullptr, rows * d,
                                 parallel ? d : index_t{100}, block, index_t{3});
        if (lanes.rank() == 0) sum += part;
      });
    CHECK(std::abs(sum - truth) <= 1e-12 * truth);
  }
}

int main() { return check::run_all(); }
