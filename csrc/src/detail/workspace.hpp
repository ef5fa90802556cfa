#pragma once

#include <cstddef>
#include <new>

#include "detail/contract.hpp"
#include "subspan/context.hpp"

namespace subspan::detail {

inline constexpr std::size_t k_alignment = 64;

/// The default source of scratch: aligned, thread-safe, and it keeps up to k_scratch_cap bytes of
/// what was returned for the next call. Fresh pages are dear: a short call would spend more time
/// in page faults than in its kernel. Null when there is no memory.
inline constexpr std::size_t k_scratch_cap = std::size_t{32} << 20;
void* take_scratch(std::size_t bytes) noexcept;
void return_scratch(void* pointer, std::size_t bytes) noexcept;

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
                                     : take_scratch(bytes_));
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
      return_scratch(pointer_, bytes_);
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
