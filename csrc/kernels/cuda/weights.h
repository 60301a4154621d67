// Weights that lie on the GPU, float32 or float64.
#pragma once

#include "device.h"

namespace fastmtl::cuda {

struct Weights {
  const void* data;
  int64_t stride;
  bool wide;  // float64

  __device__ float at(int64_t i) const {
    return wide ? static_cast<float>(static_cast<const double*>(data)[i * stride])
                : static_cast<const float*>(data)[i * stride];
  }
};

}  // namespace fastmtl::cuda
