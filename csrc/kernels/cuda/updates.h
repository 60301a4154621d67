// The rules alone: the weighted sum of the losses with the message for the fork, and steps of the weights.
#pragma once

#include "../dtype.h"
#include "../gnr_update.h"
#include "../gradnorm_update.h"
#include "launch.h"
#include "positions.h"

namespace fastmtl::cuda {

struct Weigh {
  int tasks;
  bool wide;  // whether `loss` is float64
  struct Loss {
    const void* data;
    Dtype dtype;
  } losses[kMaxTasks];
  const float* weights;
  int64_t weights_stride;
  const bool* present;
  int64_t present_stride;
  void* loss;      // float64 or float32
  float* message;  // [2 + 3 tasks]
};

struct GradNormStep {
  GradNormArguments<float> arguments;
};

struct GnrStep {
  GnrArguments<float> arguments;
  double* memory;  // `gnr_update_numbers` of them
};

// Float64 numbers that the update of the GNR weights takes.
int64_t gnr_update_numbers(int64_t tasks);

const char* weigh(const Device& device, const Weigh& problem);
const char* gradnorm_update(const Device& device, const GradNormStep& step);
const char* gnr_update(const Device& device, const GnrStep& step);

}  // namespace fastmtl::cuda
