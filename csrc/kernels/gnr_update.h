// The update of the GNR weights: header-only, one source for CPU and GPU code.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "max_min.h"
#include "power.h"
#include "team.h"

namespace fastmtl {

enum class GnrObjective { relative, maxmin, intertask, none };

template <class Moment>
struct GnrMatrix {
  const Moment* data;  // null: not measured
  int64_t row_stride, column_stride;

  FASTMTL_HD double operator()(int64_t k, int64_t j) const {
    return static_cast<double>(data[k * row_stride + j * column_stride]);
  }
};

template <class Moment>
struct GnrArguments {
  int64_t tasks;
  GnrMatrix<Moment> M, Q;
  const float* message;  // [valid, scale, losses, weights used, present]
  int64_t message_stride;
  float *weights, *moments;                     // [T], [M, Q]
  double *averages, *shares;                    // [S, C, M], 1 - decay^n
  int64_t *samples, *counters, *task_counters;  // [accepted, refused]; [zero gradient, no gradient] of each task
  int64_t batch, accumulation;
  bool loss_sum;
  GnrObjective objective;
  double decay, step, floor;
};

// One step of the GNR weights in double; see fastmtl.ops.gnr_update. All ranks of the team call it, with one workspace.
template <class Moment, class Team = TeamOfOne>
class GnrUpdate {
 public:
  using Index = typename Team::Index;

  FASTMTL_HD static int64_t workspace(int64_t tasks) {
    return MaxMin<Team>::workspace(tasks) + 6 * Team::stride(tasks);
  }

  FASTMTL_HD GnrUpdate(const GnrArguments<Moment>& arguments, const Team& team, double* memory)
      : a_(arguments),
        team_(team),
        T_(static_cast<Index>(arguments.tasks)),
        solver_memory_(memory + 6 * Team::stride(T_)) {
    for (double** vector : {&sound_, &numerators_, &second_, &rounding_, &order_, &blended_}) {
      *vector = memory;
      memory += Team::stride(T_);
    }
    units_ = scale() * scale() * (a_.loss_sum ? static_cast<double>(a_.batch) * static_cast<double>(a_.batch) : 1.0);
  }

  FASTMTL_HD void operator()() {
    if (message(0) != 1 || scale() == 0) return;
    if (!finite()) {
      if (team_.rank() == 0) a_.counters[1] += 1;
      return;
    }
    FASTMTL_ROLLED for (Index k = team_.rank(); k < T_; k += team_.size()) measure(k);
    if (team_.rank() == 0) {
      a_.samples[0] = a_.batch * a_.accumulation;
      a_.counters[0] += 1;
    }
    team_.sync();
    if (a_.objective != GnrObjective::none) update_weights();
  }

 private:
  static constexpr double kLargest = 3.4028234663852886e38;  // the largest float32
  static constexpr float kTiniest = 1.17549435e-38f;         // the smallest normal float32
  static constexpr double kRounding = 1e-6;                  // a variance below this times the mean square is rounding
  static constexpr int kShares = 9;                          // from 1 / accumulation to 1
  static constexpr double kUnknown = __builtin_nan("");

  GnrArguments<Moment> a_;
  Team team_;
  Index T_;
  double units_ = 1;
  double noise_left_ = 1;
  double *sound_, *numerators_, *second_, *rounding_, *order_, *blended_, *solver_memory_;

  FASTMTL_HD static bool isfinite_(double x) { return x - x == 0; }

  FASTMTL_HD double message(Index i) const { return static_cast<double>(a_.message[i * a_.message_stride]); }
  FASTMTL_HD double scale() const { return message(1); }
  FASTMTL_HD double loss(Index k) const { return message(2 + k); }
  FASTMTL_HD double used(Index k) const { return message(2 + T_ + k); }
  FASTMTL_HD bool present(Index k) const { return message(2 + 2 * T_ + k) == 1; }
  FASTMTL_HD bool no_gradient(Index k) const { return message(2 + 2 * T_ + k) == 2; }

  FASTMTL_HD bool noise_measured() const { return a_.Q.data != nullptr && a_.batch > 1; }
  FASTMTL_HD double unscaled(const GnrMatrix<Moment>& matrix, Index k, Index j) const {
    return matrix(k, j) / (units_ * used(k) * used(j));
  }

  FASTMTL_HD bool finite() {
    FASTMTL_ROLLED for (Index k = team_.rank(); k < T_; k += team_.size()) {
      bool sound = isfinite_(loss(k));
      FASTMTL_ROLLED for (Index j = 0; j < T_; ++j) {
        if (!present(j)) continue;
        sound = sound && fabs(unscaled(a_.M, k, j)) <= kLargest;
        if (noise_measured()) sound = sound && fabs(unscaled(a_.Q, k, j)) <= kLargest;
      }
      sound_[k] = sound || !present(k);
    }
    team_.sync();
    return all_sound(T_) && isfinite_(scale());
  }

  FASTMTL_HD bool all_sound(Index rows) const {
    bool all = true;
    FASTMTL_ROLLED for (Index k = 0; k < rows; ++k) all = all && sound_[k] != 0;
    return all;
  }

