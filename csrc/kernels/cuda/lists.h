// Launches of the ops over lists: columns of T tensors each, of any length, many columns a launch.
#pragma once

#include <algorithm>

#include "../dtype.h"
#include "blocks.h"
#include "finish.h"
#include "launch.h"
#include "positions.h"
#include "weights.h"

namespace fastmtl::cuda {

constexpr int kMostColumns = 64;
constexpr int kMostPointers = 400;

// The same tensor of every task is a column: flat runs of one length. All columns of a launch have one dtype and are
// read in one way, 16 bytes or a number at a time.
struct Columns {
  int tasks, count;
  int row;  // pointers of a column: one for each task, and one more for a sum's result
  Dtype dtype;
  bool vector;  // whether runs are aligned groups of 16 bytes
  int64_t lengths[kMostColumns];
  uint32_t ends[kMostColumns];    // tiles of a column and of those before it: the kernels divide runs into tiles
  char* pointers[kMostPointers];  // null: the gradient is missing

  FASTMTL_HD char* pointer(int column, int k) const { return pointers[column * row + k]; }
};

// A part of a column.
struct Tile {
  int column;
  int64_t first;  // position
};

// Counts the tiles of `size` positions.
inline int64_t count_tiles(Columns& columns, int size) {
  int64_t tiles = 0;
  for (int c = 0; c < columns.count; ++c) {
    tiles += (columns.lengths[c] + size - 1) / size;
    columns.ends[c] = static_cast<uint32_t>(tiles);
  }
  return tiles;
}

__device__ inline Tile tile_at(const Columns& columns, uint32_t index, int size) {
  int first = 0, last = columns.count - 1;
  while (first < last) {
    const int middle = (first + last) / 2;
    if (columns.ends[middle] > index) {
      last = middle;
    } else {
      first = middle + 1;
    }
  }
  return {first, static_cast<int64_t>(index - (first == 0 ? 0 : columns.ends[first - 1])) * size};
}

// A statistic of lists. Lists that do not fit one launch take several: each adds its own to what those before it left.
struct ListStatistic {
  Columns columns;
  Finish finish;
  float* result;
  bool accumulate;
};

struct WeightedSum {
  Columns columns;
  Weights weights;
};

// Numbers of the workspace that a statistic takes at most.
int64_t squared_norms_numbers(const Device& device, int tasks);
int64_t gram_numbers(const Device& device, int tasks);

// These divide into tiles, fill in `finish` but for its memory, and launch.
const char* squared_norms(const Device& device, ListStatistic& problem);
const char* gram(const Device& device, ListStatistic& problem);
const char* weighted_sum(const Device& device, WeightedSum& problem);

// The two ways of `gram`: all pairs in the registers of each thread, or shared out among those of a block.
constexpr int kFewTasks = 10;
const char* gram_few(const Device& device, ListStatistic& problem);
const char* gram_many(const Device& device, ListStatistic& problem);

}  // namespace fastmtl::cuda
