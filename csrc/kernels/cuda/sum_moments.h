// The fork's op for GNR: the sum of T gradients, their moments M and Q, and the update of the GNR weights after it.
//
// What it must move: each gradient read once and the sum written once, so (T + 1) * batch * positions numbers. Beside
// that, rows of partial results of each block, and where blocks share the samples of a tile, each one's sums of it.
#pragma once

#include "../dtype.h"
#include "../gnr_update.h"
#include "finish.h"
#include "launch.h"
#include "positions.h"

namespace fastmtl::cuda {

FASTMTL_HD constexpr int pairs_of(int tasks) { return tasks * (tasks + 1) / 2; }

struct SumMoments {
  Positions positions;  // of a sample
  int64_t batch;
  Dtype dtype;
  bool vector;  // positions come in aligned groups of 16 bytes, in every sample
  int tasks;
  bool step;         // whether the update of the GNR weights follows
  uint64_t present;  // a bit for each gradient that arrived
  int lanes;         // threads beside each other in one sample, a power of two; as many as a block has for many tasks
  Finish finish;     // of all blocks, or of all tiles where blocks share the samples of one
  Finish samples;    // of the blocks that share the samples of tile 0; those of other tiles follow
  float *M, *Q;      // [tasks, tasks]
  GnrArguments<float> update;
  double* memory;  // of the update
  Place total, grads[kMaxTasks];

  FASTMTL_HD int splits() const { return samples.blocks; }  // of the samples of a tile
};

// What the blocks that share the samples of a tile leave: each `share` numbers.
__device__ inline Finish samples_of(const SumMoments& p, int tile, int share) {
  Finish samples = p.samples;
  samples.partials += static_cast<int64_t>(tile) * (samples.blocks + samples.groups()) * share;
  samples.tickets += tile * (1 + samples.groups());
  return samples;
}

// A kernel, and what sharing out its work depends on.
struct MomentsKernel {
  void (*kernel)(SumMoments);
  int threads;
  int64_t positions;  // of a tile
  int group;          // positions that a thread takes at once
  int row;            // numbers of a block's partial results
  int share;          // those of a block that shares the samples of a tile
  int64_t samples;    // of such a share, at least
  bool lanes;         // whether a block can take several samples at once
};

MomentsKernel moments_of_few(bool vector, Dtype dtype, int tasks);
MomentsKernel moments_of_many(int tasks);

constexpr int kFewTasks = 10;

inline MomentsKernel moments_kernel(bool vector, Dtype dtype, int tasks) {
  return tasks <= kFewTasks ? moments_of_few(vector, dtype, tasks) : moments_of_many(tasks);
}

// Shares out the work of what is in `problem` so far; how many numbers of workspace that takes.
int64_t plan(const Device& device, const MomentsKernel& kernel, SumMoments& problem);

// Launches it, with memory of that size, for float64 numbers, and tickets.
const char* sum_moments(const Device& device, const MomentsKernel& kernel, float* numbers, uint32_t* tickets,
                        SumMoments& problem);

}  // namespace fastmtl::cuda
