#include "numbers.h"
#include "updates.h"

namespace fastmtl::cuda {

__device__ inline double number_of(const Weigh::Loss& loss) {
  switch (loss.dtype) {
    case Dtype::f32:
      return *static_cast<const float*>(loss.data);
    case Dtype::bf16:
      return to_float<Dtype::bf16>(*static_cast<const uint16_t*>(loss.data));
    case Dtype::f16:
      return to_float<Dtype::f16>(*static_cast<const uint16_t*>(loss.data));
    case Dtype::f64:
      break;
  }
  return *static_cast<const double*>(loss.data);
}

// A thread a task.
__global__ void __launch_bounds__(kMaxTasks) weigh_kernel(const __grid_constant__ Weigh p) {
  __shared__ double terms[kMaxTasks];
  const int k = threadIdx.x;
  if (k < p.tasks) {
    const double value = number_of(p.losses[k]);
    const float weight = p.weights[k * p.weights_stride];
    const bool there = p.present[k * p.present_stride];
    // What an absent task has in place of a loss may be NaN.
    terms[k] = there ? static_cast<double>(weight) * value : 0;
    p.message[2 + k] = static_cast<float>(value);
    p.message[2 + p.tasks + k] = weight;
    p.message[2 + 2 * p.tasks + k] = there ? 1 : 0;
  }
  if (k < 2) p.message[k] = 1;
  __syncthreads();
  if (k != 0) return;
  double sum = 0;
  for (int j = 0; j < p.tasks; ++j) sum += terms[j];
  if (p.wide) {
    *static_cast<double*>(p.loss) = sum;
  } else {
    *static_cast<float*>(p.loss) = static_cast<float>(sum);
  }
}

__global__ void __launch_bounds__(kMaxTasks) gradnorm_update_kernel(const __grid_constant__ GradNormStep p) {
  __shared__ double memory[GradNormUpdate<float, BlockTeam>::workspace(kMaxTasks)];
  GradNormUpdate<float, BlockTeam>(p.arguments, BlockTeam(), memory)();
}

constexpr int kSolverThreads = 128;

__global__ void __launch_bounds__(kSolverThreads, 1) gnr_update_kernel(const __grid_constant__ GnrStep p) {
  GnrUpdate<float, BlockTeam>(p.arguments, BlockTeam(), p.memory)();
}

int64_t gnr_update_numbers(int64_t tasks) { return GnrUpdate<float, BlockTeam>::workspace(tasks); }

const char* weigh(const Device& device, const Weigh& problem) {
  return launch(device, &weigh_kernel, 1, kMaxTasks, problem);
}

const char* gradnorm_update(const Device& device, const GradNormStep& step) {
  return launch(device, &gradnorm_update_kernel, 1, kMaxTasks, step);
}

const char* gnr_update(const Device& device, const GnrStep& step) {
  return launch(device, &gnr_update_kernel, 1, kSolverThreads, step);
}

}  // namespace fastmtl::cuda
