# libsubspan for C++ programs: `cmake --install` gives find_package(subspan).
#
# With the bundled OpenBLAS it is a shared library, whose prefixed symbols stay inside; with a
# system LAPACK it is static unless BUILD_SHARED_LIBS says otherwise.
if(SUBSPAN_BLAS_USED STREQUAL "scipy-openblas" OR BUILD_SHARED_LIBS)
  add_library(subspan SHARED)
else()
  add_library(subspan STATIC)
endif()
add_library(subspan::subspan ALIAS subspan)
target_link_libraries(
  subspan
  PRIVATE $<BUILD_INTERFACE:subspan_core> $<BUILD_INTERFACE:subspan_blas>
  PUBLIC Threads::Threads ${CMAKE_DL_LIBS}
)
target_include_directories(
  subspan
  PUBLIC
    $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/csrc/include>
    $<BUILD_INTERFACE:${CMAKE_CURRENT_BINARY_DIR}/include>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
)
target_compile_features(subspan PUBLIC cxx_std_17)
set_target_properties(subspan PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION 0)
get_target_property(_type subspan TYPE)
if(_type STREQUAL "STATIC_LIBRARY" AND SUBSPAN_BLAS_USED STREQUAL "system")
  target_link_libraries(subspan INTERFACE $<INSTALL_INTERFACE:LAPACK::LAPACK>)
endif()

include(CMakePackageConfigHelpers)
install(
  TARGETS subspan
  EXPORT subspanTargets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
)
install(
  DIRECTORY csrc/include/subspan ${CMAKE_CURRENT_BINARY_DIR}/include/subspan
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING
  PATTERN "*.hpp"
)
install(EXPORT subspanTargets NAMESPACE subspan:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/subspan)
configure_package_config_file(
  cmake/subspanConfig.cmake.in
  ${CMAKE_CURRENT_BINARY_DIR}/subspanConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/subspan
)
write_basic_package_version_file(
  ${CMAKE_CURRENT_BINARY_DIR}/subspanConfigVersion.cmake
  COMPATIBILITY SameMinorVersion
)
install(
  FILES
    ${CMAKE_CURRENT_BINARY_DIR}/subspanConfig.cmake
    ${CMAKE_CURRENT_BINARY_DIR}/subspanConfigVersion.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/subspan
)
subspan_install_beside(subspan ${CMAKE_INSTALL_LIBDIR})

if(SUBSPAN_BUILD_TESTS)
  enable_testing()
  add_subdirectory(tests/cpp/unit)
endif()
