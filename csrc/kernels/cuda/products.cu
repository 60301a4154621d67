#include "products.h"
#include "tiles.h"

namespace fastmtl::cuda {

// Positions of a tile of 16 R rows: it is about as large for few rows as for many.
template <int R>
static constexpr int kTile = R == 1 ? 128 : 32;

// A function of the row: where it has a position. Rows that are not there have none, and none has one outside.
template <class Number>
__device__ auto rows_at(const Side& side, const Place* places, const Positions& positions, int64_t sample,
                        int64_t position, bool inside) {
  const Coordinates coordinates = coordinates_of(positions, position);
  return [&side, &positions, places, sample, coordinates, count = inside ? side.count : 0](int k) -> const char* {
    if (k >= count || !(side.present >> k & 1)) return nullptr;
    return at<Number>(places[k], positions, coordinates) +
           sample * places[k].sample_stride * static_cast<int64_t>(sizeof(Number));
  };
}

// Two blocks of a multiprocessor: for more, the compilers for some GPUs would spill.
template <int A, int B>
__global__ void __launch_bounds__(kTileThreads, 2) cross_gram_kernel(const __grid_constant__ CrossGram p) {
  using All = Products<A, B, false>;
  constexpr int K = kTile<(A > B ? A : B)>;
  __shared__ union {
    struct {
      RowTile<A, K> left;
      RowTile<B, K> right;
    } tiles;
    float values[All::kWidth];
  } memory;
  All products;
  for (int64_t first = int64_t{blockIdx.x} * K; first < p.positions.count; first += int64_t{gridDim.x} * K) {
    const auto rows_of = [&](const Side& side, const Place* places) {
      return [&, places](int offset, auto number) {
        const int64_t position = first + offset;
        return rows_at<decltype(number)>(side, places, p.positions, 0, position, position < p.positions.count);
      };
    };
    memory.tiles.left.load(p.left.dtype, p.vector, rows_of(p.left, p.rows));
    memory.tiles.right.load(p.right.dtype, p.vector, rows_of(p.right, p.columns));
    __syncthreads();
    products.template add<K, false>(memory.tiles.left, memory.tiles.right, nullptr);
    __syncthreads();
  }

  products.store(memory.values);
  __syncthreads();
  if (!finish<kTileThreads>(p.finish, memory.values, All::kWidth, memory.values)) return;
  All::each(memory.values, [&](int i, int j, float total) {
    if (i < p.left.count && j < p.right.count) p.result[i * p.stride + j] = total;
  });
}

// Tiles go through the positions of one sample after another: small samples share a tile.
template <int R>
__global__ void __launch_bounds__(kTileThreads) sample_gram_kernel(const __grid_constant__ SampleGram p) {
  using Pairs = Products<R, R, true>;
  constexpr int K = kTile<R>;
  __shared__ union {
    RowTile<R, K> rows;
    float values[Pairs::kWidth];
  } memory;
  __shared__ float4 weights[K / 4];
  const int tasks = p.grads.count;
  const int64_t count = p.samples * p.positions.count;
  Pairs products;
  for (int64_t first = int64_t{blockIdx.x} * K; first < count; first += int64_t{gridDim.x} * K) {
    memory.rows.load(p.grads.dtype, p.vector, [&](int offset, auto number) {
      const int64_t position = first + offset, sample = position / p.positions.count;
      return rows_at<decltype(number)>(p.grads, p.places, p.positions, sample, position - sample * p.positions.count,
                                       position < count);
    });
    for (int n = threadIdx.x; n < K; n += kTileThreads) {
      const int64_t at = first + n;
      reinterpret_cast<float*>(weights)[n] = at < count ? p.weights.at(at / p.positions.count) : 0.0f;
    }
    __syncthreads();
    products.template add<K, true>(memory.rows, memory.rows, weights);
    __syncthreads();
  }

  products.store(memory.values);
  __syncthreads();
  if (!finish<kTileThreads>(p.finish, memory.values, Pairs::kWidth, memory.values)) return;
  Pairs::each(memory.values, [&](int i, int j, float total) {
    if (i < tasks && j <= i) p.result[i * tasks + j] = p.result[j * tasks + i] = total;
  });
}

namespace {

// `read`: bytes of a position in all rows; `width`: sums of a block.
template <class Problem>
const char* run(const Device& device, void (*kernel)(Problem), int64_t positions, int tile, int64_t read, int64_t width,
                Problem& p) {
  p.finish.blocks = blocks_for_tiles(device, reinterpret_cast<const void*>(kernel), (positions + tile - 1) / tile,
                                     tile * read, width);
  p.finish.group = group_of(p.finish.blocks);
  return launch(device, kernel, p.finish.blocks, kTileThreads, p);
}

template <int A, int B>
const char* run(const Device& device, CrossGram& p) {
  const int64_t read = p.left.count * size_of(p.left.dtype) + p.right.count * size_of(p.right.dtype);
  return run(device, &cross_gram_kernel<A, B>, p.positions.count, kTile<(A > B ? A : B)>, read,
             Products<A, B, false>::kWidth, p);
}

template <int R>
const char* run(const Device& device, SampleGram& p) {
  return run(device, &sample_gram_kernel<R>, p.samples * p.positions.count, kTile<R>,
             p.grads.count * size_of(p.grads.dtype), Products<R, R, true>::kWidth, p);
}

}  // namespace

int64_t products_numbers(const Device& device) { return tile_numbers(device, Products<4, 4, true>::kWidth); }

// Few variants, as each is compiled for many GPUs.
const char* cross_gram(const Device& device, CrossGram& p) {
  static_assert(kMostRows <= 48);
  if (p.left.count > 16) return run<3, 3>(device, p);
  return p.right.count <= 16 ? run<1, 1>(device, p) : run<1, 3>(device, p);
}

const char* sample_gram(const Device& device, SampleGram& p) {
  return p.grads.count <= 16 ? run<1>(device, p) : run<4>(device, p);
}

}  // namespace fastmtl::cuda
