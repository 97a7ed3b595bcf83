// The 16-bit floats by their bits, from and to double.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

inline uint16_t to_bfloat16(double value) {
  const auto narrow = static_cast<float>(value);
  uint32_t wide;
  std::memcpy(&wide, &narrow, sizeof wide);
  return static_cast<uint16_t>((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
}

inline double from_bfloat16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return static_cast<double>(value);
}

// Of numbers that do not overflow, or infinities.
inline uint16_t to_float16(double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (value == 0) return sign;
  if (std::isnan(value)) return 0x7e00;
  if (std::isinf(value)) return sign | 0x7c00;
  int exponent = 0;
  const double fraction = std::frexp(std::fabs(value), &exponent);
  const long magnitude = exponent < -13
                             ? std::lround(std::ldexp(std::fabs(value), 24))
                             : ((exponent + 14) << 10) + std::lround(2048 * fraction - 1024);
  return static_cast<uint16_t>(sign | magnitude);
}

inline double from_float16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                           : exponent == 0 ? std::ldexp(fraction, -24)
                                           : std::ldexp(1024 + fraction, exponent - 25);
  return bits >> 15 ? -magnitude : magnitude;
}
