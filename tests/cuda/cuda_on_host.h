// What kernels take from CUDA, for g++: a block is a thread of the host, and each of its threads a fiber there, which
// runs to the next barrier; see block_on_host.cpp.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local  // a block's own
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

namespace on_host {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

inline thread_local Index thread, block, threads, blocks;

enum class Meeting { block, warp, shuffle };
// Goes on when all threads of the block or the warp have come; ends the program where one of them never will.
void meet(Meeting at);
// Puts a thread's bits where the others of its warp see them, and reads another's.
void show(uint64_t bits);
uint64_t shown_by(unsigned lane);
void fence();
uint32_t add(uint32_t* p, uint32_t x);

template <class T>
T from_lane(T value, unsigned lane) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  show(bits);
  meet(Meeting::shuffle);
  bits = shown_by(lane);
  T result;
  std::memcpy(&result, &bits, sizeof(T));
  meet(Meeting::shuffle);
  return result;
}

}  // namespace on_host

#define threadIdx on_host::thread
#define blockIdx on_host::block
#define blockDim on_host::threads
#define gridDim on_host::blocks

inline void __syncthreads() { on_host::meet(on_host::Meeting::block); }
inline void __syncwarp() { on_host::meet(on_host::Meeting::warp); }
inline void __threadfence() { on_host::fence(); }

// Of a whole warp, as the kernels use them.
template <class T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  return on_host::from_lane(value, (threadIdx.x % 32) ^ lanes);
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return on_host::from_lane(value, lane % 32);
}

inline uint32_t atomicAdd(uint32_t* p, uint32_t x) { return on_host::add(p, x); }
template <class T>
T __ldcg(const T* p) {
  return *p;
}

inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

using __half = _Float16;
inline __half __ushort_as_half(uint16_t bits) {
  __half x;
  std::memcpy(&x, &bits, 2);
  return x;
}
inline uint16_t __half_as_ushort(__half x) {
  uint16_t bits;
  std::memcpy(&bits, &x, 2);
  return bits;
}
inline float __half2float(__half x) { return static_cast<float>(x); }
inline __half __float2half_rn(float x) { return static_cast<__half>(x); }

struct __nv_bfloat16 {
  uint16_t bits;
};
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  const uint32_t bits = __float_as_uint(x);
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }

using std::fabs;
using std::fmaxf;
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
