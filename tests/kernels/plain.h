// What the programs that the sanitizers watch share: values that are exact in every dtype, and comparisons.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

inline void check(double got, double expected, double scale, const char* what) {
  if (std::abs(got - expected) <= 1e-4 * scale + 1e-6) return;
  std::printf("%s: got %g, expected %g\n", what, got, expected);
  std::exit(1);
}

inline float value(int64_t task, int64_t i) { return static_cast<float>((i * 7 + task * 13) % 17 - 8) * 0.25f; }

inline uint16_t bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>(bits >> 16);  // exact: the values have few bits
}
