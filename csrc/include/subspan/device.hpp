#pragma once

#include "subspan/abi.hpp"

namespace subspan {
inline namespace SUBSPAN_ABI {

enum class device_kind { cpu, cuda };

/// Where the elements of a view live. A run-time field, not a type: one signature per primitive.
struct device {
  device_kind kind = device_kind::cpu;
  int index = 0;
};

constexpr bool operator==(device a, device b) noexcept {
  return a.kind == b.kind && a.index == b.index;
}
constexpr bool operator!=(device a, device b) noexcept { return !(a == b); }

/// Instruction-set level of the CPU kernels, picked once per process. `baseline` is what the
/// compiler's default target guarantees (SSE2 on x86-64, NEON on AArch64).
enum class cpu_level { baseline, v3, v4 };

/// The level in use: the best the CPU has, or what SUBSPAN_CPU_LEVEL forces.
/// Throws error{invalid_argument} if that names no level, error{unsupported} if the CPU lacks it.
cpu_level active_cpu_level();

/// `baseline`, `v3` or `v4`.
char const* name_of(cpu_level level) noexcept;

/// True if the CUDA part of the library is present and finds a device. Never throws.
bool has_cuda() noexcept;

}  // namespace v0
}  // namespace subspan
