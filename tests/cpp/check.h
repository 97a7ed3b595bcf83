// The few lines of a test framework that these tests need.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>

constexpr int not_on_this_machine = 77;  // CTest reports such a test as skipped
constexpr double poison = -77;           // in what is to be written

// A condition that holds, or the test ends with its text, its place and `...`, which is printf's.
#define CHECK(condition, ...)                                              \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                   \
      std::fprintf(stderr, "\n");                                          \
      std::exit(1);                                                        \
    }                                                                      \
  } while (0)

// Equal to a tolerance relative to 1 and to the larger value; infinities and NaN equal themselves.
inline bool close(double a, double b, double tolerance) {
  if (a == b || (std::isnan(a) && std::isnan(b))) return true;
  return std::fabs(a - b) <= tolerance * std::fmax(1.0, std::fmax(std::fabs(a), std::fabs(b)));
}

// A small generator whose numbers are the same everywhere.
struct Random {
  unsigned long long state = 0x9e3779b97f4a7c15ull;
  unsigned next() {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<unsigned>(state >> 33);
  }
  double uniform() { return next() / 2147483648.0; }
};
