// Launches without a GPU: by threads of the host, or by whoever has asked for them (`fastmtl_on_launch`).
#include <dlfcn.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "../../csrc/kernels/cuda/launch.h"
#include "block_on_host.h"

namespace {

using Handler = void (*)(const char* kernel, int64_t blocks, int threads, const void* parameters, int64_t size);
Handler handler = nullptr;
unsigned seed = 0;
int held = 2;

}  // namespace

extern "C" {
void fastmtl_on_launch(Handler chosen) { handler = chosen; }
// The order of blocks, and of the threads in each; 0: by their index.
void fastmtl_order_of_blocks(unsigned chosen) { seed = chosen; }
// Blocks that a multiprocessor is taken to hold.
void fastmtl_resident_blocks(int chosen) { held = chosen; }
}

namespace fastmtl::cuda {

const char* start(const Launch& launch) {
  if (handler != nullptr) {
    Dl_info info{};
    if (dladdr(launch.kernel, &info) == 0 || info.dli_sname == nullptr) return "a kernel without a name";
    handler(info.dli_sname, launch.blocks, launch.threads, launch.parameters, static_cast<int64_t>(launch.size));
    return nullptr;
  }
  const auto order = [](int64_t count, unsigned salt) {
    std::vector<unsigned> indices(count);
    std::iota(indices.begin(), indices.end(), 0);
    if (seed != 0) std::shuffle(indices.begin(), indices.end(), std::mt19937(seed + salt));
    return indices;
  };
  on_host::run(launch, order(launch.blocks, 0), order(launch.threads, 1));
  return nullptr;
}

int resident(const void*, int) { return held; }

}  // namespace fastmtl::cuda
