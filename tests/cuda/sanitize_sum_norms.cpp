// sum_norms, and GradNorm's step after it, for the sanitizers; the results against plain loops.
#include "../../csrc/kernels/cuda/sum_norms.h"
#include "sanitizing.h"

using namespace sanitizing;

namespace {

// GradNorm's state, and what it would become.
struct State {
  explicit State(int64_t tasks)
      : tasks(tasks),
        message(2 + 3 * tasks, 1),
        weights(tasks, 1),
        initial(tasks, NAN),
        averages(2 * tasks),
        norms(2 * tasks),
        steps(tasks),
        counters(2),
        task_counters(3 * tasks),
        weight_sum(tasks) {
    for (int64_t k = 0; k < tasks; ++k) message[2 + k] = 1 + 0.25f * static_cast<float>(k % 3);
    if (tasks > 2) message[2 + 2 * tasks + 1] = 0;
  }
  GradNormArguments<float> arguments(const float* squared_norms) {
    return {tasks,
            squared_norms,
            1,
            message.data(),
            1,
            weights.data(),
            initial.data(),
            averages.data(),
            averages.data() + tasks,
            steps.data(),
            weight_sum.data(),
            norms.data(),
            norms.data() + tasks,
            counters.data(),
            task_counters.data(),
            0.5,
            0.025,
            true,
            0.9,
            0.999,
            1e-8,
            1e-3};
  }
  int64_t tasks;
  std::vector<float> message, weights, initial, averages, norms;
  std::vector<int64_t> steps, counters, task_counters;
  std::vector<double> weight_sum;
};

void run(const Device& device, Dtype dtype, const Layout& layout, int tasks, bool step) {
  const Tensor total(dtype, layout, layout.result);
  std::vector<Tensor> grads;
  for (int k = 0; k < tasks; ++k) grads.push_back(gradient(dtype, layout, k));
  const Finishing finishing(cuda::sum_norms_numbers(device, tasks));
  const Memory norms(tasks * sizeof(float));
  State state(tasks), expected_state(tasks);
  cuda::SumNorms problem{};
  problem.positions = layout.positions;
  problem.tasks = tasks;
  problem.step = step;
  problem.finish = finishing.memory();
  problem.norms = norms.as<float>();
  problem.update = state.arguments(problem.norms);
  problem.total = total.place;
  const auto missing = [&](int k) { return tasks > 2 && k % 8 == 1; };
  for (int k = 0; k < tasks; ++k) {
    if (missing(k)) continue;
    problem.present |= uint64_t{1} << k;
    problem.grads[k] = grads[k].place;
  }
  const char* error = cuda::sum_norms(device, dtype, layout.vector, problem);
  check(error == nullptr, 1, 0, "launch");

  std::vector<double> squares(tasks);
  for (int64_t i = 0; i < layout.positions.count; ++i) {
    float sum = 0;
    for (int k = 0; k < tasks; ++k) {
      if (missing(k)) continue;
      const float x = number(layout, k, i);
      sum += x;
      squares[k] += static_cast<double>(x) * static_cast<double>(x);
    }
    const int64_t at = offset_of(layout.positions, layout.result, i);
    check(holds(dtype, total.place.data, at, sum), 1, 0, layout.name);
  }
  for (int k = 0; k < tasks; ++k) check(norms.as<float>()[k], squares[k], squares[k], layout.name);
  if (!step) return;
  std::vector<double> memory(GradNormUpdate<float>::workspace(tasks));
  GradNormUpdate<float>(expected_state.arguments(problem.norms), TeamOfOne(), memory.data())();
  check(state.weights == expected_state.weights, 1, 0, "weights");
  check(state.averages == expected_state.averages, 1, 0, "averages");
  check(state.steps == expected_state.steps && state.counters == expected_state.counters, 1, 0, "counters");
  check(state.task_counters == expected_state.task_counters, 1, 0, "counters of the tasks");
}

}  // namespace

// Any argument: few cases.
int main(int count, char**) {
  in_all_cases(count > 1, {1, 4, 11, 64},
               [](const Device& device, Dtype dtype, const Layout& layout, int tasks, unsigned turn) {
                 run(device, dtype, layout, tasks, turn % 2 == 0);
               });
  std::puts("ok");
}
