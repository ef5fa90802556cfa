#include <cstdlib>
#include <string>

#include "detail/contract.hpp"
#include "subspan/device.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {
namespace {

bool cpu_has(cpu_level level) {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  switch (level) {
    case cpu_level::baseline:
      return true;
    case cpu_level::v3:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("bmi2");
    case cpu_level::v4:
      return cpu_has(cpu_level::v3) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd");
  }
#endif
  return level == cpu_level::baseline;
}

cpu_level pick() {
  char const* forced = std::getenv("SUBSPAN_CPU_LEVEL");
  if (forced == nullptr || *forced == '\0') {
    for (cpu_level level : {cpu_level::v4, cpu_level::v3})
      if (cpu_has(level)) return level;
    return cpu_level::baseline;
  }
  for (cpu_level level : {cpu_level::baseline, cpu_level::v3, cpu_level::v4}) {
    if (std::string(forced) != name_of(level)) continue;
    if (!cpu_has(level))
      detail::fail(error_kind::unsupported, "SUBSPAN_CPU_LEVEL", "this CPU has no level ", forced,
                   ". Unset the variable to use the best level it has");
    return level;
  }
  detail::fail(error_kind::invalid_argument, "SUBSPAN_CPU_LEVEL",
               "must be baseline, v3 or v4, got ", forced);
}

}  // namespace

char const* name_of(cpu_level level) noexcept {
  switch (level) {
    case cpu_level::v3:
      return "v3";
    case cpu_level::v4:
      return "v4";
    default:
      return "baseline";
  }
}

cpu_level active_cpu_level() {
  static cpu_level const level = pick();
  return level;
}

}  // namespace v0
}  // namespace subspan
