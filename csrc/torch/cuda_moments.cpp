// The fork's ops for GNR: sums of gradients and their moments, and the update of the weights in the same launch.
#include "../kernels/cuda/sum_moments.h"
#include "cuda_call.h"
#include "cuda_gradients.h"
#include "rules.h"

namespace fastmtl {
namespace {

// `arguments(M, Q)` gives those of the update, where one follows.
template <class Arguments>
std::tuple<Tensor, Tensor, Tensor> run_sum_moments(const OptionalTensors& grads, bool step,
                                                   const Arguments& arguments) {
  const TensorColumn column = gradients_of(grads);
  STD_TORCH_CHECK(column.like().dim() >= 1, "grads: expected a batch dimension, got shape []");
  const int64_t tasks = column.tasks();
  const Call call(column.like());
  const Tensor total = column.empty_total();
  const Tensor M = torch::stable::new_empty(total, {tasks, tasks}, ScalarType::Float);
  const Tensor Q = torch::stable::new_empty(total, {tasks, tasks}, ScalarType::Float);
  const Places places = places_of(total, column, true);
  cuda::SumMoments problem{};
  problem.positions = places.positions();
  problem.batch = total.size(0);
  problem.dtype = dtype_of_tensor(total, "grads");
  problem.vector = places.vector();
  problem.tasks = static_cast<int>(tasks);
  problem.M = static_cast<float*>(M.mutable_data_ptr());
  problem.Q = static_cast<float*>(Q.mutable_data_ptr());
  problem.total = places.place(0);
  problem.present = fill_places(column, places, 1, problem.grads);
  problem.step = step;
  problem.update = arguments(GnrMatrix<float>{problem.M, tasks, 1}, GnrMatrix<float>{problem.Q, tasks, 1});
  const cuda::MomentsKernel kernel = cuda::moments_kernel(problem.vector, problem.dtype, problem.tasks);
  const Workspace workspace = workspace_for(call, total, cuda::plan(call.device(), kernel, problem));
  check_launch(cuda::sum_moments(call.device(), kernel, workspace.numbers, workspace.tickets, problem), "sum_moments");
  return {total, M, Q};
}

std::tuple<Tensor, Tensor, Tensor> sum_moments_op(const OptionalTensors& grads) {
  return run_sum_moments(grads, false,
                         [](const GnrMatrix<float>&, const GnrMatrix<float>&) { return GnrArguments<float>{}; });
}

std::tuple<Tensor, Tensor, Tensor> sum_moments_update_op(
    const OptionalTensors& grads, const Tensor& message, const Tensor& weights, const Tensor& moments,
    const Tensor& averages, const Tensor& shares, const Tensor& samples, const Tensor& counters,
    const Tensor& task_counters, int64_t batch, int64_t accumulation, bool loss_sum, const std::string& objective,
    double decay, double step, double floor) {
  STD_TORCH_CHECK(weights.numel() == static_cast<int64_t>(grads.size()), "weights: expected shape [", grads.size(),
                  "], got ", text(weights.sizes()));
  return run_sum_moments(grads, true, [&](const GnrMatrix<float>& M, const GnrMatrix<float>& Q) {
    return gnr_arguments(M, Q, message, weights, moments, averages, shares, samples, counters, task_counters, batch,
                         accumulation, loss_sum, objective, decay, step, floor);
  });
}

}  // namespace
}  // namespace fastmtl

// The same schemas as contract.SCHEMAS: a test compares them.
STABLE_TORCH_LIBRARY_FRAGMENT(fastmtl_cuda, library) {
  library.def("sum_moments(Tensor?[] grads) -> (Tensor total, Tensor M, Tensor Q)");
  library.def(
      "sum_moments_update(Tensor?[] grads, Tensor message, Tensor(a!) weights, Tensor(b!) moments, "
      "Tensor(c!) averages, Tensor(d!) shares, Tensor(e!) samples, Tensor(f!) counters, Tensor(g!) task_counters, "
      "int batch, int accumulation, bool loss_sum, str objective, float decay, float step, float floor) "
      "-> (Tensor total, Tensor M, Tensor Q)");
}

STABLE_TORCH_LIBRARY_IMPL(fastmtl_cuda, FASTMTL_DISPATCH, library) {
  library.impl("sum_moments", TORCH_BOX(&fastmtl::sum_moments_op));
  library.impl("sum_moments_update", TORCH_BOX(&fastmtl::sum_moments_update_op));
}
