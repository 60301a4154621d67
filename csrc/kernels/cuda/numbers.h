// Numbers as they lie in memory, and as float32: 16 bytes of them are read at once where they are aligned.
#pragma once

#include "../dtype.h"
#include "device.h"

namespace fastmtl::cuda {

template <Dtype D>
struct Raw {
  using Type = uint16_t;
};
template <>
struct Raw<Dtype::f32> {
  using Type = float;
};

// Numbers in 16 bytes.
template <Dtype D>
constexpr int kVector = D == Dtype::f32 ? 4 : 8;

template <Dtype D>
__device__ inline float to_float(typename Raw<D>::Type raw) {
  if constexpr (D == Dtype::f32) return raw;
  if constexpr (D == Dtype::bf16) return __uint_as_float(static_cast<uint32_t>(raw) << 16);
  if constexpr (D == Dtype::f16) return __half2float(__ushort_as_half(raw));
}

// To nearest, ties to even.
template <Dtype D>
__device__ inline typename Raw<D>::Type from_float(float x) {
  if constexpr (D == Dtype::f32) return x;
  if constexpr (D == Dtype::bf16) return __bfloat16_as_ushort(__float2bfloat16_rn(x));
  if constexpr (D == Dtype::f16) return __half_as_ushort(__float2half_rn(x));
}

// V numbers as they lie in memory: 16 or 8 bytes, or a single number.
template <Dtype D, int V>
struct Packet {
  static constexpr int kBytes = V * static_cast<int>(sizeof(typename Raw<D>::Type));
  static_assert(V == 1 || kBytes == 16 || kBytes == 8);
  uint32_t words[V == 1 ? 1 : kBytes / 4] = {};

  __device__ static Packet load(const void* p) {
    Packet packet;
    if constexpr (V == 1 && D == Dtype::f32) {
      packet.words[0] = *static_cast<const uint32_t*>(p);
    } else if constexpr (V == 1) {
      packet.words[0] = *static_cast<const uint16_t*>(p);
    } else if constexpr (kBytes == 16) {
      const uint4 read = *static_cast<const uint4*>(p);
      packet.words[0] = read.x, packet.words[1] = read.y, packet.words[2] = read.z, packet.words[3] = read.w;
    } else {
      const uint2 read = *static_cast<const uint2*>(p);
      packet.words[0] = read.x, packet.words[1] = read.y;
    }
    return packet;
  }

  __device__ void store(void* p) const {
    if constexpr (V == 1 && D == Dtype::f32) {
      *static_cast<uint32_t*>(p) = words[0];
    } else if constexpr (V == 1) {
      *static_cast<uint16_t*>(p) = static_cast<uint16_t>(words[0]);
    } else if constexpr (kBytes == 16) {
      *static_cast<uint4*>(p) = make_uint4(words[0], words[1], words[2], words[3]);
    } else {
      *static_cast<uint2*>(p) = make_uint2(words[0], words[1]);
    }
  }

  __device__ float get(int i) const {
    if constexpr (D == Dtype::f32) return __uint_as_float(words[i]);
    if constexpr (D != Dtype::f32) return to_float<D>(static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2))));
  }

  __device__ void set(int i, float x) {
    if constexpr (D == Dtype::f32) {
      words[i] = __float_as_uint(x);
    } else {
      const int shift = 16 * (i % 2);
      words[i / 2] = (words[i / 2] & ~(0xffffu << shift)) | (static_cast<uint32_t>(from_float<D>(x)) << shift);
    }
  }
};

// A dtype as a type, for calls that need it when they are compiled.
template <Dtype D>
struct DtypeConstant {
  static constexpr Dtype value = D;
};

// run(DtypeConstant<dtype>()), which gives null or what went wrong.
template <class Run>
const char* with_dtype(Dtype dtype, const Run& run) {
  switch (dtype) {
    case Dtype::f32:
      return run(DtypeConstant<Dtype::f32>());
    case Dtype::bf16:
      return run(DtypeConstant<Dtype::bf16>());
    case Dtype::f16:
      return run(DtypeConstant<Dtype::f16>());
    case Dtype::f64:
      break;
  }
  return "float64 has no kernel";
}

}  // namespace fastmtl::cuda
