// sum_norms, and GradNorm's step after it, for the sanitizers; the results against plain loops.
#include "../../csrc/kernels/cuda/sum_norms.h"
#include "../kernels/states.h"
#include "sanitizing.h"

using namespace sanitizing;

namespace {

void run(const Device& device, Dtype dtype, const Layout& layout, int tasks, bool step) {
  const Tensor total(dtype, layout, layout.result);
  std::vector<Tensor> grads;
  for (int k = 0; k < tasks; ++k) grads.push_back(gradient(dtype, layout, k));
  const Finishing finishing(cuda::sum_norms_numbers(device, tasks));
  const Memory norms(tasks * sizeof(float));
  GradNormState state(tasks), expected_state(tasks);
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
    problem.grads[k].data = kNowhere;
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
  check(state == expected_state, 1, 0, "the state of GradNorm");
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
