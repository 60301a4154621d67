// The threads that run one kernel together: loops go from rank() in steps of size(), and sync() makes what one wrote
// visible to all. A block of a GPU is one team; the CPU runs the same code alone.
#pragma once

#include <cstdint>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define FASTMTL_HD __host__ __device__
#else
#define FASTMTL_HD
#endif

// Before a loop: compilers for GPUs leave it as it is. The updates are compiled into kernels that need the registers,
// and for many GPUs; what is not worth the while of a whole block is not worth the code either.
#if defined(__CUDACC__)
#define FASTMTL_ROLLED _Pragma("unroll 1")
#else
#define FASTMTL_ROLLED
#endif

namespace fastmtl {

struct TeamOfOne {
  using Index = int64_t;  // of tasks, and of a few matrices of them
  FASTMTL_HD Index rank() const { return 0; }
  FASTMTL_HD Index size() const { return 1; }
  FASTMTL_HD void sync() const {}
  // From one vector of a number for each task to the next. A GPU's is constant: one register then leads to all.
  FASTMTL_HD static constexpr Index stride(Index tasks) { return tasks; }
};

}  // namespace fastmtl
