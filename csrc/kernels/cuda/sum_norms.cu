#include "blocks.h"
#include "numbers.h"
#include "sum_norms.h"

namespace fastmtl::cuda {

constexpr int kThreads = 128;

// Groups of V positions that a thread takes at a time: single numbers need more loads under way, and long sums of
// single numbers would round more.
template <int V>
static constexpr int kGroups = V == 1 ? 4 : 1;

// Reads each gradient once and writes the sum once. `Capacity`: tasks that there are registers for; V numbers a thread.
// At least one block a multiprocessor: where nothing is said the compiler saves registers for more, and spills in the
// step.
template <Dtype D, int Capacity, int V>
__global__ void __launch_bounds__(kThreads, 1) sum_norms_kernel(const __grid_constant__ SumNorms p) {
  using Number = typename Raw<D>::Type;
  float squares[Capacity] = {};
  const int64_t groups = p.positions.count / V, tile = kThreads * kGroups<V>;
  for (int64_t first_group = blockIdx.x * tile; first_group < groups; first_group += gridDim.x * tile) {
    float parts[Capacity] = {};
#pragma unroll(Capacity > 12 ? 1 : kGroups<V>)
    for (int g = 0; g < kGroups<V>; ++g) {
      const int64_t group = first_group + g * kThreads + threadIdx.x;
      if (group >= groups) break;
      const Coordinates position = coordinates_of(p.positions, group * V);
      float total[V] = {};
      // Some tasks at a time: their loads are under way together.
      constexpr int kAtOnce = Capacity % 8 == 0 ? 8 : Capacity % 6 == 0 ? 6 : Capacity;
#pragma unroll
      for (int first = 0; first < Capacity; first += kAtOnce) {
        Packet<D, V> read[kAtOnce];
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
          const int k = first + n;
          if (p.present >> k & 1) read[n] = Packet<D, V>::load(at<Number>(p.grads[k], p.positions, position));
        }
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
#pragma unroll
          for (int v = 0; v < V; ++v) {
            const float x = read[n].get(v);
            total[v] += x;
            parts[first + n] += x * x;
          }
        }
      }
      Packet<D, V> sum;
#pragma unroll
      for (int v = 0; v < V; ++v) sum.set(v, total[v]);
      sum.store(at<Number>(p.total, p.positions, position));
    }
#pragma unroll
    for (int k = 0; k < Capacity; ++k) squares[k] += parts[k];
  }

  __shared__ float values[Capacity];
  __shared__ double memory[GradNormUpdate<float, BlockTeam>::workspace(kMaxTasks)];
  block_sums<kThreads, Capacity>(squares, values);
  if (!finish<kThreads>(p.finish, values, p.tasks, p.norms)) return;
  if (p.step) GradNormUpdate<float, BlockTeam>(p.update, BlockTeam(), memory)();
}

namespace {

template <Dtype D, int Capacity, int V>
const char* run(const Device& device, SumNorms& p) {
  const auto kernel = &sum_norms_kernel<D, Capacity, V>;
  const int64_t tile = kThreads * kGroups<V>, tiles = (p.positions.count / V + tile - 1) / tile;
  p.finish.blocks = blocks_for(device, reinterpret_cast<const void*>(kernel), kThreads, tiles);
  p.finish.group = group_of(p.finish.blocks);
  return launch(device, kernel, p.finish.blocks, kThreads, p);
}

// Few variants, as each is compiled for many GPUs: tasks that are not there are neither read nor waited for.
template <Dtype D>
const char* run(const Device& device, bool vector, SumNorms& p) {
  if (!vector) return p.tasks <= 12 ? run<D, 12, 1>(device, p) : run<D, 64, 1>(device, p);
  if (p.tasks <= 4) return run<D, 4, kVector<D>>(device, p);
  return p.tasks <= 12 ? run<D, 12, kVector<D>>(device, p) : run<D, 64, kVector<D>>(device, p);
}

}  // namespace

int64_t sum_norms_numbers(const Device& device, int tasks) { return 2 * most_blocks(device) * tasks; }

const char* sum_norms(const Device& device, Dtype dtype, bool vector, SumNorms& p) {
  return with_dtype(dtype, [&](auto constant) { return run<decltype(constant)::value>(device, vector, p); });
}

}  // namespace fastmtl::cuda
