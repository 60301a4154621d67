// Sums of few gradients and their moments: a thread has the sums of all pairs in registers.
#include "finish_own.h"
#include "numbers.h"
#include "sum_moments.h"

namespace fastmtl::cuda {

constexpr int kThreads = 128;

// A number of each thread for every pair of tasks, in shared memory.
using Columns = float (*)[kThreads];

// Samples that a thread takes at once, so that enough loads are under way.
template <int Capacity, int V>
static constexpr int kAtOnce = (V == 1 ? 2 : 1) * (Capacity <= 4 ? 2 : 1);

// Tasks up to which a thread takes 16 bytes of every dtype at once. For more the sums of twice as many positions would
// spill: four numbers are 8 bytes of those of 16 bits.
constexpr int kWideTasks = 8;

// Whether a kernel takes that dtype.
template <Dtype D, int Capacity, int V>
static constexpr bool kHas = V == 1 || Capacity > kWideTasks || V == kVector<D>;

// Blocks that a multiprocessor shall hold at least: as many as registers allow, without spills.
template <int Capacity>
static constexpr int kResident = Capacity <= 4 ? 4 : 2;

// A thread's samples first, first + step, ... of V positions: the sum over tasks is written, and products and gradients
// are added to q and sums [k * V + v]. Offsets are those of the positions.
template <Dtype D, int Capacity, int V>
__device__ __forceinline__ void sum_samples(const SumMoments& p, const int64_t (&offsets)[Capacity],
                                            int64_t total_offset, int64_t first, int64_t last, int step, float* q,
                                            float* sums) {
  using Number = typename Raw<D>::Type;
  constexpr int kSamples = kAtOnce<Capacity, V>;
#pragma unroll 1
  for (int64_t sample = first; sample < last; sample += step * kSamples) {
    Packet<D, V> read[kSamples][Capacity];
#pragma unroll
    for (int s = 0; s < kSamples; ++s) {
      const int64_t i = sample + s * step;
#pragma unroll
      for (int k = 0; k < Capacity; ++k) {
        if (p.present >> k & 1 && i < last)
          read[s][k] = Packet<D, V>::load(reinterpret_cast<const Number*>(p.grads[k].data) + offsets[k] +
                                          i * p.grads[k].sample_stride);
      }
    }
#pragma unroll
    for (int s = 0; s < kSamples; ++s) {
      const int64_t i = sample + s * step;
      float total[V] = {}, x[Capacity][V];
#pragma unroll
      for (int k = 0; k < Capacity; ++k) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          x[k][v] = read[s][k].get(v);
          total[v] += x[k][v];
          sums[k * V + v] += x[k][v];
        }
#pragma unroll
        for (int j = 0; j <= k; ++j) {
          float product = 0;
#pragma unroll
          for (int v = 0; v < V; ++v) product += x[k][v] * x[j][v];
          q[pairs_of(k) + j] += product;
        }
      }
      Packet<D, V> sum;
#pragma unroll
      for (int v = 0; v < V; ++v) sum.set(v, total[v]);
      if (i < last) sum.store(reinterpret_cast<Number*>(p.total.data) + total_offset + i * p.total.sample_stride);
    }
  }
}

// The products of sums [k * V + v] over samples are added to this thread's numbers. These are in shared memory, as a
// tile comes to them once, and registers are short.
template <int Capacity, int V>
__device__ __forceinline__ void add_products(const float* sums, Columns m) {
#pragma unroll
  for (int k = 0; k < Capacity; ++k) {
#pragma unroll
    for (int j = 0; j <= k; ++j) {
      float product = 0;
#pragma unroll
      for (int v = 0; v < V; ++v) product += sums[k * V + v] * sums[j * V + v];
      m[pairs_of(k) + j][threadIdx.x] += product;
    }
  }
}

// Threads of the first row of lanes get the sums over all rows, the others zeros; `parts` has V rows.
template <int Capacity, int V>
__device__ __forceinline__ void fold_rows(int lanes, float* sums, Columns parts) {
  const int thread = threadIdx.x;
#pragma unroll
  for (int k = 0; k < Capacity; ++k) {
    __syncthreads();
#pragma unroll
    for (int v = 0; v < V; ++v) parts[v][thread] = sums[k * V + v];
    __syncthreads();
#pragma unroll
    for (int v = 0; v < V; ++v) {
      float total = 0;
#pragma unroll 1
      for (int other = thread; thread < lanes && other < kThreads; other += lanes) total += parts[v][other];
      sums[k * V + v] = total;
    }
  }
  __syncthreads();
}

// out [count]: the sums over threads, in a fixed order. All can see it, and m can be written again.
__device__ __forceinline__ void sum_columns(Columns m, int count, float* out) {
  const int lane = threadIdx.x % 32;
  __syncthreads();
#pragma unroll 1
  for (int pair = threadIdx.x / 32; pair < count; pair += kThreads / 32) {
    float x = 0;
#pragma unroll
    for (int thread = 0; thread < kThreads; thread += 32) x += m[pair][thread + lane];
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
    if (lane == 0) out[pair] = x;
  }
  __syncthreads();
}

