#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#include "detail/lanes.hpp"

/// Runs the body of a CUDA kernel on the host: each thread of the block is a coroutine that gives
/// way at barriers and shuffles. Slow and exact; a barrier that some thread never reaches throws.

namespace subspan::gpu {

class host_block;

class host_lanes {
 public:
  host_lanes(host_block& block, int rank) : block_(&block), rank_(rank) {}
  int rank() const { return rank_; }
  int size() const;
  int lane() const { return rank_ % k_warp; }
  int warp() const { return rank_ / k_warp; }
  int warps() const { return size() / k_warp; }
  void sync() const;
  void sync_warp() const;
  template <class T>
  T shuffle(T v, int source) const;
  template <class T>
  T shuffle_xor(T v, int mask) const {
    return shuffle(v, lane() ^ mask);
  }
  std::uint32_t ballot(bool condition) const;
  bool any(bool condition) const { return ballot(condition) != 0; }
  bool any_of_block(bool condition) const;
  void multiply_halves(float (&c)[4], std::uint32_t const (&a)[4], std::uint32_t b0,
                       std::uint32_t b1) const;

 private:
  template <class T, class Wait>
  std::uint64_t const* exchange(std::vector<std::uint64_t>* slots, int& turn, T v, Wait wait) const;

  host_block* block_;
  int rank_;
};

class host_block {
 public:
  using body = std::function<void(host_lanes const&)>;

  /// Runs `run` for every thread of a block of `threads`.
  static void launch(int threads, body const& run) {
    if (threads % k_warp != 0) throw std::invalid_argument("a block is made of whole warps");
    host_block block(threads, run);
    block.drive();
  }

 private:
  friend class host_lanes;

  static constexpr std::size_t k_stack = 256 << 10;

  struct barrier {
    int members = 0, arrived = 0;
    long generation = 0;
  };
  struct fiber {
    ucontext_t context{};
    bool done = false;
    int warp_turn = 0, block_turn = 0;
  };

  host_block(int threads, body const& run) : run_(run), fibers_(threads), block_{threads, 0, 0} {
    for (int i : {0, 1}) {
      warp_slots_[i].resize(threads);
      block_slots_[i].resize(threads);
    }
    warps_.resize(threads / k_warp, barrier{k_warp, 0, 0});
    auto const self = reinterpret_cast<std::uintptr_t>(this);
    for (int i = 0; i < threads; ++i) {
      ucontext_t& context = fibers_[i].context;
      start(context, stack(i), &main_);
      makecontext(&context, reinterpret_cast<void (*)()>(&host_block::enter), 3,
                  static_cast<unsigned>(self >> 32), static_cast<unsigned>(self), i);
    }
  }

  static void start(ucontext_t& context, char* stack, ucontext_t* after) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = k_stack;
    context.uc_link = after;
  }

  /// Kept from launch to launch: fresh ones cost more than most bodies.
  static char* stack(int thread) {
    static std::vector<std::unique_ptr<char[]>> stacks;
    while (static_cast<int>(stacks.size()) <= thread) stacks.emplace_back(new char[k_stack]);
    return stacks[thread].get();
  }

  static void enter(unsigned high, unsigned low, int rank) {
    auto* const self =
        reinterpret_cast<host_block*>((static_cast<std::uintptr_t>(high) << 32) | low);
    self->run_(host_lanes(*self, rank));
    self->fibers_[rank].done = true;
    ++self->progress_;
  }

  void drive() {
    for (bool left = true; left;) {
      left = false;
      long const before = progress_;
      for (current_ = 0; current_ < static_cast<int>(fibers_.size()); ++current_) {
        if (fibers_[current_].done) continue;
        left = true;
        swapcontext(&main_, &fibers_[current_].context);
      }
      if (left && progress_ == before)
        throw std::logic_error("threads wait at a barrier that others never reach");
    }
  }

  void wait(barrier& at) {
    long const mine = at.generation;
    ++progress_;
    if (++at.arrived == at.members) {
      at.arrived = 0;
      ++at.generation;
      return;
    }
    while (at.generation == mine) {
      fiber& self = fibers_[current_];
      swapcontext(&self.context, &main_);
    }
  }

