// The state of the weights' rules, on problems of their own: for the programs that the sanitizers watch.
#pragma once

#include <cmath>
#include <vector>

#include "../../csrc/kernels/gnr_update.h"
#include "../../csrc/kernels/gradnorm_update.h"
#include "plain.h"

namespace fastmtl {

// GradNorm's, on a message of its own.
struct GradNormState {
  explicit GradNormState(int64_t tasks)
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
  bool operator==(const GradNormState& other) const {
    return weights == other.weights && averages == other.averages && norms == other.norms && steps == other.steps &&
           counters == other.counters && task_counters == other.task_counters && weight_sum == other.weight_sum;
  }
  int64_t tasks;
  std::vector<float> message, weights, initial, averages, norms;
  std::vector<int64_t> steps, counters, task_counters;
  std::vector<double> weight_sum;
};

template <class Moment>
struct GnrProblem {
  GnrProblem(int64_t tasks, GnrObjective objective, bool noise, float scale)
      : tasks(tasks),
        objective(objective),
        noise(noise),
        M(tasks * tasks),
        Q(tasks * tasks),
        message(2 + 3 * tasks, 1),
        weights(tasks, 1),
        moments(2 * tasks * tasks),
        averages(3 * tasks * tasks),
        shares(tasks * tasks),
        samples(1),
        counters(2),
        task_counters(2 * tasks) {
    message[1] = scale;
    if (tasks > 3) message[2 + 2 * tasks + 1] = 0, message[2 + 2 * tasks + 2] = 2;
    for (int64_t k = 0; k < tasks; ++k) {
      for (int64_t j = 0; j < tasks; ++j) {
        double product = 0;
        for (int64_t i = 0; i < 40; ++i)
          product += static_cast<double>(value(k, i * i)) * static_cast<double>(value(j, i * i));
        M[k * tasks + j] = static_cast<Moment>(product + (k == j));
        Q[k * tasks + j] = static_cast<Moment>(product * 1.5 + 3 * (k == j));
      }
    }
  }
  GnrArguments<Moment> arguments() {
    return {tasks,
            {M.data(), tasks, 1},
            {noise ? Q.data() : nullptr, tasks, 1},
            message.data(),
            1,
            weights.data(),
            moments.data(),
            averages.data(),
            shares.data(),
            samples.data(),
            counters.data(),
            task_counters.data(),
            8,
            2,
            false,
            objective,
            0.9,
            0.5,
            0.05};
  }
  int64_t tasks;
  GnrObjective objective;
  bool noise;
  std::vector<Moment> M, Q;
  std::vector<float> message, weights, moments;
  std::vector<double> averages, shares;
  std::vector<int64_t> samples, counters, task_counters;
};

}  // namespace fastmtl
