#include "lists.h"
#include "tiles.h"

namespace fastmtl::cuda {

// Positions of a tile of 16 R rows: it is about as large for few tasks as for many.
template <int R>
static constexpr int kTile = R == 1   ? 128
                             : R == 2 ? 64
                                      : 32;

template <int R>
__global__ void __launch_bounds__(kTileThreads) gram_many_kernel(const __grid_constant__ ListStatistic p) {
  using Pairs = Products<R, R, true>;
  __shared__ union {
    RowTile<R, kTile<R>> rows;
    float values[Pairs::kWidth];
  } memory;
  const int tasks = p.columns.tasks;
  const int64_t tiles = p.columns.ends[p.columns.count - 1];
  Pairs products;
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Tile tile = tile_at(p.columns, static_cast<uint32_t>(index), kTile<R>);
    memory.rows.load(p.columns.dtype, p.columns.vector, [&](int offset, auto number) {
      const int64_t position = tile.first + offset;
      const bool inside = position < p.columns.lengths[tile.column];
      const int64_t at = position * static_cast<int64_t>(sizeof(number));
      return [&p, tile, at, count = inside ? tasks : 0](int k) -> const char* {
        const char* data = k < count ? p.columns.pointer(tile.column, k) : nullptr;
        return data == nullptr ? nullptr : data + at;
      };
    });
    __syncthreads();
    products.template add<kTile<R>, false>(memory.rows, memory.rows, nullptr);
    __syncthreads();
  }

  products.store(memory.values);
  __syncthreads();
  if (!finish<kTileThreads>(p.finish, memory.values, Pairs::kWidth, memory.values)) return;
  Pairs::each(memory.values, [&](int i, int j, float total) {
    if (i >= tasks || j > i) return;
    if (p.accumulate) total += p.result[i * tasks + j];
    p.result[i * tasks + j] = p.result[j * tasks + i] = total;
  });
}

namespace {

template <int R>
const char* run(const Device& device, ListStatistic& p) {
  const auto kernel = &gram_many_kernel<R>;
  const int64_t tiles = count_tiles(p.columns, kTile<R>);
  p.finish.blocks =
      blocks_for_tiles(device, reinterpret_cast<const void*>(kernel), tiles,
                       kTile<R> * p.columns.tasks * size_of(p.columns.dtype), Products<R, R, true>::kWidth);
  p.finish.group = group_of(p.finish.blocks);
  return launch(device, kernel, p.finish.blocks, kTileThreads, p);
}

}  // namespace

int64_t gram_numbers(const Device& device, int tasks) {
  if (tasks <= kFewTasks) return 2 * most_blocks(device) * (tasks * (tasks + 1) / 2);
  return tile_numbers(device, Products<4, 4, true>::kWidth);
}

const char* gram_many(const Device& device, ListStatistic& p) {
  switch ((p.columns.tasks + 15) / 16) {
    case 1:
      return run<1>(device, p);
    case 2:
      return run<2>(device, p);
    case 3:
      return run<3>(device, p);
    default:
      return run<4>(device, p);
  }
}

const char* gram(const Device& device, ListStatistic& p) {
  return p.columns.tasks <= kFewTasks ? gram_few(device, p) : gram_many(device, p);
}

}  // namespace fastmtl::cuda
