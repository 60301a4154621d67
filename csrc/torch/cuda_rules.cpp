// The rules alone: the weighted sum of the losses, and the updates of the weights.
#include "../kernels/cuda/updates.h"
#include "cuda_call.h"
#include "rules.h"

namespace fastmtl {
namespace {

std::tuple<Tensor, Tensor> weigh_op(const std::vector<Tensor>& losses, const Tensor& weights, const Tensor& present) {
  const int64_t tasks = losses.size();
  STD_TORCH_CHECK(tasks >= 1 && tasks <= cuda::kMaxTasks, "losses: expected 1 to ", cuda::kMaxTasks, " tensors, got ",
                  tasks);
  check(weights, "weights", ScalarType::Float, {tasks});
  check(present, "present", ScalarType::Bool, {tasks});
  cuda::Weigh problem{};
  problem.tasks = static_cast<int>(tasks);
  for (int64_t k = 0; k < tasks; ++k) {
    const Label label("losses", k);
    check_device(losses[k], label);
    STD_TORCH_CHECK(losses[k].numel() == 1, label.text(), ": expected one element, got shape ",
                    text(losses[k].sizes()));
    problem.losses[k] = {losses[k].const_data_ptr(), dtype_of_tensor(losses[k], label)};
    problem.wide = problem.wide || losses[k].scalar_type() == ScalarType::Double;
  }
  const Call call(weights);
  const Tensor loss = torch::stable::new_empty(weights, {}, problem.wide ? ScalarType::Double : ScalarType::Float);
  const Tensor message = torch::stable::new_empty(weights, {2 + 3 * tasks}, ScalarType::Float);
  problem.weights = static_cast<const float*>(weights.const_data_ptr());
  problem.weights_stride = weights.stride(0);
  problem.present = static_cast<const bool*>(present.const_data_ptr());
  problem.present_stride = present.stride(0);
  problem.loss = loss.mutable_data_ptr();
  problem.message = static_cast<float*>(message.mutable_data_ptr());
  check_launch(cuda::weigh(call.device(), problem), "weigh");
  return {loss, message};
}

void check_count(const Tensor& weights) {
  STD_TORCH_CHECK(weights.numel() <= cuda::kMaxTasks, "weights: expected at most ", cuda::kMaxTasks, " tasks, got ",
                  weights.numel());
}

void gradnorm_update_op(const Tensor& squared_norms, const Tensor& message, const Tensor& weights,
                        const Tensor& initial_losses, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                        const Tensor& steps, const Tensor& weight_sum, const Tensor& norms, const Tensor& rates,
                        const Tensor& counters, const Tensor& task_counters, double alpha, double lr, bool adam,
                        double beta1, double beta2, double eps, double min_weight) {
  check_count(weights);
  check(squared_norms, "squared_norms", ScalarType::Float, {weights.numel()});
  const Call call(weights);
  const cuda::GradNormStep step{gradnorm_arguments(static_cast<const float*>(squared_norms.const_data_ptr()),
                                                   squared_norms.stride(0), message, weights, initial_losses, exp_avg,
                                                   exp_avg_sq, steps, weight_sum, norms, rates, counters, task_counters,
                                                   alpha, lr, adam, beta1, beta2, eps, min_weight)};
  check_launch(cuda::gradnorm_update(call.device(), step), "gradnorm_update");
}

void gnr_update_op(const Tensor& M, const std::optional<Tensor>& Q, const Tensor& message, const Tensor& weights,
                   const Tensor& moments, const Tensor& averages, const Tensor& shares, const Tensor& samples,
                   const Tensor& counters, const Tensor& task_counters, int64_t batch, int64_t accumulation,
                   bool loss_sum, const std::string& objective, double decay, double step, double floor) {
  check_count(weights);
  const int64_t tasks = weights.numel();
  check(M, "M", ScalarType::Float, {tasks, tasks});
  if (Q.has_value()) check(*Q, "Q", ScalarType::Float, {tasks, tasks});
  const Call call(weights);
  // Float64 numbers, in the workspace's float32: torch's allocator aligns both.
  const Workspace workspace = workspace_for(call, weights, 2 * cuda::gnr_update_numbers(tasks));
  const cuda::GnrStep problem{
      gnr_arguments(matrix_of<float>(M), Q.has_value() ? matrix_of<float>(*Q) : GnrMatrix<float>{nullptr, 0, 0},
                    message, weights, moments, averages, shares, samples, counters, task_counters, batch, accumulation,
                    loss_sum, objective, decay, step, floor),
      reinterpret_cast<double*>(workspace.numbers)};
  check_launch(cuda::gnr_update(call.device(), problem), "gnr_update");
}

}  // namespace
}  // namespace fastmtl

// The same schemas as contract.SCHEMAS: a test compares them.
STABLE_TORCH_LIBRARY_FRAGMENT(fastmtl_cuda, library) {
  library.def("weigh(Tensor[] losses, Tensor weights, Tensor present) -> (Tensor loss, Tensor message)");
  library.def(
      "gradnorm_update(Tensor squared_norms, Tensor message, Tensor(a!) weights, Tensor(b!) initial_losses, "
      "Tensor(c!) exp_avg, Tensor(d!) exp_avg_sq, Tensor(e!) steps, Tensor(f!) weight_sum, Tensor(g!) norms, "
      "Tensor(h!) rates, Tensor(i!) counters, Tensor(j!) task_counters, float alpha, float lr, bool adam, float beta1, "
      "float beta2, float eps, float min_weight) -> ()");
  library.def(
      "gnr_update(Tensor M, Tensor? Q, Tensor message, Tensor(a!) weights, Tensor(b!) moments, Tensor(c!) averages, "
      "Tensor(d!) shares, Tensor(e!) samples, Tensor(f!) counters, Tensor(g!) task_counters, int batch, "
      "int accumulation, bool loss_sum, str objective, float decay, float step, float floor) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastmtl_cuda, FASTMTL_DISPATCH, library) {
  library.impl("weigh", TORCH_BOX(&fastmtl::weigh_op));
  library.impl("gradnorm_update", TORCH_BOX(&fastmtl::gradnorm_update_op));
  library.impl("gnr_update", TORCH_BOX(&fastmtl::gnr_update_op));
}
