#!/usr/bin/env bash
# Installs libsubspan, moves the installation, and builds and runs tests/cpp against it.
#   tools/check_cpp.sh scipy-openblas   the OpenBLAS of the Python package, bundled
#   tools/check_cpp.sh system           the LAPACK of this system, as static and as shared library
set -euo pipefail
cd "$(dirname "$0")/.."

check() { # name, build tree (objects may serve several checks), CMake options
  local name=$1 work=$PWD/build/cpp-$1 tree=$PWD/build/$2 library
  shift 2
  rm -rf "$work/prefix" "$work/moved" "$work/consumer"
  mkdir -p "$work"
  cmake --log-level=WARNING -S . -B "$tree" -G Ninja --install-prefix "$work/prefix" "$@"
  cmake --build "$tree" --target install > "$work/build.log" || { cat "$work/build.log"; exit 1; }
  # Gone from where it was built and from where it was installed: only the moved tree is left.
  mkdir "$work/moved"
  mv "$work/prefix" "$work/moved/elsewhere"
  mv "$tree" "$tree-hidden"
  trap 'mv "$tree-hidden" "$tree"' EXIT
  if grep -rlF "$PWD" --include='*.cmake' --include='*.hpp' "$work/moved"; then
    echo "check_cpp: the files above name the build tree" >&2
    exit 1
  fi

  cmake --log-level=WARNING -S tests/cpp -B "$work/consumer" -G Ninja \
    -DCMAKE_PREFIX_PATH="$work/moved/elsewhere" -DCMAKE_BUILD_TYPE=Release
  cmake --build "$work/consumer" > "$work/build.log" || { cat "$work/build.log"; exit 1; }
  ctest --test-dir "$work/consumer" --output-on-failure --no-tests=error
  for program in svd eigh qr pca; do "$work/consumer/$program"; done

  library=$(find "$work/moved/elsewhere" -name 'libsubspan.so' -o -name 'libsubspan.a')
  if [[ $library == *.so ]]; then
    echo "check_cpp: symbols of libsubspan.so"
    if nm -D --defined-only "$library" | awk '{print $3}' | grep -vE '^_ZT?[ISV]?NK?7subspan2v0'; then
      echo "check_cpp: the symbols above are exported, but not in subspan::v0" >&2
      exit 1
    fi
    if readelf -d "$library" | grep -E 'R(UN)?PATH' | grep -F "$PWD"; then
      echo "check_cpp: the library looks for its libraries in the build tree" >&2
      exit 1
    fi
  fi
  trap - EXIT
  mv "$tree-hidden" "$tree"
  echo "check_cpp: $name: fine"
}

case $1 in
  scipy-openblas)
    # The tree of `make unit`, whose objects are the same. Device code as PTX alone: what takes
    # minutes is to compile it for every device, which the Python package has done.
    check scipy-openblas unit -DSUBSPAN_BLAS=scipy-openblas -DSUBSPAN_CUDA=AUTO \
      -DCMAKE_CUDA_ARCHITECTURES=90-virtual -DPython_EXECUTABLE="$PWD/.venv/bin/python"
    ;;
  system)
    if ! echo 'int main() {}' | "${CXX:-c++}" -x c++ - -llapack -o /dev/null 2> /dev/null; then
      echo "check_cpp: SKIPPED: no LAPACK on this system (Debian: apt-get install liblapack-dev)" >&2
      exit 0
    fi
    options=(-DSUBSPAN_BLAS=system -DSUBSPAN_CUDA=OFF)
    check system-static cpp-system-tree "${options[@]}" -DBUILD_SHARED_LIBS=OFF
    check system-shared cpp-system-tree "${options[@]}" -DBUILD_SHARED_LIBS=ON
    ;;
  *)
    sed -n '2,4p' "$0" >&2
    exit 2
    ;;
esac
