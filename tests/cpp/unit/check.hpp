#pragma once

#include <cstdio>
#include <exception>
#include <sstream>
#include <string>
#include <vector>

#include "subspan/error.hpp"

/// The whole test framework: TEST registers, CHECK counts, main runs and reports.

namespace check {

struct test {
  char const* name;
  void (*body)();
};
inline std::vector<test>& tests() {
  static std::vector<test> all;
  return all;
}
struct registered {
  registered(char const* name, void (*body)()) { tests().push_back({name, body}); }
};
inline int failures = 0;

inline void report(bool fine, char const* file, int line, std::string const& text) {
  if (fine) return;
  ++failures;
  std::fprintf(stderr, "%s:%d: %s\n", file, line, text.c_str());
}

template <class A, class B>
void equal(A const& a, B const& b, char const* file, int line, char const* what) {
  std::ostringstream text;
  if (!(a == b)) text << what << ": " << a << " != " << b;
  report(a == b, file, line, text.str());
}

/// The body throws subspan::error of this kind, whose text holds `part`.
template <class Body>
void throws(subspan::error_kind kind, char const* part, Body&& body, char const* file, int line) {
  try {
    body();
    report(false, file, line, std::string("nothing was thrown, wanted: ") + part);
  } catch (subspan::error const& error) {
    bool const fine =
        error.kind() == kind && std::string(error.what()).find(part) != std::string::npos;
    report(fine, file, line, std::string("got: ") + error.what() + "; wanted: " + part);
  } catch (std::exception const& error) {
    report(false, file, line, std::string("not a subspan::error: ") + error.what());
  }
}

inline int run_all() {
  for (test const& each : tests()) {
    int const before = failures;
    try {
      each.body();
    } catch (std::exception const& error) {
      report(false, each.name, 0, std::string("uncaught: ") + error.what());
    }
    std::printf("%s %s\n", failures == before ? "ok  " : "FAIL", each.name);
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace check

#define TEST(name)                                                \
  static void name();                                             \
  static check::registered const registered_##name(#name, &name); \
  static void name()
#define CHECK(...) check::report(static_cast<bool>(__VA_ARGS__), __FILE__, __LINE__, #__VA_ARGS__)
#define CHECK_EQUAL(a, b) check::equal(a, b, __FILE__, __LINE__, #a " == " #b)
#define CHECK_THROWS(kind, part, ...) \
  check::throws(subspan::error_kind::kind, part, [&] { __VA_ARGS__; }, __FILE__, __LINE__)
