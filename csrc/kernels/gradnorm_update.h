// The update of the task weights: header-only, one source for CPU and GPU code.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "power.h"
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

// One step of GradNorm's weights (Chen et al. 2018, algorithm 1) in double. All ranks of the team call it, with one
// workspace. Sums over the tasks are formed by every rank for itself, in the order of the tasks.
template <class Norm, class Team = TeamOfOne>
class GradNormUpdate {
 public:
  using Index = typename Team::Index;

  FASTMTL_HD static constexpr int64_t workspace(int64_t tasks) { return 4 * tasks; }

  FASTMTL_HD GradNormUpdate(const GradNormArguments<Norm>& arguments, const Team& team, double* memory)
      : a_(arguments), team_(team), T_(static_cast<Index>(arguments.tasks)) {
    for (double** vector : {&sound_, &ratios_, &weighted_, &floored_}) {
      *vector = memory;
      memory += T_;
    }
  }

  FASTMTL_HD void operator()() {
    if (message(0) != 1 || scale() == 0) return;
    if (!finite()) {
      if (team_.rank() == 0) a_.counters[1] += 1;
      return;
    }
    FASTMTL_ROLLED for (Index k = team_.rank(); k < T_; k += team_.size()) {
      // L_k(0) is the first positive loss: a ratio to zero or to a negative number has no meaning.
      const float initial = a_.initial_losses[k];
      if (present(k) && initial != initial && loss(k) > 0) a_.initial_losses[k] = static_cast<float>(loss(k));
      ratios_[k] = rated(k) ? loss(k) / static_cast<double>(a_.initial_losses[k]) : 0;
      weighted_[k] = taking_part(k) ? used(k) * task_norm(k) : 0;
    }
    team_.sync();
    Index rated_tasks = 0, taking_part_tasks = 0;
    double ratios = 0, gradient_norms = 0, budget = static_cast<double>(T_);
    FASTMTL_ROLLED for (Index k = 0; k < T_; ++k) {
      if (rated(k)) {
        ++rated_tasks;
        ratios += ratios_[k];
      }
      if (taking_part(k)) {
        ++taking_part_tasks;
        gradient_norms += weighted_[k];
      } else {
        budget -= static_cast<double>(a_.weights[k]);  // the tasks left out keep their weight
      }
    }
    mean_ratio_ = rated_tasks > 0 ? ratios / static_cast<double>(rated_tasks) : 0;
    mean_norm_ = taking_part_tasks > 0 ? gradient_norms / static_cast<double>(taking_part_tasks) : 0;
    FASTMTL_ROLLED for (Index k = team_.rank(); k < T_; k += team_.size()) floored_[k] = taking_part(k) ? moved(k) : 0;
    team_.sync();
    double sum = 0;
    FASTMTL_ROLLED for (Index k = 0; k < T_; ++k) {
      if (taking_part(k)) sum += floored_[k];
    }
    FASTMTL_ROLLED for (Index k = team_.rank(); k < T_; k += team_.size()) update_task(k, budget / sum);
    if (team_.rank() == 0) a_.counters[0] += 1;
  }

 private:
  GradNormArguments<Norm> a_;
  Team team_;
  Index T_;
  double *sound_, *ratios_, *weighted_, *floored_;
  double mean_ratio_ = 0, mean_norm_ = 0;

  FASTMTL_HD static bool isfinite_(double x) { return x - x == 0; }

  FASTMTL_HD double message(Index i) const { return static_cast<double>(a_.message[i * a_.message_stride]); }
  FASTMTL_HD double scale() const { return message(1); }
  FASTMTL_HD double loss(Index k) const { return message(2 + k); }
  FASTMTL_HD double used(Index k) const { return message(2 + T_ + k); }
  FASTMTL_HD bool present(Index k) const { return message(2 + 2 * T_ + k) == 1; }
  FASTMTL_HD bool no_gradient(Index k) const { return message(2 + 2 * T_ + k) == 2; }
  FASTMTL_HD double squared_norm(Index k) const {
    return static_cast<double>(a_.squared_norms[k * a_.squared_norms_stride]);
  }

