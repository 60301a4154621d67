// How many blocks share the work of a launch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "launch.h"

namespace fastmtl::cuda {

// More blocks of a multiprocessor add partial results and no speed: 16 bytes a thread and task are under way already.
constexpr int kMostResident = 8;

// For loops over `tiles` pieces of work of like size: at most as many blocks as the GPU holds at once.
inline int blocks_for(const Device& device, const void* kernel, int threads, int64_t tiles) {
  const int64_t most = static_cast<int64_t>(device.processors) * std::min(resident(kernel, threads), kMostResident);
  return static_cast<int>(std::max<int64_t>(1, std::min(tiles, most)));
}

inline int64_t most_blocks(const Device& device) { return static_cast<int64_t>(device.processors) * kMostResident; }

}  // namespace fastmtl::cuda
