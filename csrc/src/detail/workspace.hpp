#pragma once

#include <cstddef>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "detail/contract.hpp"
#include "subspan/context.hpp"

namespace subspan::detail {

inline constexpr std::size_t k_alignment = 64;
inline constexpr std::size_t k_huge_page = std::size_t{2} << 20;

/// Scratch of some size sits on huge pages where the system gives them on request: it costs fewer
/// page faults, which are dear for memory that is used once, and fewer misses of the TLB.
inline void* allocate_aligned(std::size_t bytes) {
  bool const large = bytes >= k_huge_page;
  void* const pointer =
      ::operator new(bytes, std::align_val_t{large ? k_huge_page : k_alignment}, std::nothrow);
#if defined(__linux__)
  if (large && pointer != nullptr) madvise(pointer, bytes, MADV_HUGEPAGE);
#endif
  return pointer;
}

inline void deallocate_aligned(void* pointer, std::size_t bytes) {
  ::operator delete(pointer,
                    std::align_val_t{bytes >= k_huge_page ? k_huge_page : k_alignment});
}

/// Scratch of `count` elements from the context's allocator, freed at the end of the scope.
/// Not initialised.
template <class T>
class workspace {
 public:
  workspace(context const& ctx, index_t count) : allocator_(ctx.allocator) {
    bytes_ = static_cast<std::size_t>(count) * sizeof(T);
    if (bytes_ == 0) return;
    try {
      pointer_ = static_cast<T*>(allocator_.allocate != nullptr
                                     ? allocator_.allocate(allocator_.user, bytes_, k_alignment)
                                     : allocate_aligned(bytes_));
    } catch (std::bad_alloc const&) {
      pointer_ = nullptr;
    }
    if (pointer_ == nullptr)
      fail(error_kind::out_of_memory, "workspace", "no memory for ", bytes_, " bytes of scratch");
  }
  ~workspace() {
    if (pointer_ == nullptr) return;
    if (allocator_.allocate != nullptr)
      allocator_.deallocate(allocator_.user, pointer_, bytes_);
    else
      deallocate_aligned(pointer_, bytes_);
  }
  workspace(workspace const&) = delete;
  workspace& operator=(workspace const&) = delete;

  T* data() const noexcept { return pointer_; }
  T& operator[](index_t i) const noexcept { return pointer_[i]; }

 private:
  subspan::allocator allocator_;
  T* pointer_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace subspan::detail
