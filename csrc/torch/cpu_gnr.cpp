// The update of the GNR weights.
#include "rules.h"

namespace fastmtl {
namespace {

void gnr_update_op(const Tensor& M, const std::optional<Tensor>& Q, const Tensor& message, const Tensor& weights,
                   const Tensor& moments, const Tensor& averages, const Tensor& shares, const Tensor& samples,
                   const Tensor& counters, const Tensor& task_counters, int64_t batch, int64_t accumulation,
                   bool loss_sum, const std::string& objective, double decay, double step, double floor) {
  const int64_t tasks = weights.numel();
  const ScalarType type = M.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  check(M, "M", type, {tasks, tasks});
  if (Q.has_value()) check(*Q, "Q", type, {tasks, tasks});
  with_type(M, [&](auto zero) {
    using Moment = decltype(zero);
    const auto arguments =
        gnr_arguments(matrix_of<Moment>(M), Q.has_value() ? matrix_of<Moment>(*Q) : GnrMatrix<Moment>{nullptr, 0, 0},
                      message, weights, moments, averages, shares, samples, counters, task_counters, batch,
                      accumulation, loss_sum, objective, decay, step, floor);
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