  body const& run_;
  std::vector<fiber> fibers_;
  std::vector<barrier> warps_;
  barrier block_;
  std::vector<std::uint64_t> warp_slots_[2], block_slots_[2];
  ucontext_t main_{};
  int current_ = 0;
  long progress_ = 0;
};

inline int host_lanes::size() const { return static_cast<int>(block_->fibers_.size()); }
inline void host_lanes::sync() const { block_->wait(block_->block_); }
inline void host_lanes::sync_warp() const { block_->wait(block_->warps_[warp()]); }

/// Leaves v for the others, waits for theirs, and gives the place where they lie. There are two such
/// places in turn: nobody comes back to this one before all have been at the next, and thus read.
template <class T, class Wait>
std::uint64_t const* host_lanes::exchange(std::vector<std::uint64_t>* slots, int& turn, T v,
                                          Wait wait) const {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  auto& mine = slots[turn ^= 1];
  std::memcpy(&mine[rank_], &v, sizeof v);
  wait();
  return mine.data();
}

template <class T>
T host_lanes::shuffle(T v, int source) const {
  std::uint64_t const* const all =
      exchange(block_->warp_slots_, block_->fibers_[rank_].warp_turn, v, [&] { sync_warp(); });
  T other;
  std::memcpy(&other, all + warp() * k_warp + source % k_warp, sizeof other);
  return other;
}

inline std::uint32_t host_lanes::ballot(bool condition) const {
  std::uint64_t const* const all =
      exchange(block_->warp_slots_, block_->fibers_[rank_].warp_turn,
               static_cast<std::uint64_t>(condition), [&] { sync_warp(); });
  std::uint32_t bits = 0;
  for (int i = 0; i < k_warp; ++i)
    bits |= static_cast<std::uint32_t>(all[warp() * k_warp + i] != 0) << i;
  return bits;
}

inline bool host_lanes::any_of_block(bool condition) const {
  std::uint64_t const* const all = exchange(block_->block_slots_, block_->fibers_[rank_].block_turn,
                                            static_cast<std::uint64_t>(condition), [&] { sync(); });
  bool found = false;
  for (int i = 0; i < size(); ++i) found |= all[i] != 0;
  return found;
}

/// The value of a float16.
inline double value_of_half(std::uint32_t bits) {
  int const exponent = static_cast<int>(bits >> 10 & 31);
  double const fraction = bits & 1023;
  double const size = exponent == 31  ? (fraction == 0 ? HUGE_VAL : std::nan(""))
                      : exponent == 0 ? std::ldexp(fraction, -24)
                                      : std::ldexp(fraction + 1024, exponent - 25);
  return (bits >> 15 & 1) != 0 ? -size : size;
}

inline void host_lanes::multiply_halves(float (&c)[4], std::uint32_t const (&a)[4],
                                        std::uint32_t b0, std::uint32_t b1) const {
  std::uint32_t const mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  std::uint32_t all[6][k_warp];
  for (int r = 0; r < 6; ++r) {
    std::uint64_t const* const of_block = exchange(
        block_->warp_slots_, block_->fibers_[rank_].warp_turn, mine[r], [&] { sync_warp(); });
    for (int l = 0; l < k_warp; ++l)
      all[r][l] = static_cast<std::uint32_t>(of_block[warp() * k_warp + l]);
  }
  auto const half_of = [&](int r, int l, int k) {
    return value_of_half(all[r][l] >> (k % 2 * 16) & 0xffff);
  };
  for (int i = 0; i < 4; ++i) {
    int const row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
    double sum = c[i];
    for (int k = 0; k < 16; ++k)
      sum += half_of(row / 8 + k / 8 * 2, row % 8 * 4 + k % 8 / 2, k) *
             half_of(4 + k / 8, column * 4 + k % 8 / 2, k);
    c[i] = static_cast<float>(sum);
  }
}

}  // namespace subspan::gpu
