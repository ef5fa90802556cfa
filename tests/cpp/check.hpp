#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>

/// Ends the program with a failure that names the claim.
inline void check(bool holds, char const* claim) {
  if (holds) return;
  std::fprintf(stderr, "FAILED: %s\n", claim);
  std::exit(1);
}

inline bool close(double a, double b, double tolerance) {
  return std::abs(a - b) <= tolerance * (1 + std::abs(b));
}
