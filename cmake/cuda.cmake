# The CUDA half is a shared library of its own, opened at run time by detail/cuda_table.cpp, so the
# core needs no CUDA to build, to import or to run.
if(SUBSPAN_CUDA STREQUAL "OFF")
  return()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(SUBSPAN_CUDA STREQUAL "ON")
    message(
      FATAL_ERROR
      "SUBSPAN_CUDA=ON: no CUDA compiler found (nvcc on PATH, or CMAKE_CUDA_COMPILER)"
    )
  endif()
  message(STATUS "subspan: CUDA off (no nvcc)")
  return()
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 90-virtual)
endif()
enable_language(CUDA)
message(STATUS "subspan: CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")

add_library(
  subspan_cuda
  SHARED
  csrc/src/adam.cu
  csrc/src/decode.cu
  csrc/src/detail/cuda_table.cu
  csrc/src/eigh.cu
  csrc/src/encode.cu
  csrc/src/kernel_matvec.cu
  csrc/src/pca.cu
  csrc/src/qr.cu
  csrc/src/svd.cu
  csrc/src/topk.cu
)
set_target_properties(
  subspan_cuda
  PROPERTIES
    CUDA_STANDARD 20
    CUDA_STANDARD_REQUIRED ON
    CUDA_RUNTIME_LIBRARY Static
    CUDA_VISIBILITY_PRESET hidden
    POSITION_INDEPENDENT_CODE ON
)
target_include_directories(
  subspan_cuda
  PRIVATE csrc/include csrc/src ${CMAKE_CURRENT_BINARY_DIR}/include
)
# 554: views of constants convert to themselves, which no code calls.
target_compile_options(
  subspan_cuda
  PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr --diag-suppress=554>
)
subspan_hide_archives(subspan_cuda)
