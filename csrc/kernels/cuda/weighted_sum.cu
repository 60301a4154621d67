#include "lists.h"
#include "numbers.h"

namespace fastmtl::cuda {

constexpr int kThreads = 128;

// Groups of V positions that a thread takes at a time, and tasks whose loads are under way together.
template <int V>
static constexpr int kGroups = V == 1 ? 4 : 1;
template <int V>
static constexpr int kAtOnce = V == 1 ? 4 : 8;
template <int V>
static constexpr int kTile = kThreads * kGroups<V> * V;

template <Dtype D, int V>
__global__ void __launch_bounds__(kThreads) weighted_sum_kernel(const __grid_constant__ WeightedSum p) {
  constexpr int64_t kSize = sizeof(typename Raw<D>::Type);
  __shared__ float weights[kMaxTasks];
  const int tasks = p.columns.tasks;
  if (static_cast<int>(threadIdx.x) < tasks) weights[threadIdx.x] = p.weights.at(threadIdx.x);
  __syncthreads();
  const int64_t tiles = p.columns.ends[p.columns.count - 1];
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Tile tile = tile_at(p.columns, static_cast<uint32_t>(index), kTile<V>);
    const int64_t length = p.columns.lengths[tile.column], first = tile.first + threadIdx.x * V;
    float total[kGroups<V>][V] = {};
    for (int first_task = 0; first_task < tasks; first_task += kAtOnce<V>) {
      Packet<D, V> read[kAtOnce<V>][kGroups<V>];
      bool arrived[kAtOnce<V>];
#pragma unroll
      for (int n = 0; n < kAtOnce<V>; ++n) {
        const char* data = first_task + n < tasks ? p.columns.pointer(tile.column, first_task + n) : nullptr;
        arrived[n] = data != nullptr;
#pragma unroll
        for (int g = 0; g < kGroups<V>; ++g) {
          const int64_t at = first + g * kThreads * V;
          if (arrived[n] && at < length) read[n][g] = Packet<D, V>::load(data + at * kSize);
        }
      }
#pragma unroll
      for (int n = 0; n < kAtOnce<V>; ++n) {
        if (!arrived[n]) continue;  // whatever its weight is
        const float weight = weights[first_task + n];
#pragma unroll
        for (int g = 0; g < kGroups<V>; ++g) {
#pragma unroll
          for (int v = 0; v < V; ++v) total[g][v] += weight * read[n][g].get(v);
        }
      }
    }
    // The result may be one of the gradients: what a thread writes, it alone has read, and before.
    char* out = p.columns.pointer(tile.column, tasks);
#pragma unroll
    for (int g = 0; g < kGroups<V>; ++g) {
      const int64_t at = first + g * kThreads * V;
      if (at >= length) break;
      Packet<D, V> sum;
#pragma unroll
      for (int v = 0; v < V; ++v) sum.set(v, total[g][v]);
      sum.store(out + at * kSize);
    }
  }
}

namespace {

template <Dtype D, int V>
const char* run(const Device& device, WeightedSum& p) {
  const auto kernel = &weighted_sum_kernel<D, V>;
  const int64_t tiles = count_tiles(p.columns, kTile<V>);
  return launch(device, kernel, blocks_for(device, reinterpret_cast<const void*>(kernel), kThreads, tiles), kThreads,
                p);
}

template <Dtype D>
const char* run(const Device& device, WeightedSum& p) {
  return p.columns.vector ? run<D, kVector<D>>(device, p) : run<D, 1>(device, p);
}

}  // namespace

const char* weighted_sum(const Device& device, WeightedSum& p) {
  return with_dtype(p.columns.dtype, [&](auto constant) { return run<decltype(constant)::value>(device, p); });
}

}  // namespace fastmtl::cuda
