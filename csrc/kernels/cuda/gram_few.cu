#include "lists.h"
#include "numbers.h"

namespace fastmtl::cuda {

constexpr int kThreads = 128;

// Positions that a thread takes at a time: of single numbers several, for loads under way and for short sums.
template <Dtype D, bool Vector>
static constexpr int kPositions = Vector ? kVector<D> : 4;

// Every thread holds the sums of all pairs (i, j), j <= i. `Capacity`: tasks that there are registers for.
template <Dtype D, int Capacity, bool Vector>
__global__ void __launch_bounds__(kThreads) gram_few_kernel(const __grid_constant__ ListStatistic p) {
  constexpr int N = kPositions<D, Vector>, V = Vector ? N : 1, kPairs = Capacity * (Capacity + 1) / 2;
  const int tasks = p.columns.tasks;
  float sums[kPairs] = {};
  const int64_t tiles = p.columns.ends[p.columns.count - 1];
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Tile tile = tile_at(p.columns, static_cast<uint32_t>(index), kThreads * N);
    const int64_t length = p.columns.lengths[tile.column];
    Packet<D, V> read[Capacity][N / V];
#pragma unroll
    for (int k = 0; k < Capacity; ++k) {
      const char* data = k < tasks ? p.columns.pointer(tile.column, k) : nullptr;
#pragma unroll
      for (int g = 0; g < N / V; ++g) {
        const int64_t at = tile.first + (g * kThreads + threadIdx.x) * V;
        if (data != nullptr && at < length)
          read[k][g] = Packet<D, V>::load(data + at * static_cast<int64_t>(sizeof(typename Raw<D>::Type)));
      }
    }
#pragma unroll
    for (int i = 0; i < Capacity; ++i) {
#pragma unroll
      for (int j = 0; j <= i; ++j) {
        float part = 0;
#pragma unroll
        for (int n = 0; n < N; ++n) part += read[i][n / V].get(n % V) * read[j][n / V].get(n % V);
        sums[i * (i + 1) / 2 + j] += part;
      }
    }
  }

  __shared__ float values[kPairs];
  block_sums<kThreads, kPairs>(sums, values);
  if (!finish<kThreads>(p.finish, values, tasks * (tasks + 1) / 2, values)) return;
  for (int n = threadIdx.x; n < tasks * tasks; n += kThreads) {
    const int i = n / tasks, j = n % tasks;
    const float total = values[i < j ? j * (j + 1) / 2 + i : i * (i + 1) / 2 + j];
    p.result[n] = total + (p.accumulate ? p.result[n] : 0.0f);
  }
}

namespace {

template <Dtype D, int Capacity, bool Vector>
const char* run(const Device& device, ListStatistic& p) {
  const auto kernel = &gram_few_kernel<D, Capacity, Vector>;
  const int64_t tiles = count_tiles(p.columns, kThreads * kPositions<D, Vector>);
  p.finish.blocks = blocks_for(device, reinterpret_cast<const void*>(kernel), kThreads, tiles);
  p.finish.group = group_of(p.finish.blocks);
  return launch(device, kernel, p.finish.blocks, kThreads, p);
}

// Few variants, as each is compiled for many GPUs.
template <Dtype D>
const char* run(const Device& device, ListStatistic& p) {
  const int tasks = p.columns.tasks;
  if (!p.columns.vector) return run<D, kFewTasks, false>(device, p);
  if (tasks <= 4) return run<D, 4, true>(device, p);
  return tasks <= 7 ? run<D, 7, true>(device, p) : run<D, kFewTasks, true>(device, p);
}

}  // namespace

const char* gram_few(const Device& device, ListStatistic& p) {
  return with_dtype(p.columns.dtype, [&](auto constant) { return run<decltype(constant)::value>(device, p); });
}

}  // namespace fastmtl::cuda
