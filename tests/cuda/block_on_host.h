// Runs the blocks of a launch on the host.
#pragma once

#include <vector>

#include "../../csrc/kernels/cuda/launch.h"

namespace on_host {

// One block after another, and the threads of each, in the orders given.
void run(const fastmtl::cuda::Launch& launch, const std::vector<unsigned>& blocks,
         const std::vector<unsigned>& threads);

}  // namespace on_host
