// Launches without a GPU: by threads of the host, or by whoever has asked for them (`fastmtl_on_launch`).
#include <dlfcn.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <thread>

#include "../../csrc/kernels/cuda/launch.h"
#include "cuda_on_host.h"

namespace {

using Handler = void (*)(const char* kernel, int64_t blocks, int threads, const void* parameters, int64_t size);
Handler handler = nullptr;
unsigned seed = 0;
int held = 2;

void run_block(const fastmtl::cuda::Launch& launch, unsigned index) {
  on_host::Block block(launch.threads);
  std::vector<std::thread> threads;
  for (int t = 0; t < launch.threads; ++t) {
    threads.emplace_back([&, t] {
      on_host::thread = {static_cast<unsigned>(t)};
      on_host::block = {index};
      on_host::threads = {static_cast<unsigned>(launch.threads), 1, 1};
      on_host::blocks = {static_cast<unsigned>(launch.blocks), 1, 1};
      on_host::team = &block;
      launch.call(launch.kernel, launch.parameters);
      block.all.arrive_and_drop();
      block.warps[t / 32]->all.arrive_and_drop();
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

extern "C" {
void fastmtl_on_launch(Handler chosen) { handler = chosen; }
// The order of blocks; 0: by their index.
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
  std::vector<unsigned> order(launch.blocks);
  std::iota(order.begin(), order.end(), 0);
  if (seed != 0) std::shuffle(order.begin(), order.end(), std::mt19937(seed));
  for (const unsigned index : order) run_block(launch, index);
  return nullptr;
}

int resident(const void*, int) { return held; }

}  // namespace fastmtl::cuda
