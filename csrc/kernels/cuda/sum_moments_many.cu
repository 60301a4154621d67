// Sums of many gradients and their moments: tiles of all tasks in shared memory, from which threads make the pairs.
#include "finish_own.h"
#include "numbers.h"
#include "sum_moments.h"

namespace fastmtl::cuda {

constexpr int kSide = 16;  // thread (y, x) has the pairs of tasks (y + 16 a, x + 16 b), a >= b
constexpr int kThreads = kSide * kSide;

// Positions of a tile: about 2048 numbers.
template <int R>
static constexpr int kColumns = R == 1   ? 128
                                : R == 2 ? 64
                                         : 32;
// Numbers of a row in shared memory: threads of a warp then read 16 rows without conflicts.
template <int R>
static constexpr int kRow = kColumns<R> + 4;
constexpr int kNumbers = 8;  // of a thread

template <int R>
struct Tile {
  alignas(16) float rows[kSide * R][kRow<R>];
};

// Adds the products of the rows of a tile. Their sum is formed first: long chains would round more.
template <int R>
__device__ __forceinline__ void add_products(const Tile<R>& tile, float* pairs) {
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
  float parts[pairs_of(R)] = {};
#pragma unroll(R <= 2 ? 2 : 1)
  for (int column = 0; column < kColumns<R>; column += 4) {
    float4 left[R], right[R];
#pragma unroll
    for (int a = 0; a < R; ++a) {
      left[a] = *reinterpret_cast<const float4*>(&tile.rows[y + kSide * a][column]);
      right[a] = *reinterpret_cast<const float4*>(&tile.rows[x + kSide * a][column]);
    }
#pragma unroll
    for (int a = 0; a < R; ++a) {
#pragma unroll
      for (int b = 0; b <= a; ++b) {
        float& part = parts[pairs_of(a) + b];
        part += left[a].x * right[b].x;
        part += left[a].y * right[b].y;
        part += left[a].z * right[b].z;
        part += left[a].w * right[b].w;
      }
    }
  }
#pragma unroll
  for (int pair = 0; pair < pairs_of(R); ++pair) pairs[pair] += parts[pair];
}

__device__ __forceinline__ void store_number(Dtype dtype, float x, char* to) {
  if (dtype == Dtype::f32) {
    *reinterpret_cast<float*>(to) = x;
  } else {
    *reinterpret_cast<uint16_t*>(to) = dtype == Dtype::bf16 ? from_float<Dtype::bf16>(x) : from_float<Dtype::f16>(x);
  }
}

// A thread's numbers of a tile, as they lie in memory: single ones, or packets of four. 16 bytes are read at once: a
// packet of float32, or both packets of 16 bits, which are then neighbours in a row. A dtype of its own for every
// kernel would take long to compile.
template <int R, int V>
struct Numbers {
  static constexpr int kCount = kNumbers / V, kAcross = kColumns<R> / V;
  static constexpr int kHalves = V == 4 ? 8 : 1;  // numbers of 16 bits that are read at once
  uint32_t words[kNumbers] = {};

  __device__ static bool together(Dtype dtype) { return V == 4 && dtype != Dtype::f32; }
  __device__ static int column(Dtype dtype) {
    return static_cast<int>(threadIdx.x) % (together(dtype) ? kAcross / 2 : kAcross) * (together(dtype) ? 2 * V : V);
  }
  // The task of packet n.
  __device__ static int row(Dtype dtype, int n) {
    const int thread = threadIdx.x;
    return together(dtype) ? thread / (kAcross / 2) : (thread + n * kThreads) / kAcross;
  }

  __device__ void load(Dtype dtype, int n, const char* from) {
    if (dtype == Dtype::f32) {
      take(n, Packet<Dtype::f32, V>::load(from));
    } else {
      take(n, Packet<Dtype::bf16, kHalves>::load(from));
    }
  }

  __device__ void get(Dtype dtype, float (&x)[kNumbers]) const {
    if (dtype == Dtype::f32) {
      give<Dtype::f32>(x);
    } else if (dtype == Dtype::bf16) {
      give<Dtype::bf16>(x);
    } else {
      give<Dtype::f16>(x);
    }
  }

  __device__ static void store(Dtype dtype, const float* x, Tile<R>& tile) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      if (row(dtype, n) >= kSide * R) return;
      float* to = &tile.rows[row(dtype, n)][column(dtype) + (together(dtype) ? n * V : 0)];
      if constexpr (V == 1) *to = x[n];
      if constexpr (V == 4) *reinterpret_cast<float4*>(to) = float4{x[4 * n], x[4 * n + 1], x[4 * n + 2], x[4 * n + 3]};
    }
  }

 private:
  template <class Read>
  __device__ void take(int n, const Read& read) {
#pragma unroll
    for (int i = 0; i < V; ++i) words[n * V + i] = read.words[i];
  }

  template <Dtype D>
  __device__ void give(float (&x)[kNumbers]) const {
    constexpr int kOnce = D == Dtype::f32 ? V : kHalves;
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      Packet<D, kOnce> packet;
#pragma unroll
      for (int j = 0; j < V; ++j) packet.words[j] = words[i / kOnce * V + j];
      x[i] = packet.get(i % kOnce);
    }
  }
};

