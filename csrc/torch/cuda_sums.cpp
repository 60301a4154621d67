// The fork's ops: sums of gradients and their statistics, and the update of the weights in the same launch.
#include "../kernels/cuda/sum_norms.h"
#include "cuda_call.h"
#include "cuda_gradients.h"
#include "rules.h"

namespace fastmtl {
namespace {

// `arguments(norms)` gives those of GradNorm's step, where one follows.
template <class Arguments>
std::tuple<Tensor, Tensor> run_sum_norms(const OptionalTensors& grads, bool step, const Arguments& arguments) {
  const TensorColumn column = gradients_of(grads);
  const int64_t tasks = column.tasks();
  const Call call(column.like());
  const Tensor total = column.empty_total();
  const Tensor norms = torch::stable::new_empty(total, {tasks}, ScalarType::Float);
  const Places places = places_of(total, column, false);
  cuda::SumNorms problem{};
  problem.positions = places.positions();
  problem.tasks = static_cast<int>(tasks);
  problem.norms = static_cast<float*>(norms.mutable_data_ptr());
  problem.total = places.place(0);
  problem.present = fill_places(column, places, 1, problem.grads);
  problem.step = step;
  problem.update = arguments(problem.norms);
  const Workspace workspace = workspace_for(call, total, cuda::sum_norms_numbers(call.device(), problem.tasks));
  problem.finish = {workspace.numbers, workspace.tickets, 0, 0};
  check_launch(cuda::sum_norms(call.device(), dtype_of_tensor(total, "grads"), places.vector(), problem), "sum_norms");
  return {total, norms};
}

std::tuple<Tensor, Tensor> sum_norms_op(const OptionalTensors& grads) {
  return run_sum_norms(grads, false, [](const float*) { return GradNormArguments<float>{}; });
}

std::tuple<Tensor, Tensor> sum_norms_update_op(const OptionalTensors& grads, const Tensor& message,
                                               const Tensor& weights, const Tensor& initial_losses,
                                               const Tensor& exp_avg, const Tensor& exp_avg_sq, const Tensor& steps,
                                               const Tensor& weight_sum, const Tensor& norms, const Tensor& rates,
                                               const Tensor& counters, const Tensor& task_counters, double alpha,
                                               double lr, bool adam, double beta1, double beta2, double eps,
                                               double min_weight) {
  STD_TORCH_CHECK(weights.numel() == static_cast<int64_t>(grads.size()), "weights: expected shape [", grads.size(),
                  "], got ", text(weights.sizes()));
  return run_sum_norms(grads, true, [&](const float* squared_norms) {
    return gradnorm_arguments(squared_norms, 1, message, weights, initial_losses, exp_avg, exp_avg_sq, steps,
                              weight_sum, norms, rates, counters, task_counters, alpha, lr, adam, beta1, beta2, eps,
                              min_weight);
  });
}

}  // namespace
}  // namespace fastmtl

// The same schemas as contract.SCHEMAS: a test compares them.
STABLE_TORCH_LIBRARY_FRAGMENT(fastmtl_cuda, library) {
  library.def("sum_norms(Tensor?[] grads) -> (Tensor total, Tensor squared_norms)");
  library.def(
      "sum_norms_update(Tensor?[] grads, Tensor message, Tensor(a!) weights, Tensor(b!) initial_losses, "
      "Tensor(c!) exp_avg, Tensor(d!) exp_avg_sq, Tensor(e!) steps, Tensor(f!) weight_sum, Tensor(g!) norms, "
      "Tensor(h!) rates, Tensor(i!) counters, Tensor(j!) task_counters, float alpha, float lr, bool adam, "
      "float beta1, float beta2, float eps, float min_weight) -> (Tensor total, Tensor squared_norms)");
}

STABLE_TORCH_LIBRARY_IMPL(fastmtl_cuda, FASTMTL_DISPATCH, library) {
  library.impl("sum_norms", TORCH_BOX(&fastmtl::sum_norms_op));
  library.impl("sum_norms_update", TORCH_BOX(&fastmtl::sum_norms_update_op));
}