  // Row k of the state.
  FASTMTL_HD void measure(Index k) {
    if (no_gradient(k)) a_.task_counters[T_ + k] += 1;
    if (!present(k)) return;
    const double batch = static_cast<double>(a_.batch);
    FASTMTL_ROLLED for (Index j = 0; j < T_; ++j) {
      if (!present(j)) continue;
      const double M = unscaled(a_.M, k, j), Q = noise_measured() ? unscaled(a_.Q, k, j) : kUnknown;
      const double C = noise_measured() ? batch / (batch - 1) * (Q - M) : kUnknown;
      const double parts[] = {M - C / batch, C, M};
      for (Index part = 0; part < 3; ++part) {
        double& average = a_.averages[(part * T_ + k) * T_ + j];
        average = a_.decay * average + (1 - a_.decay) * parts[part];
      }
      a_.shares[k * T_ + j] = a_.decay * a_.shares[k * T_ + j] + (1 - a_.decay);
      a_.moments[k * T_ + j] = static_cast<float>(M);
      a_.moments[(T_ + k) * T_ + j] = static_cast<float>(Q);
    }
    if (unscaled(a_.M, k, k) == 0) a_.task_counters[k] += 1;
  }

  // S, C or M (parts 0, 1, 2) without the bias of its start.
  FASTMTL_HD double average(Index part, Index k, Index j) const {
    return a_.averages[(part * T_ + k) * T_ + j] / a_.shares[k * T_ + j];
  }
  FASTMTL_HD bool without_noise() const { return a_.objective == GnrObjective::intertask || !noise_measured(); }
  FASTMTL_HD double signal(Index k, Index j) const { return average(without_noise() ? 2 : 0, k, j); }
  FASTMTL_HD double noise(Index k, Index j) const {
    if (without_noise() || rounding_[k] != 0 || rounding_[j] != 0) return 0;
    return average(1, k, j) / static_cast<double>(a_.batch) * noise_left_;
  }
  FASTMTL_HD bool active(Index k) const { return present(k) && second_[k] > 0; }

  FASTMTL_HD void update_weights() {
    FASTMTL_ROLLED for (Index k = team_.rank(); k < T_; k += team_.size()) {
      if (!present(k)) continue;
      const double S = signal(k, k), C = average(1, k, k);
      rounding_[k] = C <= kRounding * (S + C);  // S + C is Q
      second_[k] = numerators_[k] = S + noise(k, k);
    }
    team_.sync();
    if (team_.rank() == 0) {
      Index next = 0;
      FASTMTL_ROLLED for (Index k = 0; k < T_; ++k) {
        if (active(k)) order_[next++] = static_cast<double>(k);
      }
    }
    Index tasks = 0;
    double budget = static_cast<double>(T_);
    FASTMTL_ROLLED for (Index k = 0; k < T_; ++k) {
      if (active(k)) {
        ++tasks;
      } else {
        budget -= static_cast<double>(a_.weights[k]);  // the tasks left out keep their weight
      }
    }
    team_.sync();
    if (tasks == 0) return;

    MaxMin<Team> solver(team_, tasks, solver_memory_);
    if (!without_noise()) {
      noise_left_ = noise_left(solver, tasks);
      FASTMTL_ROLLED for (Index row = team_.rank(); row < tasks; row += team_.size()) {
        const Index k = task(row);
        const double S = signal(k, k), alone = noise(k, k);
        numerators_[k] = fmax(a_.objective == GnrObjective::maxmin ? S : alone, a_.floor * (S + alone));
      }
      team_.sync();
    }
    FASTMTL_ROLLED for (Index row = team_.rank(); row < tasks; row += team_.size()) sound_[row] =
        fill(solver, row, tasks);
    team_.sync();
    const double* v = solver.solve();
    FASTMTL_ROLLED for (Index row = team_.rank(); row < tasks; row += team_.size()) {
      const Index k = task(row);
      const double goal = log(v[row] / sqrt(numerators_[k]));
      blended_[row] = exp((1 - a_.step) * log(static_cast<double>(a_.weights[k])) + a_.step * goal);
      sound_[row] = sound_[row] != 0 && isfinite_(goal);
    }
    team_.sync();
    if (!all_sound(tasks)) return;
    double sum = 0;
    FASTMTL_ROLLED for (Index row = 0; row < tasks; ++row) sum += blended_[row];
    FASTMTL_ROLLED for (Index row = team_.rank(); row < tasks; row += team_.size()) {
      const float weight = static_cast<float>(blended_[row] * (budget / sum));
      a_.weights[task(row)] = weight < kTiniest ? kTiniest : weight;
    }
  }

  // The share of a micro-batch's noise that is left in an update: 1 / accumulation, or more where S, whose own error
  // can be larger than that, would make the expected square of an update, S + share * noise, negative.
  FASTMTL_HD double noise_left(MaxMin<Team>& solver, Index tasks) {
    if (a_.accumulation == 1) return 1;
    FASTMTL_ROLLED for (Index row = team_.rank(); row < tasks; row += team_.size()) fill(solver, row, tasks);
    team_.sync();
    FASTMTL_ROLLED for (int step = 0; step < kShares - 1; ++step) {
      const double share = power(static_cast<double>(a_.accumulation), static_cast<double>(step) / (kShares - 1) - 1);
      if (solver.semidefinite(share)) return share;
    }
    return 1;
  }

  FASTMTL_HD Index task(Index row) const { return static_cast<Index>(order_[row]); }

  // Row of the solver's matrices: S and C / B in units of sqrt(num_k num_j). Whether all is finite.
  FASTMTL_HD bool fill(MaxMin<Team>& solver, Index row, Index tasks) const {
    const Index k = task(row);
    bool sound = true;
    FASTMTL_ROLLED for (Index column = 0; column < tasks; ++column) {
      const Index j = task(column);
      const double scaling = 1 / sqrt(numerators_[k]) * (1 / sqrt(numerators_[j]));
      const double R = signal(k, j) * scaling, E = noise(k, j) * scaling;
      solver.R()[row * tasks + column] = R;
      solver.E()[row * tasks + column] = E;
      sound = sound && isfinite_(R) && isfinite_(E);
    }
    return sound;
  }
};

}  // namespace fastmtl
