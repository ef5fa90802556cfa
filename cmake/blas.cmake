# Which BLAS/LAPACK stands behind detail/blas.hpp: the target subspan_blas.
#
#   scipy-openblas  the OpenBLAS of the Python package scipy-openblas32 (symbols prefixed scipy_),
#                   bundled with what we install
#   system          whatever find_package(LAPACK) finds; for C++ programs that have their own
#   auto            scipy-openblas if the Python package is there, else system
add_library(subspan_blas INTERFACE)

set(_blas "${SUBSPAN_BLAS}")
if(NOT _blas STREQUAL "system")
  find_package(Python 3.11 QUIET COMPONENTS Interpreter)
  set(_openblas_missing 1)
  if(Python_Interpreter_FOUND)
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -c "import scipy_openblas32 as o; print(o.get_lib_dir())"
      OUTPUT_VARIABLE _openblas_dir
      OUTPUT_STRIP_TRAILING_WHITESPACE
      ERROR_QUIET
      RESULT_VARIABLE _openblas_missing
    )
  endif()
  if(_openblas_missing AND _blas STREQUAL "scipy-openblas")
    message(
      FATAL_ERROR
      "SUBSPAN_BLAS=scipy-openblas: pip install scipy-openblas32 for the Python that CMake finds (Python_EXECUTABLE), or use SUBSPAN_BLAS=system"
    )
  elseif(_openblas_missing)
    set(_blas system)
  else()
    set(_blas scipy-openblas)
  endif()
endif()

if(_blas STREQUAL "scipy-openblas")
  find_package(OpenBLAS CONFIG REQUIRED NO_DEFAULT_PATH PATHS "${_openblas_dir}/cmake/openblas")
  target_link_libraries(subspan_blas INTERFACE OpenBLAS::OpenBLAS)
  target_compile_definitions(subspan_blas INTERFACE SUBSPAN_BLAS_PREFIX=scipy_)
else()
  find_package(LAPACK REQUIRED)
  target_link_libraries(subspan_blas INTERFACE LAPACK::LAPACK)
endif()
set(SUBSPAN_BLAS_USED "${_blas}")
message(STATUS "subspan: BLAS ${_blas}")

# Installs what must lie beside `target` in `destination`: the bundled OpenBLAS, the CUDA library.
function(subspan_install_beside target destination)
  if(SUBSPAN_BLAS_USED STREQUAL "scipy-openblas" AND SUBSPAN_BUNDLE_BLAS)
    install(FILES "${OpenBLAS_LIBRARIES}" DESTINATION ${destination}/.libs)
    set_target_properties(${target} PROPERTIES INSTALL_RPATH "$ORIGIN/.libs")
  endif()
  if(TARGET subspan_cuda)
    install(TARGETS subspan_cuda LIBRARY DESTINATION ${destination})
  endif()
endfunction()
