// Launches on a GPU.
#include "launch.h"

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <utility>

namespace fastmtl::cuda {

const char* start(const Launch& launch) {
  void* arguments[] = {const_cast<void*>(launch.parameters)};
  const cudaError_t error =
      cudaLaunchKernel(launch.kernel, dim3(static_cast<unsigned>(launch.blocks)), dim3(launch.threads), arguments, 0,
                       static_cast<cudaStream_t>(launch.stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

int resident(const void* kernel, int threads) {
  // Asked for once a kernel and device: a call takes microseconds.
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int> known;
  int device = 0, blocks = 0;
  cudaGetDevice(&device);
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [place, is_new] = known.try_emplace({kernel, device}, 1);
  if (is_new && cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, 0) == cudaSuccess && blocks > 0)
    place->second = blocks;
  return place->second;
}

}  // namespace fastmtl::cuda
