// bfloat16 and float16 from and to float32. Included by compute_impl.h, once per instruction set.
//
// The loops are plain C++ on bits, which compilers turn into vector code.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace fastmtl {
namespace {

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

void load_bf16(const uint16_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = as_float(static_cast<uint32_t>(from[i]) << 16);
}

void store_bf16(const float* from, int64_t count, uint16_t* to) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = as_bits(from[i]);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to[i] = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
  }
}

// Exact: the exponent is re-biased by a multiplication; subnormal numbers come from a subtraction.
inline float f16_to_float(uint16_t half) {
  const uint32_t shifted = static_cast<uint32_t>(half) << 16;
  const uint32_t sign = shifted & 0x80000000;
  const uint32_t twice = shifted + shifted;
  const float normal = as_float((twice >> 4) + (0xe0u << 23)) * 0x1.0p-112f;
  const float subnormal = as_float((twice >> 17) | (126u << 23)) - 0.5f;
  return as_float(sign | (twice < (1u << 27) ? as_bits(subnormal) : as_bits(normal)));
}

// The addition of `base` does the rounding to nearest even at the right bit.
inline uint16_t float_to_f16(float value) {
  const uint32_t bits = as_bits(value);
  const uint32_t twice = bits + bits;
  float base = (as_float(bits & 0x7fffffff) * 0x1.0p+112f) * 0x1.0p-110f;
  const uint32_t bias = (twice & 0xff000000) < 0x71000000 ? 0x71000000 : (twice & 0xff000000);
  base = as_float((bias >> 1) + 0x07800000) + base;
  const uint32_t rounded = as_bits(base);
  const uint32_t nonsign = ((rounded >> 13) & 0x7c00) + (rounded & 0x0fff);
  return static_cast<uint16_t>((bits >> 16 & 0x8000) | (twice > 0xff000000 ? 0x7e00 : nonsign));
}

void load_f16(const uint16_t* from, int64_t count, float* to) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
  for (; i < count; ++i) to[i] = f16_to_float(from[i]);
}

void store_f16(const float* from, int64_t count, uint16_t* to) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
  for (; i < count; ++i) to[i] = float_to_f16(from[i]);
}

}  // namespace
}  // namespace fastmtl
