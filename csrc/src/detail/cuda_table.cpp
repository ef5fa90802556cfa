#include "detail/cuda_table.hpp"

#include <dlfcn.h>

#include <string>

#include "detail/contract.hpp"
#include "subspan/device.hpp"

namespace subspan {
namespace {

struct loaded {
  subspan_cuda_table const* table = nullptr;
  std::string why;  // there is no table
};

loaded load() {
  constexpr char const* file = "libsubspan_cuda.so";
  // Beside the object that holds this function first (wheel, install tree), then the loader's path.
  Dl_info here{};
  std::string beside = file;
  static int const anchor = 0;
  if (dladdr(&anchor, &here) != 0 && here.dli_fname != nullptr) {
    std::string const path = here.dli_fname;
    if (auto const slash = path.rfind('/'); slash != std::string::npos)
      beside = path.substr(0, slash + 1) + file;
  }
  void* library = nullptr;
  for (std::string const& name : {beside, std::string(file)})
    if (library == nullptr) library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr)
    return {nullptr,
            "this build has no CUDA library (libsubspan_cuda). Build subspan where nvcc "
            "is found, or copy the array to the host"};
  auto const entry = reinterpret_cast<subspan_cuda_entry>(dlsym(library, subspan_cuda_symbol));
  if (entry == nullptr || entry()->abi != subspan_cuda_abi)
    return {nullptr, "libsubspan_cuda belongs to another version of subspan. Reinstall subspan"};
  if (entry()->device_count() <= 0)
    return {nullptr,
            "no CUDA device was found, but the array says that it is on one. Check the "
            "driver (nvidia-smi) or copy the array to the host"};
  return {entry(), {}};
}

loaded const& library() {
  static loaded const once = load();
  return once;
}

}  // namespace

namespace detail {
subspan_cuda_table const& cuda_functions(char const* function) {
  if (library().table == nullptr) fail(error_kind::unsupported, function, library().why);
  return *library().table;
}

void check_cuda(char const* function, int status, char const* message) {
  switch (status) {
    case subspan_cuda_ok:
      return;
    case subspan_cuda_no_memory:
      fail(error_kind::out_of_memory, function, message);
    case subspan_cuda_unsupported:
      fail(error_kind::unsupported, function, message);
    default:
      fail(error_kind::device, function, message);
  }
}
}  // namespace detail

inline namespace SUBSPAN_ABI {
bool has_cuda() noexcept {
  try {
    return library().table != nullptr;
  } catch (...) {
    return false;
  }
}
}  // namespace v0
}  // namespace subspan