// Reads each gradient once and writes the sum once. A block takes all samples of its tiles of positions, or a share of
// those of one tile. Every dtype in one kernel, as most of the code is the same, the update above all.
template <int Capacity, int V>
__global__ void __launch_bounds__(kThreads, kResident<Capacity>)
    moments_few_kernel(const __grid_constant__ SumMoments p) {
  constexpr int kPairs = pairs_of(Capacity);
  __shared__ float m[kPairs][kThreads];
  __shared__ float values[2 * kPairs];
  const int thread = threadIdx.x, splits = p.splits(), pairs = pairs_of(p.tasks);
#pragma unroll
  for (int pair = 0; pair < kPairs; ++pair) m[pair][thread] = 0;

  const int lane = thread & (p.lanes - 1), row = thread / p.lanes, rows = kThreads / p.lanes;
  const int64_t groups = p.positions.count / V;
  const int own_tile = blockIdx.x / splits, split = blockIdx.x % splits;
  const int64_t first = p.batch * split / splits, last = p.batch * (split + 1) / splits;
  float q[kPairs] = {};
  float own[1 + Capacity * V] = {};
  float* const sums = own + 1;
#pragma unroll 1
  for (int64_t tile = own_tile; tile * kThreads < groups; tile += gridDim.x / splits) {
#pragma unroll
    for (int i = 0; i < Capacity * V; ++i) sums[i] = 0;
    const int64_t group = tile * kThreads + lane;
    const int64_t start = group < groups ? first + row : last;  // those beyond the end have no samples
    const Coordinates position = coordinates_of(p.positions, group * V);
    int64_t offsets[Capacity];
#pragma unroll
    for (int k = 0; k < Capacity; ++k) offsets[k] = offset_of(p.grads[k], p.positions, position);
    const int64_t total_offset = offset_of(p.total, p.positions, position);
    if constexpr (kHas<Dtype::f32, Capacity, V>) {
      if (p.dtype == Dtype::f32)
        sum_samples<Dtype::f32, Capacity, V>(p, offsets, total_offset, start, last, rows, q, sums);
    }
    if constexpr (kHas<Dtype::bf16, Capacity, V>) {
      if (p.dtype == Dtype::bf16)
        sum_samples<Dtype::bf16, Capacity, V>(p, offsets, total_offset, start, last, rows, q, sums);
    }
    if constexpr (kHas<Dtype::f16, Capacity, V>) {
      if (p.dtype == Dtype::f16)
        sum_samples<Dtype::f16, Capacity, V>(p, offsets, total_offset, start, last, rows, q, sums);
    }
    if (splits == 1) add_products<Capacity, V>(sums, m);
  }
  if (splits == 1) sum_columns(m, pairs, values + pairs);
#pragma unroll
  for (int pair = 0; pair < kPairs; ++pair) m[pair][thread] = q[pair];
  sum_columns(m, pairs, values);
  int block = blockIdx.x;
  if (splits > 1) {
    // M needs the sums over all samples before they are multiplied.
    block = own_tile;
    own[0] = thread < pairs ? values[thread] : 0;
    if (!finish_own<kThreads>(samples_of(p, block, kThreads * (1 + p.tasks * V)), split, 1 + p.tasks * V, own)) return;
    if (thread < pairs) values[thread] = own[0];
    if (rows > 1) fold_rows<Capacity, V>(p.lanes, sums, m);
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) m[pair][thread] = 0;
    add_products<Capacity, V>(sums, m);
    sum_columns(m, pairs, values + pairs);
  }
  if (!finish<kThreads>(p.finish, block, values, 2 * pairs, values)) return;
  for (int i = thread; i < p.tasks * p.tasks; i += kThreads) {
    const int k = i / p.tasks, j = i % p.tasks, pair = k > j ? pairs_of(k) + j : pairs_of(j) + k;
    p.Q[i] = static_cast<float>(p.batch) * values[pair];
    p.M[i] = values[pairs + pair];
  }
  if (!p.step) return;
  __syncthreads();
  GnrUpdate<float, BlockTeam>(p.update, BlockTeam(), p.memory)();
}

namespace {

template <int Capacity, int V>
MomentsKernel made(int tasks) {
  return {&moments_few_kernel<Capacity, V>, kThreads, kThreads * V, V, 2 * pairs_of(tasks),
          (1 + tasks * V) * kThreads,       8,        true};
}

}  // namespace

// Few kernels, as each is compiled for many GPUs.
MomentsKernel moments_of_few(bool vector, Dtype dtype, int tasks) {
  if (!vector) return tasks <= 4 ? made<4, 1>(tasks) : made<10, 1>(tasks);
  if (tasks > kWideTasks) return made<10, 4>(tasks);
  if (dtype == Dtype::f32) return tasks <= 4 ? made<4, 4>(tasks) : made<8, 4>(tasks);
  return tasks <= 4 ? made<4, 8>(tasks) : made<8, 8>(tasks);
}

}  // namespace fastmtl::cuda
