// What kernels take from CUDA. Where g++ compiles them, for the tests, a header of the tests' own stands in for it;
// where it compiles the bindings, which run no device code, the names will do.
#pragma once

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#elif __has_include("cuda_on_host.h")
#include "cuda_on_host.h"
#else
#include "host_names.h"
#endif

#include <cstdint>

#include "../team.h"

namespace fastmtl::cuda {

constexpr int kMaxTasks = 64;

// All threads of a block, as the team that an update of the weights is made by.
struct BlockTeam {
  using Index = int;  // one register, where 64 bits take two
  __device__ Index rank() const { return static_cast<Index>(threadIdx.x); }
  __device__ Index size() const { return static_cast<Index>(blockDim.x); }
  __device__ void sync() const { __syncthreads(); }
  FASTMTL_HD static constexpr Index stride(Index) { return kMaxTasks; }
};

}  // namespace fastmtl::cuda
