/// THE instruction-set switch. No include guard: a source that defines SUBSPAN_FILE (its own name)
/// and then includes this header, after all its other includes, is compiled once per level:
///
///   #define SUBSPAN_FILE "pca.cpp"
///   #include "detail/foreach_level.hpp"
///   namespace subspan::cpu::SUBSPAN_LEVEL { ... kernels ... }
///   #if SUBSPAN_ONCE
///   ... tables of the levels, public entries ...
///   #endif
///
/// Only the code inside the re-inclusion gets the higher target; standard-library templates that
/// the includes brought in keep the baseline, so no weak symbol with AVX code can leak into other
/// parts of a program. Inside the namespace SUBSPAN_VECTOR_BYTES is the register width and
/// SUBSPAN_REGISTERS the number of vector registers.

#if !defined(SUBSPAN_LEVEL)

#if defined(__x86_64__) && defined(__GNUC__)
#define SUBSPAN_HAS_LEVELS 1

#define SUBSPAN_ONCE 0

#define SUBSPAN_LEVEL v3
#define SUBSPAN_VECTOR_BYTES 32
#define SUBSPAN_REGISTERS 16
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,lzcnt,movbe,f16c,popcnt"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#endif
#include SUBSPAN_FILE
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef SUBSPAN_LEVEL
#undef SUBSPAN_VECTOR_BYTES
#undef SUBSPAN_REGISTERS

#define SUBSPAN_LEVEL v4
#define SUBSPAN_VECTOR_BYTES 64
#define SUBSPAN_REGISTERS 32
#if defined(__clang__)
#pragma clang attribute push(                                                           \
    __attribute__((target("avx2,fma,bmi,bmi2,lzcnt,movbe,f16c,popcnt,avx512f,avx512vl," \
                          "avx512bw,avx512dq,avx512cd,prefer-256-bit=false"))),         \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#endif
#include SUBSPAN_FILE
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef SUBSPAN_LEVEL
#undef SUBSPAN_VECTOR_BYTES
#undef SUBSPAN_REGISTERS

#undef SUBSPAN_ONCE
#endif  // x86-64

#define SUBSPAN_ONCE 1
#define SUBSPAN_LEVEL baseline
#define SUBSPAN_VECTOR_BYTES 16
#if defined(__aarch64__)
#define SUBSPAN_REGISTERS 32
#else
#define SUBSPAN_REGISTERS 16
#endif

#if defined(SUBSPAN_HAS_LEVELS)
/// The object of this name of the active level: SUBSPAN_PICK(kernels<float>).
#define SUBSPAN_PICK(...)                                                                      \
  (::subspan::active_cpu_level() == ::subspan::cpu_level::v4 ? ::subspan::cpu::v4::__VA_ARGS__ \
   : ::subspan::active_cpu_level() == ::subspan::cpu_level::v3                                 \
       ? ::subspan::cpu::v3::__VA_ARGS__                                                       \
       : ::subspan::cpu::baseline::__VA_ARGS__)
#else
#define SUBSPAN_PICK(...) (::subspan::cpu::baseline::__VA_ARGS__)
#endif

#endif  // SUBSPAN_LEVEL
