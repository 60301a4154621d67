// As `finish`, of numbers that each thread of a block has of its own: they go to the same thread of the last block.
#pragma once

#include "finish.h"

namespace fastmtl::cuda {

// The first `used` of a thread's numbers, those of neighbours beside each other.
template <int Threads, int N>
__device__ __forceinline__ void store_own(const float (&own)[N], int used, float* rows, int64_t row) {
  float* out = rows + row * used * Threads + threadIdx.x;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i < used) out[i * Threads] = own[i];
  }
}

// The sum of rows first ... first + count - 1, in their order.
template <int Threads, int N>
__device__ __forceinline__ void sum_own(const float* rows, int64_t first, int count, int used, float (&own)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) own[i] = 0;
#pragma unroll 1
  for (int row = 0; row < count; ++row) {
    const float* in = rows + (first + row) * used * Threads + threadIdx.x;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i < used) own[i] += __ldcg(in + i * Threads);
    }
  }
}

// Whether this block, `block` of f.blocks, is the last of all; `own` is then the sum over all blocks. Rows of partial
// results have used * Threads numbers.
template <int Threads, int N>
__device__ __forceinline__ bool finish_own(const Finish& f, int block, int used, float (&own)[N]) {
  const int i_group = block / f.group, first = i_group * f.group;
  const int members = f.blocks - first < f.group ? f.blocks - first : f.group;
  // First the members of a group, then the groups; in a loop, as the code is long.
#pragma unroll 1
  for (int level = 0; level < 2; ++level) {
    store_own<Threads>(own, used, f.partials, level == 0 ? block : f.blocks + i_group);
    const int count = level == 0 ? members : f.groups();
    if (!is_last(level == 0 ? f.tickets + 1 + i_group : f.tickets, count)) return false;
    sum_own<Threads>(f.partials, level == 0 ? first : f.blocks, count, used, own);
  }
  return true;
}

}  // namespace fastmtl::cuda
