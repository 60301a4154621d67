// The fork's op for GradNorm: the sum of T gradients and each one's squared norm, and GradNorm's step after it.
#pragma once

#include "../dtype.h"
#include "../gradnorm_update.h"
#include "finish.h"
#include "launch.h"
#include "positions.h"

namespace fastmtl::cuda {

struct SumNorms {
  Positions positions;
  int tasks;
  bool step;         // whether GradNorm's step follows
  uint64_t present;  // a bit for each gradient that arrived
  Finish finish;
  float* norms;  // [tasks]
  GradNormArguments<float> update;
  Place total, grads[kMaxTasks];
};

// Numbers of the workspace that `sum_norms` takes at most, and the tickets.
int64_t sum_norms_numbers(const Device& device, int tasks);

// Fills in `finish` but for its memory, and launches. `vector`: positions come in aligned groups of 16 bytes.
const char* sum_norms(const Device& device, Dtype dtype, bool vector, SumNorms& problem);

}  // namespace fastmtl::cuda
