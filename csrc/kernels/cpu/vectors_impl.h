// Vectors of FASTMTL_VECTOR_BYTES, and sums of them in lanes of double.
//
// The files *_impl.h are included by one file per instruction set. Everything is in an anonymous namespace and nothing
// inline comes from the standard library: code compiled for AVX-512 must never be merged by the linker into what
// another CPU runs.
#pragma once

#include <cstdint>
#include <cstring>

#include "isa.h"
#if defined(__AVX__)
#include <immintrin.h>
#endif

#define FASTMTL_UNROLL _Pragma("GCC unroll 16")

namespace fastmtl {
namespace {

constexpr int64_t kVectorBytes = FASTMTL_VECTOR_BYTES;
constexpr int64_t kDoubles = kVectorBytes / 8;
// Tiles of the Gram matrix keep the accumulators of kTile rows by as many, and their operands, in registers: AVX-512
// has 32, the others 16. AVX2, whose products take no register besides, has room for kSpare rows more on one side.
constexpr int kTile = kVectorBytes == 64 ? 5 : 3;
constexpr int kSpare = kVectorBytes == 32 ? 1 : 0;
constexpr int kMostRows = kTile + kSpare;
constexpr int kLine = 64 / kVectorBytes;  // vectors of a cache line
constexpr int64_t kChain = 128;           // at most so many products are added up in one lane of S, and then in double

template <class S>
struct VectorOf {
  typedef S type __attribute__((vector_size(FASTMTL_VECTOR_BYTES)));
  typedef S half __attribute__((vector_size(FASTMTL_VECTOR_BYTES / 2)));
  typedef S unaligned __attribute__((vector_size(FASTMTL_VECTOR_BYTES), aligned(sizeof(S)), may_alias));
};
template <class S>
using Vector = typename VectorOf<S>::type;
template <class S>
constexpr int64_t kWidth = kVectorBytes / static_cast<int64_t>(sizeof(S));

template <class S>
inline Vector<S> load(const S* from) {
  return *reinterpret_cast<const typename VectorOf<S>::unaligned*>(from);
}

template <class S>
inline void store(S* to, Vector<S> value) {
  *reinterpret_cast<typename VectorOf<S>::unaligned*>(to) = value;
}

// A store past the caches, which does not read the line before; to an aligned place. Others see it after `sent`.
template <class S>
inline void stream(S* to, Vector<S> value) {
#if FASTMTL_VECTOR_BYTES == 64 && defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(value));
#elif FASTMTL_VECTOR_BYTES == 32 && defined(__AVX__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(value));
#else
  store(to, value);
#endif
}

inline void sent() {
#if defined(__AVX__)
  _mm_sfence();
#endif
}

inline bool is_aligned(const void* place) { return reinterpret_cast<uintptr_t>(place) % kVectorBytes == 0; }

inline void add_to_lanes(double* lanes, Vector<double> value) { store(lanes, load(lanes) + value); }

inline void add_to_lanes(double* lanes, Vector<float> value) {
#if FASTMTL_VECTOR_BYTES == 64 && defined(__AVX512F__)  // GCC 12 makes a detour of the generic form
  __m256 halves[2];
  std::memcpy(halves, &value, sizeof value);
  const __m256 folded = halves[0] + halves[1];
  add_to_lanes(lanes, _mm512_maskz_cvtps_pd(0xff, folded));
#elif FASTMTL_VECTOR_BYTES == 32 && defined(__AVX__)
  const __m128 folded = _mm256_castps256_ps128(value) + _mm256_extractf128_ps(value, 1);
  add_to_lanes(lanes, _mm256_cvtps_pd(folded));
#else
  VectorOf<float>::half halves[2];
  std::memcpy(halves, &value, sizeof value);
  add_to_lanes(lanes, __builtin_convertvector(halves[0] + halves[1], Vector<double>));
#endif
}

// Calls run(begin, end) for blocks of `chain` vectors, short enough for accumulators in S.
template <class S, class Run>
inline void in_chains(int64_t count, const Run& run, int64_t chain = kChain) {
  for (int64_t i = 0; i < count; i += chain * kWidth<S>)
    run(i, i + chain * kWidth<S> < count ? i + chain * kWidth<S> : count);
}

}  // namespace
}  // namespace fastmtl
