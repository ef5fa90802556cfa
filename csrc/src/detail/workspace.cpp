#include "detail/workspace.hpp"

#include <mutex>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace subspan::detail {
namespace {

constexpr std::size_t k_smallest_kept = std::size_t{64} << 10;  // malloc serves less well enough
constexpr std::size_t k_huge_page = std::size_t{2} << 20;
constexpr int k_slots = 16;

/// Every block's size is a multiple of `k_smallest_kept` if it may be kept, so that the size that
/// the caller names at the end says how large it really is.
std::size_t real_size(std::size_t bytes) {
  return bytes < k_smallest_kept
             ? bytes
             : (bytes + k_smallest_kept - 1) / k_smallest_kept * k_smallest_kept;
}

std::size_t alignment_of(std::size_t size) {
  return size >= k_huge_page ? k_huge_page : k_alignment;
}

void* allocate(std::size_t size) {
  void* const pointer = ::operator new(size, std::align_val_t{alignment_of(size)}, std::nothrow);
#if defined(__linux__)
  // Fewer page faults and TLB misses, where the system gives huge pages on request.
  if (size >= k_huge_page && pointer != nullptr) madvise(pointer, size, MADV_HUGEPAGE);
#endif
  return pointer;
}

void release(void* pointer, std::size_t size) {
  ::operator delete(pointer, std::align_val_t{alignment_of(size)});
}

struct slot {
  void* pointer = nullptr;
  std::size_t size = 0;
};

// Only ever try-locked: a caller that finds it taken, or a forked child that inherited it locked,
// goes to the system.
std::mutex g_mutex;
slot g_slots[k_slots];
std::size_t g_kept = 0;

}  // namespace

void* take_scratch(std::size_t bytes) noexcept {
  std::size_t const size = real_size(bytes);
  if (size >= k_smallest_kept)
    if (std::unique_lock lock(g_mutex, std::try_to_lock); lock.owns_lock())
      for (slot& kept : g_slots)
        if (kept.size == size) {
          void* const pointer = kept.pointer;
          g_kept -= size;
          kept = {};
          return pointer;
        }
  return allocate(size);
}

void return_scratch(void* pointer, std::size_t bytes) noexcept {
  std::size_t const size = real_size(bytes);
  if (size >= k_smallest_kept)
    if (std::unique_lock lock(g_mutex, std::try_to_lock); lock.owns_lock())
      for (slot& kept : g_slots)
        if (kept.pointer == nullptr && g_kept + size <= k_scratch_cap) {
          kept = {pointer, size};
          g_kept += size;
          return;
        }
  release(pointer, size);
}

}  // namespace subspan::detail
