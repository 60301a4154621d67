// The end of a launch: partial results of all blocks, added in a fixed order by the block that comes last.
//
// Every block stores its partial results, then takes a ticket. Blocks are in groups: the last of a group adds up the
// group's, the last of these the groups'. Which block comes last changes from run to run; what it adds, and in which
// order, does not. The last one puts the ticket back to zero.
#pragma once

#include "device.h"

namespace fastmtl::cuda {

struct Finish {
  float* partials;    // (blocks + groups) * width
  uint32_t* tickets;  // 1 + groups zeros
  int blocks, group;

  FASTMTL_HD int groups() const { return (blocks + group - 1) / group; }
};

// Blocks that share a ticket: about as many as there are groups.
inline int group_of(int blocks) {
  int group = 1;
  while (group * group < blocks) group *= 2;
  return group;
}

// Whether this is the last of `count` blocks to come here; what the others stored before can then be read. All threads
// of the block call it.
__device__ inline bool is_last(uint32_t* ticket, int count) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();  // what the block stored comes before the ticket
    last = atomicAdd(ticket, 1u) == static_cast<uint32_t>(count - 1);
    __threadfence();  // the ticket comes before what the block reads
    if (last) *ticket = 0;
  }
  __syncthreads();
  return last;
}

// out [width] = the sum of rows first ... first + count - 1, in a fixed order. Other blocks wrote them: they are read
// past the first cache. `out` is in shared or in global memory; it can be read after a barrier.
template <int Threads>
__device__ void sum_rows(const float* rows, int64_t first, int count, int width, float* out) {
  __shared__ float parts[Threads];
  const int slices = width < Threads ? Threads / width : 1;  // of the rows, where there are more threads than columns
  const int slice = threadIdx.x / width;
  if (slices == 1) {
    for (int i = threadIdx.x; i < width; i += Threads) {
      float total = 0;
      for (int row = 0; row < count; ++row) total += __ldcg(rows + (first + row) * width + i);
      out[i] = total;
    }
    return;
  }
  if (slice < slices) {
    const int i = threadIdx.x % width;
    float total = 0;
    for (int row = slice; row < count; row += slices) total += __ldcg(rows + (first + row) * width + i);
    parts[threadIdx.x] = total;
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < width) {
    float total = 0;
    for (int s = 0; s < slices; ++s) total += parts[s * width + threadIdx.x];
    out[threadIdx.x] = total;
  }
  __syncthreads();  // parts can be written again
}

// Of `values` [width] in shared memory, which all threads can see: whether this block, `block` of f.blocks, is the last
// of all, and then in `out` the sum over all blocks, which all threads can see.
template <int Threads>
__device__ bool finish(const Finish& f, int block, const float* values, int width, float* out) {
  const int i_group = block / f.group;
  for (int i = threadIdx.x; i < width; i += Threads) f.partials[static_cast<int64_t>(block) * width + i] = values[i];
  const int first = i_group * f.group;
  const int members = f.blocks - first < f.group ? f.blocks - first : f.group;
  if (!is_last(f.tickets + 1 + i_group, members)) return false;
  sum_rows<Threads>(f.partials, first, members, width, f.partials + static_cast<int64_t>(f.blocks + i_group) * width);
  if (!is_last(f.tickets, f.groups())) return false;
  sum_rows<Threads>(f.partials, f.blocks, f.groups(), width, out);
  __syncthreads();
  return true;
}

template <int Threads>
__device__ bool finish(const Finish& f, const float* values, int width, float* out) {
  return finish<Threads>(f, static_cast<int>(blockIdx.x), values, width, out);
}

// out [Count] in shared memory: the sums of `values` over the threads of a block, in a fixed order; after a barrier.
template <int Threads, int Count>
__device__ void block_sums(const float (&values)[Count], float* out) {
  __shared__ float parts[Threads / 32][Count];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int c = 0; c < Count; ++c) {
    float x = values[c];
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
    if (lane == 0) parts[warp][c] = x;
  }
  __syncthreads();
  for (int c = threadIdx.x; c < Count; c += Threads) {
    float total = 0;
#pragma unroll
    for (int w = 0; w < Threads / 32; ++w) total += parts[w][c];
    out[c] = total;
  }
  __syncthreads();
}

}  // namespace fastmtl::cuda
