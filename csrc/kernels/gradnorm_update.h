// The update of the task weights: header-only, one source for CPU and GPU code.
#pragma once

#include <cmath>
#include <cstdint>

#include "team.h"

namespace fastmtl {

constexpr float kTiniestWeight = 1.17549435e-38f;         // the smallest normal float32
constexpr double kLargestSquare = 3.4028234663852886e38;  // the largest float32

template <class Norm>
struct GradNormArguments {
  int64_t tasks;
  const Norm* squared_norms;
  int64_t squared_norms_stride;
  const float* message;  // [valid, scale, losses, weights used, present]
  int64_t message_stride;
  float *weights, *initial_losses, *exp_avg, *exp_avg_sq;
  int64_t* steps;
  double* weight_sum;
  float *norms, *rates;
  int64_t *counters, *task_counters;  // [accepted, refused]; [left out, zero gradient, no gradient] of each task
  double alpha, lr;
  bool adam;
  double beta1, beta2, eps, min_weight;
};

// One step of GradNorm's weights (Chen et al. 2018, algorithm 1) in double. Nothing is stored between the passes over
// the tasks: what a pass needs is formed again from the state, which the last pass alone changes (but for L_k(0)).
template <class Norm>
struct GradNormUpdate {
  using Arguments = GradNormArguments<Norm>;
  Arguments a;
  double mean_ratio = 0, mean_norm = 0;

  FASTMTL_HD explicit GradNormUpdate(const Arguments& arguments) : a(arguments) {}

  FASTMTL_HD double message(int64_t i) const { return static_cast<double>(a.message[i * a.message_stride]); }
  FASTMTL_HD double scale() const { return message(1); }
  FASTMTL_HD double loss(int64_t k) const { return message(2 + k); }
  FASTMTL_HD double used(int64_t k) const { return message(2 + a.tasks + k); }
  FASTMTL_HD bool present(int64_t k) const { return message(2 + 2 * a.tasks + k) == 1; }
  FASTMTL_HD bool no_gradient(int64_t k) const { return message(2 + 2 * a.tasks + k) == 2; }
  FASTMTL_HD double squared_norm(int64_t k) const {
    return static_cast<double>(a.squared_norms[k * a.squared_norms_stride]);
  }

  FASTMTL_HD double task_norm(int64_t k) const { return sqrt(squared_norm(k)) / (fabs(scale()) * used(k)); }
  FASTMTL_HD bool rated(int64_t k) const { return present(k) && a.initial_losses[k] > 0 && loss(k) >= 0; }
  FASTMTL_HD bool taking_part(int64_t k) const { return a.alpha != 0 ? rated(k) : present(k); }
  FASTMTL_HD double ratio(int64_t k) const { return loss(k) / static_cast<double>(a.initial_losses[k]); }
  FASTMTL_HD double relative(int64_t k) const {
    if (!(mean_ratio > 0)) return 1;  // all losses 0: no task lags behind
    return rated(k) ? ratio(k) / mean_ratio : 0;
  }

  FASTMTL_HD double gradient(int64_t k) const {
    const double difference = used(k) * task_norm(k) - mean_norm * (a.alpha != 0 ? pow(relative(k), a.alpha) : 1.0);
    return ((difference > 0) - (difference < 0)) * task_norm(k);
  }
  FASTMTL_HD double exp_avg(int64_t k) const {
    return a.beta1 * static_cast<double>(a.exp_avg[k]) + (1 - a.beta1) * gradient(k);
  }
  FASTMTL_HD double exp_avg_sq(int64_t k) const {
    return a.beta2 * static_cast<double>(a.exp_avg_sq[k]) + (1 - a.beta2) * gradient(k) * gradient(k);
  }

  // The weight after the step, before all are renormalised.
  FASTMTL_HD double floored(int64_t k) const {
    double moved = static_cast<double>(a.weights[k]);
    if (a.adam) {
      const double steps = static_cast<double>(a.steps[k]) + 1;
      const double denominator = sqrt(exp_avg_sq(k) / (1 - pow(a.beta2, steps))) + a.eps;
      moved -= a.lr * exp_avg(k) / (1 - pow(a.beta1, steps)) / denominator;
    } else {
      moved -= a.lr * gradient(k);
    }
    return moved < a.min_weight ? a.min_weight : moved;
  }

  FASTMTL_HD bool finite() const {
    bool all = isfinite_(scale());
    for (int64_t k = 0; k < a.tasks; ++k) {
      // A square beyond float32 would stay in Adam's second moment for good.
      const bool fits = task_norm(k) * task_norm(k) <= kLargestSquare;
      all = all && (!present(k) || (fits && isfinite_(loss(k))));
    }
    return all;
  }

  FASTMTL_HD void operator()() {
    const bool measured = message(0) == 1 && scale() != 0;
    if (!measured) return;
    if (!finite()) {
      a.counters[1] += 1;
      return;
    }
    // L_k(0) is the first positive loss: a ratio to zero or to a negative number has no meaning.
    int64_t rated_tasks = 0, taking_part_tasks = 0;
    double ratios = 0, gradient_norms = 0, budget = static_cast<double>(a.tasks);
    for (int64_t k = 0; k < a.tasks; ++k) {
      const float initial = a.initial_losses[k];
      if (present(k) && initial != initial && loss(k) > 0) a.initial_losses[k] = static_cast<float>(loss(k));
      if (rated(k)) {
        ++rated_tasks;
        ratios += ratio(k);
      }
      if (taking_part(k)) {
        ++taking_part_tasks;
        gradient_norms += used(k) * task_norm(k);
      } else {
        budget -= static_cast<double>(a.weights[k]);  // the tasks left out keep their weight
      }
    }
    mean_ratio = rated_tasks > 0 ? ratios / static_cast<double>(rated_tasks) : 0;
    mean_norm = taking_part_tasks > 0 ? gradient_norms / static_cast<double>(taking_part_tasks) : 0;
    double sum = 0;
    for (int64_t k = 0; k < a.tasks; ++k) {
      if (taking_part(k)) sum += floored(k);
    }
    for (int64_t k = 0; k < a.tasks; ++k) update_task(k, budget / sum);
    a.counters[0] += 1;
  }

 private:
  FASTMTL_HD static bool isfinite_(double x) { return x - x == 0; }

  FASTMTL_HD void update_task(int64_t k, double factor) {
    a.weight_sum[k] += used(k);
    if (present(k)) {
      a.norms[k] = static_cast<float>(task_norm(k));
      if (rated(k)) a.rates[k] = static_cast<float>(relative(k));
      if (!taking_part(k)) a.task_counters[k] += 1;
      if (squared_norm(k) == 0) a.task_counters[a.tasks + k] += 1;
    }
    if (no_gradient(k)) a.task_counters[2 * a.tasks + k] += 1;
    if (!taking_part(k)) return;
    const float weight = static_cast<float>(floored(k) * factor);
    if (a.adam) {
      const float average = static_cast<float>(exp_avg(k)), average_sq = static_cast<float>(exp_avg_sq(k));
      a.exp_avg[k] = average;
      a.exp_avg_sq[k] = average_sq;
    }
    a.weights[k] = weight < kTiniestWeight ? kTiniestWeight : weight;
    a.steps[k] += 1;
  }
};

}  // namespace fastmtl