  FASTMTL_HD double task_norm(Index k) const { return sqrt(squared_norm(k)) / (fabs(scale()) * used(k)); }
  FASTMTL_HD bool rated(Index k) const { return present(k) && a_.initial_losses[k] > 0 && loss(k) >= 0; }
  FASTMTL_HD bool taking_part(Index k) const { return a_.alpha != 0 ? rated(k) : present(k); }
  FASTMTL_HD double relative(Index k) const {
    if (!(mean_ratio_ > 0)) return 1;  // all losses 0: no task lags behind
    return ratios_[k] / mean_ratio_;
  }

  FASTMTL_HD double gradient(Index k) const {
    const double difference = weighted_[k] - mean_norm_ * (a_.alpha != 0 ? power(relative(k), a_.alpha) : 1.0);
    return ((difference > 0) - (difference < 0)) * task_norm(k);
  }
  FASTMTL_HD double exp_avg(Index k, double gradient) const {
    return a_.beta1 * static_cast<double>(a_.exp_avg[k]) + (1 - a_.beta1) * gradient;
  }
  FASTMTL_HD double exp_avg_sq(Index k, double gradient) const {
    return a_.beta2 * static_cast<double>(a_.exp_avg_sq[k]) + (1 - a_.beta2) * gradient * gradient;
  }

  // The weight after the step, before all are renormalised.
  FASTMTL_HD double moved(Index k) const {
    double weight = static_cast<double>(a_.weights[k]);
    const double g = gradient(k);
    if (a_.adam) {
      const double steps = static_cast<double>(a_.steps[k]) + 1;
      const double denominator = sqrt(exp_avg_sq(k, g) / (1 - power(a_.beta2, steps))) + a_.eps;
      weight -= a_.lr * exp_avg(k, g) / (1 - power(a_.beta1, steps)) / denominator;
    } else {
      weight -= a_.lr * g;
    }
    return weight < a_.min_weight ? a_.min_weight : weight;
  }

  FASTMTL_HD bool finite() {
    FASTMTL_ROLLED for (Index k = team_.rank(); k < T_; k += team_.size()) {
      // A square beyond float32 would stay in Adam's second moment for good.
      const bool fits = task_norm(k) * task_norm(k) <= kLargestSquare;
      sound_[k] = !present(k) || (fits && isfinite_(loss(k)));
    }
    team_.sync();
    bool all = isfinite_(scale());
    FASTMTL_ROLLED for (Index k = 0; k < T_; ++k) all = all && sound_[k] != 0;
    return all;
  }

  // All that other ranks read of the state they have read; of a task's own only its rank reads.
  FASTMTL_HD void update_task(Index k, double factor) {
    a_.weight_sum[k] += used(k);
    if (present(k)) {
      a_.norms[k] = static_cast<float>(task_norm(k));
      if (rated(k)) a_.rates[k] = static_cast<float>(relative(k));
      if (!taking_part(k)) a_.task_counters[k] += 1;
      if (squared_norm(k) == 0) a_.task_counters[T_ + k] += 1;
    }
    if (no_gradient(k)) a_.task_counters[2 * T_ + k] += 1;
    if (!taking_part(k)) return;
    if (a_.adam) {
      const double g = gradient(k);
      const float average = static_cast<float>(exp_avg(k, g)), average_sq = static_cast<float>(exp_avg_sq(k, g));
      a_.exp_avg[k] = average;
      a_.exp_avg_sq[k] = average_sq;
    }
    const float weight = static_cast<float>(floored_[k] * factor);
    a_.weights[k] = weight < kTiniestWeight ? kTiniestWeight : weight;
    a_.steps[k] += 1;
  }
};

}  // namespace fastmtl
