// The rules, for the sanitizers: one block gives the bits that one thread gives.
#include <limits>
#include <utility>

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

// As tensors can lie: numbers that are not beside each other.
constexpr int64_t kApart = 2;
template <class T>
std::vector<T> apart(const std::vector<T>& numbers) {
  std::vector<T> made((numbers.size() - 1) * kApart + 1, std::numeric_limits<T>::max());
  for (size_t i = 0; i < numbers.size(); ++i) made[i * kApart] = numbers[i];
  return made;
}

void weigh(const Device& device, int tasks, bool wide) {
  constexpr Dtype dtypes[] = {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::f64};
  const Memory weights(((tasks - 1) * kApart + 1) * sizeof(float)), present((tasks - 1) * kApart + 1);
  std::vector<Memory> losses;
  const Memory loss(wide ? sizeof(double) : sizeof(float)), message((2 + 3 * tasks) * sizeof(float));
  cuda::Weigh problem{};
  double expected = 0;
  for (int k = 0; k < tasks; ++k) {
    const bool there = k % 5 != 4;
    const Dtype dtype = dtypes[k % 4];
    losses.emplace_back(size_of(dtype));
    if (dtype == Dtype::f64) {
      *losses.back().as<double>() = there ? static_cast<double>(value(k, 3)) : NAN;
    } else {
      put(dtype, losses.back().as(), 0, there ? value(k, 3) : NAN);
    }
    weights.as<float>()[k * kApart] = static_cast<float>(k % 3);
    present.as<bool>()[k * kApart] = there;
    problem.losses[k] = {losses.back().as(), dtype};
    if (there) expected += static_cast<double>(value(k, 3)) * (k % 3);
  }
  problem.tasks = tasks;
  problem.wide = wide;
  problem.weights = weights.as<float>();
  problem.present = present.as<bool>();
  problem.weights_stride = problem.present_stride = kApart;
  problem.loss = loss.as();
  problem.message = message.as<float>();
  check(cuda::weigh(device, problem) == nullptr, 1, 0, "launch of weigh");
  check(wide ? *loss.as<double>() : static_cast<double>(*loss.as<float>()), expected, 1, "weigh");
  for (int k = 0; k < 2; ++k) check(message.as<float>()[k], 1, 0, "weigh: the head of the message");
  for (int k = 0; k < tasks; ++k) {
    if (k % 5 != 4) check(message.as<float>()[2 + k], static_cast<double>(value(k, 3)), 0, "weigh: losses");
    check(message.as<float>()[2 + tasks + k], k % 3, 0, "weigh: weights");
    check(message.as<float>()[2 + 2 * tasks + k], k % 5 != 4, 0, "weigh: the tasks present");
  }
}

void gradnorm(const Device& device, int tasks, float scale) {
  const Memory norms(tasks * sizeof(float));
  for (int k = 0; k < tasks; ++k) norms.as<float>()[k] = static_cast<float>(1 + k % 4);
  GradNormState state(tasks), expected(tasks);
  state.message[1] = expected.message[1] = scale;
  const std::vector<float> spaced_norms = apart(std::vector<float>(norms.as<float>(), norms.as<float>() + tasks));
  const std::vector<float> message = apart(state.message);
  GradNormArguments<float> arguments = state.arguments(spaced_norms.data());
  arguments.message = message.data();
  arguments.message_stride = arguments.squared_norms_stride = kApart;
  check(cuda::gradnorm_update(device, {arguments}) == nullptr, 1, 0, "launch of gradnorm");
  std::vector<double> memory(GradNormUpdate<float>::workspace(tasks));
  GradNormUpdate<float>(expected.arguments(norms.as<float>()), TeamOfOne(), memory.data())();
  check(state == expected, 1, 0, "the state of GradNorm");
}

void gnr(const Device& device, GnrProblem<float> problem) {
  GnrProblem<float> alone = problem;
  const int64_t tasks = problem.tasks;
  const Memory memory(cuda::gnr_update_numbers(tasks) * sizeof(double));
  const std::vector<float> message = apart(problem.message), M = apart(problem.M), Q = apart(problem.Q);
  GnrArguments<float> arguments = problem.arguments();
  arguments.message = message.data();
  arguments.message_stride = kApart;
  arguments.M = {M.data(), tasks * kApart, kApart};
  if (problem.noise) arguments.Q = {Q.data(), tasks * kApart, kApart};
  check(cuda::gnr_update(device, {arguments, memory.as<double>()}) == nullptr, 1, 0, "launch of gnr");
  std::vector<double> own(GnrUpdate<float>::workspace(tasks));
  GnrUpdate<float>(alone.arguments(), TeamOfOne(), own.data())();
  check(same(problem.weights, alone.weights), 1, 0, "gnr: weights");
  check(same(problem.averages, alone.averages) && same(problem.moments, alone.moments), 1, 0, "gnr: averages");
  check(problem.counters == alone.counters && problem.task_counters == alone.task_counters, 1, 0, "gnr: counters");
}

// All tasks take part.
GnrProblem<float> made(int64_t tasks, const std::function<std::pair<double, double>(int64_t k, int64_t j)>& moments) {
  GnrProblem<float> problem(tasks, GnrObjective::relative, true, 4);
  for (int64_t k = 0; k < tasks; ++k) {
    problem.message[2 + 2 * tasks + k] = 1;
    for (int64_t j = 0; j < tasks; ++j) {
      const auto [M, Q] = moments(k, j);
      problem.M[k * tasks + j] = static_cast<float>(M), problem.Q[k * tasks + j] = static_cast<float>(Q);
    }
  }
  return problem;
}

// The solver takes steps back, uses the convex part of its Hessian, and no share of the noise makes its matrices
// positive semidefinite.
GnrProblem<float> of_many_scales() {
  const GnrProblem<float> like(9, GnrObjective::relative, true, 4);
  return made(9, [&](int64_t k, int64_t j) {
    const double M = static_cast<double>(like.M[k * 9 + j]) * std::pow(10.0, static_cast<double>(k % 5 + j % 5 - 4));
    return std::pair(M, M + 100 * (k == j));
  });
}

// Neither Hessian has a factor.
GnrProblem<float> without_a_factor() {
  return made(9, [](int64_t k, int64_t j) { return std::pair(k == j ? 1 : -0.9, k == j ? 4 : -0.9); });
}

}  // namespace

// Any argument: few cases.
int main(int count, char**) {
  in_all_orders(count > 1, [](const Device& device, unsigned order) {
    if (order > 1) return;  // they are one block
    for (const int tasks : {1, 3, 17, 64}) {
      weigh(device, tasks, order == 0);
      gradnorm(device, tasks, 1);
      gradnorm(device, tasks, INFINITY);
    }
    for (const int tasks : {1, 2, 5, 17}) {
      gnr(device, {tasks, GnrObjective::relative, true, 4});
      gnr(device, {tasks, GnrObjective::maxmin, true, 4});
      gnr(device, {tasks, GnrObjective::intertask, false, 4});
      gnr(device, {tasks, GnrObjective::relative, true, INFINITY});
    }
    gnr(device, of_many_scales());
    gnr(device, without_a_factor());
  });
  std::puts("ok");
}
