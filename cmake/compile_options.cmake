# One function for every target: warnings, hidden symbols, sanitizers.
#
# Some toolchains link libstdc++ statically. Its symbols must then not be visible: the loader would
# bind them, one by one, to the libstdc++ that torch brought along, and the first exception or stream
# would run through two of them.
function(subspan_hide_archives target)
  target_link_options(${target} PRIVATE $<$<PLATFORM_ID:Linux>:LINKER:--exclude-libs,ALL>)
endfunction()

function(subspan_compile_options target)
  set_target_properties(
    ${target}
    PROPERTIES CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON
  )
  # -fopenmp-simd only licenses `#pragma omp simd`; there is no OpenMP runtime in this library.
  target_compile_options(
    ${target}
    PRIVATE
      $<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang,AppleClang>:-Wall
      -Wextra
      -Wno-unknown-pragmas
      -fopenmp-simd>
      $<$<AND:$<CONFIG:Release>,$<COMPILE_LANG_AND_ID:CXX,GNU,Clang,AppleClang>>:-O3>
  )
  subspan_hide_archives(${target})
  if(SUBSPAN_SANITIZE)
    target_compile_options(
      ${target}
      PRIVATE -fsanitize=${SUBSPAN_SANITIZE} -fno-omit-frame-pointer -g
    )
    target_link_options(${target} PUBLIC -fsanitize=${SUBSPAN_SANITIZE})
  endif()
endfunction()
