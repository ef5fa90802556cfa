# One function for every target: warnings, hidden symbols, sanitizers.
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
  if(SUBSPAN_SANITIZE)
    target_compile_options(
      ${target}
      PRIVATE -fsanitize=${SUBSPAN_SANITIZE} -fno-omit-frame-pointer -g
    )
    target_link_options(${target} PUBLIC -fsanitize=${SUBSPAN_SANITIZE})
  endif()
endfunction()
