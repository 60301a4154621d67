// The state of the updates of the weights, from tensors to what the rules take; the same for all devices.
#pragma once

#include "../kernels/gnr_update.h"
#include "../kernels/gradnorm_update.h"
#include "tensors.h"

namespace fastmtl {

template <class Norm>
GradNormArguments<Norm> gradnorm_arguments(const Norm* squared_norms, int64_t stride, const Tensor& message,
                                           const Tensor& weights, const Tensor& initial_losses, const Tensor& exp_avg,
                                           const Tensor& exp_avg_sq, const Tensor& steps, const Tensor& weight_sum,
                                           const Tensor& norms, const Tensor& rates, const Tensor& counters,
                                           const Tensor& task_counters, double alpha, double lr, bool adam,
                                           double beta1, double beta2, double eps, double min_weight) {
  const int64_t tasks = weights.numel();
  check(message, "message", ScalarType::Float, {2 + 3 * tasks});
  return {
      tasks,
      squared_norms,
      stride,
      static_cast<const float*>(message.const_data_ptr()),
      message.stride(0),
      state<float>(weights, "weights", ScalarType::Float, {tasks}),
      state<float>(initial_losses, "initial_losses", ScalarType::Float, {tasks}),
      state<float>(exp_avg, "exp_avg", ScalarType::Float, {tasks}),
      state<float>(exp_avg_sq, "exp_avg_sq", ScalarType::Float, {tasks}),
      state<int64_t>(steps, "steps", ScalarType::Long, {tasks}),
      state<double>(weight_sum, "weight_sum", ScalarType::Double, {tasks}),
      state<float>(norms, "norms", ScalarType::Float, {tasks}),
      state<float>(rates, "rates", ScalarType::Float, {tasks}),
      state<int64_t>(counters, "counters", ScalarType::Long, {2}),
      state<int64_t>(task_counters, "task_counters", ScalarType::Long, {3, tasks}),
      alpha,
      lr,
      adam,
      beta1,
      beta2,
      eps,
      min_weight,
  };
}

inline GnrObjective objective_of(const std::string& name) {
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

template <class Moment>
GnrArguments<Moment> gnr_arguments(const GnrMatrix<Moment>& M, const GnrMatrix<Moment>& Q, const Tensor& message,
                                   const Tensor& weights, const Tensor& moments, const Tensor& averages,
                                   const Tensor& shares, const Tensor& samples, const Tensor& counters,
                                   const Tensor& task_counters, int64_t batch, int64_t accumulation, bool loss_sum,
                                   const std::string& objective, double decay, double step, double floor) {
  const int64_t tasks = weights.numel();
  check(message, "message", ScalarType::Float, {2 + 3 * tasks});
  return {
      tasks,
      M,
      Q,
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
}

}  // namespace fastmtl
