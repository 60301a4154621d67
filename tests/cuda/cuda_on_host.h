// What kernels take from CUDA, for g++: a thread of a block is a thread of the host, a block comes after another.
#pragma once

#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static  // one block runs at a time
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

struct Warp {
  explicit Warp(int lanes) : all(lanes) {}
  std::barrier<> all;
  uint64_t values[32] = {};
};

struct Block {
  explicit Block(int threads) : all(threads) {
    for (int first = 0; first < threads; first += 32)
      warps.push_back(std::make_unique<Warp>(threads - first < 32 ? threads - first : 32));
  }
  std::barrier<> all;
  std::vector<std::unique_ptr<Warp>> warps;
};

inline thread_local Index thread, block, threads, blocks;
inline thread_local Block* team = nullptr;

template <class T>
T from_lane(T value, unsigned lane) {
  static_assert(sizeof(T) <= 8);
  Warp& warp = *team->warps[thread.x / 32];
  std::memcpy(&warp.values[thread.x % 32], &value, sizeof(T));
  warp.all.arrive_and_wait();
  T result;
  std::memcpy(&result, &warp.values[lane], sizeof(T));
  warp.all.arrive_and_wait();
  return result;
}

}  // namespace on_host

#define threadIdx on_host::thread
#define blockIdx on_host::block
#define blockDim on_host::threads
#define gridDim on_host::blocks

inline void __syncthreads() { on_host::team->all.arrive_and_wait(); }
inline void __syncwarp() { on_host::team->warps[threadIdx.x / 32]->all.arrive_and_wait(); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }

// Of a whole warp, as the kernels use them.
template <class T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  return on_host::from_lane(value, (threadIdx.x % 32) ^ lanes);
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return on_host::from_lane(value, lane % 32);
}

inline uint32_t atomicAdd(uint32_t* p, uint32_t x) { return __atomic_fetch_add(p, x, __ATOMIC_SEQ_CST); }
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
