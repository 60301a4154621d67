#include "lists.h"
#include "numbers.h"

namespace fastmtl::cuda {

constexpr int kThreads = 128;

// Groups of V numbers that a thread reads together.
template <int V>
static constexpr int kGroups = V == 1 ? 8 : 4;
template <int V>
static constexpr int kTile = kThreads * kGroups<V> * V;

// Every tensor is a stream of its own: a block takes a tile of one task at a time.
template <Dtype D, int V>
__global__ void __launch_bounds__(kThreads) squared_norms_kernel(const __grid_constant__ ListStatistic p) {
  __shared__ float sums[kThreads / 32][kMaxTasks];
  const int tasks = p.columns.tasks, warp = threadIdx.x / 32;
  for (int i = threadIdx.x; i < kThreads / 32 * kMaxTasks; i += kThreads) sums[i / kMaxTasks][i % kMaxTasks] = 0;
  __syncthreads();
  const int64_t items = static_cast<int64_t>(p.columns.ends[p.columns.count - 1]) * tasks;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t index = item / tasks;
    const int k = static_cast<int>(item - index * tasks);
    const Tile tile = tile_at(p.columns, static_cast<uint32_t>(index), kTile<V>);
    const char* data = p.columns.pointer(tile.column, k);
    if (data == nullptr) continue;
    Packet<D, V> read[kGroups<V>];
#pragma unroll
    for (int g = 0; g < kGroups<V>; ++g) {
      const int64_t at = tile.first + (g * kThreads + threadIdx.x) * V;
      if (at < p.columns.lengths[tile.column])
        read[g] = Packet<D, V>::load(data + at * static_cast<int64_t>(sizeof(typename Raw<D>::Type)));
    }
    float part = 0;
#pragma unroll
    for (int g = 0; g < kGroups<V>; ++g) {
#pragma unroll
      for (int v = 0; v < V; ++v) part += read[g].get(v) * read[g].get(v);
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) part += __shfl_xor_sync(0xffffffffu, part, distance);
    if (threadIdx.x % 32 == 0) sums[warp][k] += part;
  }

  __shared__ float values[kMaxTasks];
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < tasks) {
    float total = 0;
#pragma unroll
    for (int w = 0; w < kThreads / 32; ++w) total += sums[w][threadIdx.x];
    values[threadIdx.x] = total;
  }
  __syncthreads();
  if (!finish<kThreads>(p.finish, values, tasks, values)) return;
  for (int k = threadIdx.x; k < tasks; k += kThreads) p.result[k] = values[k] + (p.accumulate ? p.result[k] : 0.0f);
}

namespace {

template <Dtype D, int V>
const char* run(const Device& device, ListStatistic& p) {
  const auto kernel = &squared_norms_kernel<D, V>;
  const int64_t items = count_tiles(p.columns, kTile<V>) * p.columns.tasks;
  p.finish.blocks = blocks_for(device, reinterpret_cast<const void*>(kernel), kThreads, items);
  p.finish.group = group_of(p.finish.blocks);
  return launch(device, kernel, p.finish.blocks, kThreads, p);
}

template <Dtype D>
const char* run(const Device& device, ListStatistic& p) {
  return p.columns.vector ? run<D, kVector<D>>(device, p) : run<D, 1>(device, p);
}

}  // namespace

int64_t squared_norms_numbers(const Device& device, int tasks) { return 2 * most_blocks(device) * tasks; }

const char* squared_norms(const Device& device, ListStatistic& p) {
  return with_dtype(p.columns.dtype, [&](auto constant) { return run<decltype(constant)::value>(device, p); });
}

}  // namespace fastmtl::cuda
