// The update of the GNR weights.
#include "../kernels/gnr_update.h"
#include "tensors.h"

namespace fastmtl {
namespace {

GnrObjective objective_of(const std::string& name) {
  if (name == "relative") return GnrObjective::relative;
  if (name == "maxmin") return GnrObjective::maxmin;
  if (name == "intertask") return GnrObjective::intertask;
  STD_TORCH_CHECK(name == "none", "objective: expected relative, maxmin, intertask or none, got ", name);
  return GnrObjective::none;
}

template <class Moment>
GnrMatrix<Moment> matrix_of(const Tensor& tensor) {
  return {static_cast<const Moment*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1)};
}

void gnr_update_op(const Tensor& M, const std::optional<Tensor>& Q, const Tensor& message, const Tensor& weights,
                   const Tensor& moments, const Tensor& averages, const Tensor& shares, const Tensor& samples,
                   const Tensor& counters, const Tensor& task_counters, int64_t batch, int64_t accumulation,
                   bool loss_sum, const std::string& objective, double decay, double step, double floor) {
  const int64_t tasks = weights.numel();
  const ScalarType type = M.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  check(M, "M", type, {tasks, tasks});
  if (Q.has_value()) check(*Q, "Q", type, {tasks, tasks});
  check(message, "message", ScalarType::Float, {2 + 3 * tasks});
  with_type(M, [&](auto zero) {
    using Moment = decltype(zero);
    const GnrArguments<Moment> arguments{
        tasks,
        matrix_of<Moment>(M),
        Q.has_value() ? matrix_of<Moment>(*Q) : GnrMatrix<Moment>{nullptr, 0, 0},
        static_cast<const float*>(message.const_data_ptr()),
        message.stride(0),
        state<float>(weights, "weights", ScalarType::Float, {tasks}),
        state<float>(moments, "moments", ScalarType::Float, {2, tasks, tasks}),
        state<double>(averages, "averages", ScalarType::Double, {3, tasks, tasks}),
        state<double>(shares, "shares", ScalarType::Double, {tasks, tasks}),
        state<int64_t>(samples, "samples", ScalarType::Long, {1}),
        state<int64_t>(counters, "counters", ScalarType::Long, {2}),
        state<int64_t>(task_counters, "task_counters", ScalarType::Long, {2, tasks}),
        batch,
        accumulation,
        loss_sum,
        objective_of(objective),
        decay,
        step,
        floor,
    };
    std::vector<double> memory(GnrUpdate<Moment>::workspace(tasks));
    GnrUpdate<Moment>(arguments, TeamOfOne(), memory.data())();
  });
}

}  // namespace
}  // namespace fastmtl

STABLE_TORCH_LIBRARY_FRAGMENT(fastmtl_cpp, library) {
  library.def(
      "gnr_update(Tensor M, Tensor? Q, Tensor message, Tensor(a!) weights, Tensor(b!) moments, Tensor(c!) averages, "
      "Tensor(d!) shares, Tensor(e!) samples, Tensor(f!) counters, Tensor(g!) task_counters, int batch, "
      "int accumulation, bool loss_sum, str objective, float decay, float step, float floor) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastmtl_cpp, CPU, library) { library.impl("gnr_update", TORCH_BOX(&fastmtl::gnr_update_op)); }
