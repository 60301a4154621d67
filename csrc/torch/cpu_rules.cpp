// The weighted sum of the losses, and GradNorm's update of the weights.
#include "cpu_views.h"
#include "rules.h"

namespace fastmtl {
namespace {

double scalar_of(const Tensor& tensor, const Label& label) {
  const void* data = tensor.const_data_ptr();
  float value = 0;
  switch (dtype_of_tensor(tensor, label)) {
    case Dtype::f64:
      return *static_cast<const double*>(data);
    case Dtype::f32:
      return *static_cast<const float*>(data);
    case Dtype::bf16:
      generic_isa().load_bf16(static_cast<const uint16_t*>(data), 1, &value);
      break;
    case Dtype::f16:
      generic_isa().load_f16(static_cast<const uint16_t*>(data), 1, &value);
      break;
  }
  return value;
}

std::tuple<Tensor, Tensor> weigh_op(const std::vector<Tensor>& losses, const Tensor& weights, const Tensor& present) {
  const int64_t tasks = losses.size();
  STD_TORCH_CHECK(tasks >= 1, "losses: expected at least one tensor, got none");
  check(weights, "weights", ScalarType::Float, {tasks});
  check(present, "present", ScalarType::Bool, {tasks});
  bool wide = false;
  double sum = 0;
  std::vector<double> values(tasks);
  for (int64_t k = 0; k < tasks; ++k) {
    const Label label("losses", k);
    check_device(losses[k], label);
    STD_TORCH_CHECK(losses[k].numel() == 1, label.text(), ": expected one element, got shape ",
                    text(losses[k].sizes()));
    values[k] = scalar_of(losses[k], label);
    wide = wide || losses[k].scalar_type() == ScalarType::Double;
  }
  const Tensor message = torch::stable::new_empty(weights, {2 + 3 * tasks}, ScalarType::Float);
  float* to = static_cast<float*>(message.mutable_data_ptr());
  to[0] = to[1] = 1;
  for (int64_t k = 0; k < tasks; ++k) {
    const float weight = static_cast<const float*>(weights.const_data_ptr())[k * weights.stride(0)];
    const bool there = static_cast<const bool*>(present.const_data_ptr())[k * present.stride(0)];
    if (there) sum += static_cast<double>(weight) * values[k];
    to[2 + k] = static_cast<float>(values[k]);
    to[2 + tasks + k] = weight;
    to[2 + 2 * tasks + k] = there ? 1 : 0;
  }
  const Tensor loss = torch::stable::new_empty(weights, Shape(), wide ? ScalarType::Double : ScalarType::Float);
  if (wide) {
    *static_cast<double*>(loss.mutable_data_ptr()) = sum;
  } else {
    *static_cast<float*>(loss.mutable_data_ptr()) = static_cast<float>(sum);
  }
  return {loss, message};
}

void gradnorm_update_op(const Tensor& squared_norms, const Tensor& message, const Tensor& weights,
                        const Tensor& initial_losses, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                        const Tensor& steps, const Tensor& weight_sum, const Tensor& norms, const Tensor& rates,
                        const Tensor& counters, const Tensor& task_counters, double alpha, double lr, bool adam,
                        double beta1, double beta2, double eps, double min_weight) {
  const int64_t tasks = weights.numel();
  const bool wide = squared_norms.scalar_type() == ScalarType::Double;
  check(squared_norms, "squared_norms", wide ? ScalarType::Double : ScalarType::Float, {tasks});
  with_type(squared_norms, [&](auto zero) {
    using Norm = decltype(zero);
    const auto arguments =
        gradnorm_arguments(static_cast<const Norm*>(squared_norms.const_data_ptr()), squared_norms.stride(0), message,
                           weights, initial_losses, exp_avg, exp_avg_sq, steps, weight_sum, norms, rates, counters,
                           task_counters, alpha, lr, adam, beta1, beta2, eps, min_weight);
    std::vector<double> memory(GradNormUpdate<Norm>::workspace(tasks));
    GradNormUpdate<Norm>(arguments, TeamOfOne(), memory.data())();
  });
}

}  // namespace
}  // namespace fastmtl

STABLE_TORCH_LIBRARY_FRAGMENT(fastmtl_cpp, library) {
  library.def("weigh(Tensor[] losses, Tensor weights, Tensor present) -> (Tensor loss, Tensor message)");
  library.def(
      "gradnorm_update(Tensor squared_norms, Tensor message, Tensor(a!) weights, Tensor(b!) initial_losses, "
      "Tensor(c!) exp_avg, Tensor(d!) exp_avg_sq, Tensor(e!) steps, Tensor(f!) weight_sum, Tensor(g!) norms, "
      "Tensor(h!) rates, Tensor(i!) counters, Tensor(j!) task_counters, float alpha, float lr, bool adam, float beta1, "
      "float beta2, float eps, float min_weight) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastmtl_cpp, CPU, library) {
  library.impl("weigh", TORCH_BOX(&fastmtl::weigh_op));
  library.impl("gradnorm_update", TORCH_BOX(&fastmtl::gradnorm_update_op));
}
