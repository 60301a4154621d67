// The rules, for the sanitizers: one block gives the bits that one thread gives.
#include "../../csrc/kernels/cuda/updates.h"
#include "../kernels/states.h"
#include "sanitizing.h"

using namespace sanitizing;

namespace {

// NaN, which averages have without noise, is NaN's equal.
template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i] && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
  }
  return a.size() == b.size();
}

void weigh(const Device& device, int tasks, bool wide) {
  const Memory losses(tasks * sizeof(float)), weights(tasks * sizeof(float)), present(tasks);
  const Memory loss(wide ? sizeof(double) : sizeof(float)), message((2 + 3 * tasks) * sizeof(float));
  cuda::Weigh problem{};
  double expected = 0;
  for (int k = 0; k < tasks; ++k) {
    const bool there = k % 5 != 4;
    losses.as<float>()[k] = there ? value(k, 3) : NAN;
    weights.as<float>()[k] = static_cast<float>(k % 3);
    present.as<bool>()[k] = there;
    problem.losses[k] = {losses.as<float>() + k, Dtype::f32};
    if (there) expected += static_cast<double>(value(k, 3)) * (k % 3);
  }
  problem.tasks = tasks;
  problem.wide = wide;
  problem.weights = weights.as<float>();
  problem.present = present.as<bool>();
  problem.weights_stride = problem.present_stride = 1;
  problem.loss = loss.as();
  problem.message = message.as<float>();
  check(cuda::weigh(device, problem) == nullptr, 1, 0, "launch of weigh");
  check(wide ? *loss.as<double>() : static_cast<double>(*loss.as<float>()), expected, 1, "weigh");
  for (int k = 0; k < tasks; ++k)
    check(message.as<float>()[2 + 2 * tasks + k], k % 5 != 4, 0, "weigh: the tasks present");
}

void gradnorm(const Device& device, int tasks) {
  const Memory norms(tasks * sizeof(float));
  for (int k = 0; k < tasks; ++k) norms.as<float>()[k] = static_cast<float>(1 + k % 4);
  GradNormState state(tasks), expected(tasks);
  check(cuda::gradnorm_update(device, {state.arguments(norms.as<float>())}) == nullptr, 1, 0, "launch of gradnorm");
  std::vector<double> memory(GradNormUpdate<float>::workspace(tasks));
  GradNormUpdate<float>(expected.arguments(norms.as<float>()), TeamOfOne(), memory.data())();
  check(state == expected, 1, 0, "the state of GradNorm");
}

void gnr(const Device& device, int tasks, GnrObjective objective, bool noise, float scale) {
  GnrProblem<float> problem(tasks, objective, noise, scale), alone(tasks, objective, noise, scale);
  const Memory memory(cuda::gnr_update_numbers(tasks) * sizeof(double));
  check(cuda::gnr_update(device, {problem.arguments(), memory.as<double>()}) == nullptr, 1, 0, "launch of gnr");
  std::vector<double> own(GnrUpdate<float>::workspace(tasks));
  GnrUpdate<float>(alone.arguments(), TeamOfOne(), own.data())();
  check(same(problem.weights, alone.weights), 1, 0, "gnr: weights");
  check(same(problem.averages, alone.averages) && same(problem.moments, alone.moments), 1, 0, "gnr: averages");
  check(problem.counters == alone.counters && problem.task_counters == alone.task_counters, 1, 0, "gnr: counters");
}

}  // namespace

// Any argument: few cases.
int main(int count, char**) {
  in_all_orders(count > 1, [](const Device& device, unsigned order) {
    if (order > 1) return;  // they are one block
    for (const int tasks : {1, 3, 17, 64}) {
      weigh(device, tasks, order == 0);
      gradnorm(device, tasks);
    }
    for (const int tasks : {1, 2, 5, 17}) {
      gnr(device, tasks, GnrObjective::relative, true, 4);
      gnr(device, tasks, GnrObjective::maxmin, true, 4);
      gnr(device, tasks, GnrObjective::intertask, false, 4);
      gnr(device, tasks, GnrObjective::relative, true, INFINITY);
    }
  });
  std::puts("ok");
}