// Samples first ... last - 1 of a tile: the sum over tasks is written, products are added to q, and the sums over
// samples go to the tile that turn tells, with their products still to be made. The next sample's loads are under way
// while this one's products are formed.
template <int R, int V>
__device__ __forceinline__ void sum_samples(const SumMoments& p, int64_t i_tile, int64_t first, int64_t last,
                                            Tile<R>* tiles, int& turn, float* q, float* sums) {
  using Read = Numbers<R, V>;
  constexpr int kAcross = kColumns<R>;
  const int size = p.dtype == Dtype::f32 ? 4 : 2;
  const int64_t own = i_tile * kAcross + Read::column(p.dtype);
  const Coordinates coordinates = coordinates_of(p.positions, own);
  const char* from[Read::kCount];  // null: nothing arrives
#pragma unroll
  for (int n = 0; n < Read::kCount; ++n) {
    const int task = Read::row(p.dtype, n);
    from[n] = nullptr;
    if (n > 0 && Read::together(p.dtype)) continue;
    if (own < p.positions.count && task < p.tasks && (p.present >> task & 1)) {
      const Place& place = p.grads[task];
      from[n] = place.data + (offset_of(place, p.positions, coordinates) + first * place.sample_stride) * size;
    }
  }
  const int column = threadIdx.x % kAcross;
  // The lower half alone takes the column: a sum would keep both halves of one in registers.
  const int64_t position = i_tile * kAcross | static_cast<unsigned>(column);
  char* const to = p.total.data + offset_of(p.total, p.positions, coordinates_of(p.positions, position)) * size;

  Read read;
  const auto load = [&] {
#pragma unroll
    for (int n = 0; n < Read::kCount; ++n) {
      if (from[n] == nullptr) continue;
      read.load(p.dtype, n, from[n]);
      from[n] += p.grads[Read::row(p.dtype, n)].sample_stride * size;
    }
  };
  if (first < last) load();
#pragma unroll 1
  for (int64_t sample = first; sample < last; ++sample) {
    Tile<R>& tile = tiles[turn];
    turn ^= 1;
    float x[kNumbers];
    read.get(p.dtype, x);
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) sums[i] += x[i];
    Read::store(p.dtype, x, tile);
    __syncthreads();
    if (sample + 1 < last) load();
    // The sum over tasks, in their order: other warps for each sample, as this takes few of them.
    if ((threadIdx.x - static_cast<unsigned>(sample) * kAcross) % kThreads < kAcross && position < p.positions.count) {
      float total = 0;
#pragma unroll 4
      for (int k = 0; k < p.tasks; ++k) total += tile.rows[k][column];
      store_number(p.dtype, total, to + sample * p.total.sample_stride * size);
    }
    add_products(tile, q);
  }
}

// Reads each gradient once and writes the sum once. A block takes all samples of its tiles of positions, or a share of
// those of one tile.
template <int R>
__global__ void __launch_bounds__(kThreads, 2) moments_many_kernel(const __grid_constant__ SumMoments p) {
  constexpr int kPairs = pairs_of(R);
  __shared__ Tile<R> tiles[2];  // used by turns: a barrier each is enough
  const int splits = p.splits(), own_tile = blockIdx.x / splits, split = blockIdx.x % splits;
  const int64_t first = p.batch * split / splits, last = p.batch * (split + 1) / splits;
  float own[kPairs + kNumbers] = {}, results[2 * kPairs] = {};
  float *const q = own, *const sums = own + kPairs, *const m = results + kPairs;
  int turn = 0;
#pragma unroll 1
  for (int64_t tile = own_tile; tile * kColumns<R> < p.positions.count; tile += gridDim.x / splits) {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) sums[i] = 0;
    if (p.vector) {
      sum_samples<R, 4>(p, tile, first, last, tiles, turn, q, sums);
    } else {
      sum_samples<R, 1>(p, tile, first, last, tiles, turn, q, sums);
    }
    // M needs the sums over all samples before they are multiplied.
    if (splits > 1) {
      const Finish samples = samples_of(p, own_tile, kThreads * (kPairs + kNumbers));
      if (!finish_own<kThreads>(samples, split, kPairs + kNumbers, own)) return;
    }
    if (p.vector) {
      Numbers<R, 4>::store(p.dtype, sums, tiles[turn]);
    } else {
      Numbers<R, 1>::store(p.dtype, sums, tiles[turn]);
    }
    __syncthreads();
    add_products(tiles[turn], m);
    turn ^= 1;
  }
#pragma unroll
  for (int pair = 0; pair < kPairs; ++pair) results[pair] = q[pair];
  if (!finish_own<kThreads>(p.finish, splits > 1 ? own_tile : static_cast<int>(blockIdx.x), 2 * kPairs, results))
    return;
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
#pragma unroll
  for (int a = 0; a < R; ++a) {
#pragma unroll
    for (int b = 0; b <= a; ++b) {
      const int k = y + kSide * a, j = x + kSide * b, pair = pairs_of(a) + b;
      if (k >= p.tasks || j > k) continue;
      p.Q[k * p.tasks + j] = p.Q[j * p.tasks + k] = static_cast<float>(p.batch) * results[pair];
      p.M[k * p.tasks + j] = p.M[j * p.tasks + k] = m[pair];
    }
  }
  if (!p.step) return;
  __syncthreads();
  GnrUpdate<float, BlockTeam>(p.update, BlockTeam(), p.memory)();
}

namespace {

template <int R>
MomentsKernel made() {
  constexpr int kPairs = pairs_of(R);
  return {&moments_many_kernel<R>,        kThreads, kColumns<R>, 4, 2 * kPairs * kThreads,
          (kPairs + kNumbers) * kThreads, 32,       false};
}

}  // namespace

MomentsKernel moments_of_many(int tasks) {
  if (tasks <= 1 * kSide) return made<1>();
  if (tasks <= 2 * kSide) return made<2>();
  return tasks <= 3 * kSide ? made<3>() : made<4>();
}

}  // namespace fastmtl::cuda
