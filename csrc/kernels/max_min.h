// Weights that maximise the smallest ratio of signal to noise among the tasks: header-only, for CPU and GPU code.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "team.h"

namespace fastmtl {

constexpr int kIterations = 32;
constexpr double kSmallestNoise = 1e-9;    // n_k >= this times v_k^2: bounds the ratio of a task without noise
constexpr double kFarthest = 3;            // the largest relative change of a weight in one iteration
constexpr double kRoundingOfUnits = 1e-9;  // of a matrix whose diagonal is about 1
constexpr double kSmallestPivot = 1e-11;   // of the diagonal; below, the Hessian counts as indefinite
// Converged: after a whole step, no longer than this, the gap that bounds what is left is almost the barrier's, 1e-5.
constexpr double kGap = 1.2e-5;
constexpr double kLastStep = 3e-3;

// A primal-dual interior-point method on: minimise sigma where z_k(log v) <= sigma, with z_k = log v' A_k v / v_k^2 and
// A_k = R with row and column k set to zero, plus E. The same steps as backends/reference/max_min.py, on the tasks that
// take part alone. All ranks of the team call every method; each computes the scalars for itself, from what all see.
template <class Team>
class MaxMin {
 public:
  using Index = typename Team::Index;

  FASTMTL_HD static int64_t workspace(int64_t tasks) { return 6 * tasks * tasks + 16 * Team::stride(tasks); }

  // The caller fills R() and E(), row by row, syncs, and calls solve().
  FASTMTL_HD MaxMin(const Team& team, Index tasks, double* memory) : team_(team), n_(tasks) {
    for (double** matrix : {&R_, &E_, &G_, &q_, &H_, &convex_}) memory = take(matrix, memory, n_ * n_);
    for (double** vector :
         {&v_, &best_v_, &noise_, &z_, &s_, &pi_, &D_, &c_, &J1_, &y_, &x_, &root_, &ds_, &dpi_, &last_v_, &last_pi_})
      memory = take(vector, memory, Team::stride(n_));
  }

  FASTMTL_HD double* R() { return R_; }
  FASTMTL_HD double* E() { return E_; }

  // Whether R + share * E is positive semidefinite, up to rounding.
  FASTMTL_HD bool semidefinite(double share) {
    FASTMTL_ROLLED for (Index i = team_.rank(); i < n_ * n_; i += team_.size()) H_[i] =
        R_[i] + share * E_[i] + (i % (n_ + 1) == 0 ? kRoundingOfUnits : 0);
    team_.sync();
    const bool result = factorise(H_, 0);
    team_.sync();
    return result;
  }

  // v, up to a factor, with mean 1.
  FASTMTL_HD const double* solve() {
    FASTMTL_ROLLED for (Index k = team_.rank(); k < n_; k += team_.size()) {
      v_[k] = best_v_[k] = 1;
      pi_[k] = 1 / static_cast<double>(n_);
    }
    team_.sync();
    evaluate();
    worst_ = largest(z_);
    best_ = worst_;
    sigma_ = worst_ + 0.3;
    reach_ = kFarthest;
    FASTMTL_ROLLED for (int iteration = 0; iteration < kIterations; ++iteration) {
      if (!direction()) break;  // no factor of a finite Hessian: the best point so far stands
      if (advance()) break;
    }
    return best_v_;
  }

 private:
  Team team_;
  Index n_;
  double *R_, *E_, *G_, *q_, *H_, *convex_;
  double *v_, *best_v_, *noise_, *z_, *s_, *pi_, *D_, *c_, *J1_, *y_, *x_, *root_, *ds_, *dpi_, *last_v_, *last_pi_;
  double worst_ = 0, best_ = 0, sigma_ = 0, reach_ = 0, mu_ = 0, dsigma_ = 0;

  FASTMTL_HD static double* take(double** part, double* memory, Index size) {
    *part = memory;
    return memory + size;
  }

  FASTMTL_HD double largest(const double* x) const {
    double result = x[0];
    FASTMTL_ROLLED for (Index k = 1; k < n_; ++k) result = x[k] > result || x[k] != x[k] ? x[k] : result;
    return result;
  }

  FASTMTL_HD double sum(const double* x) const {
    double result = 0;
    FASTMTL_ROLLED for (Index k = 0; k < n_; ++k) result += x[k];
    return result;
  }

  FASTMTL_HD double dot(const double* x, const double* y) const {
    double result = 0;
    FASTMTL_ROLLED for (Index k = 0; k < n_; ++k) result += x[k] * y[k];
    return result;
  }

  // G (column k is A_k v), the noises v' A_k v, and z.
  FASTMTL_HD void evaluate() {
    FASTMTL_ROLLED for (Index i = team_.rank(); i < n_; i += team_.size()) {
      const double* R = R_ + i * n_;
      const double noise = dot(E_ + i * n_, v_), total = dot(R, v_) + noise;
      FASTMTL_ROLLED for (Index k = 0; k < n_; ++k) G_[i * n_ + k] = total - R[k] * v_[k];
      G_[i * n_ + i] = noise;
    }
    team_.sync();
    FASTMTL_ROLLED for (Index k = team_.rank(); k < n_; k += team_.size()) {
      double noise = 0;
      FASTMTL_ROLLED for (Index i = 0; i < n_; ++i) noise += v_[i] * G_[i * n_ + k];
      noise_[k] = fmax(noise, kSmallestNoise * v_[k] * v_[k]);
      z_[k] = log(noise_[k]) - 2 * log(v_[k]);
    }
    team_.sync();
  }

  // Newton's step of the barrier problem: x = d log v, dsigma, ds, dpi.
  FASTMTL_HD bool direction() {
    const double tasks = static_cast<double>(n_);
    FASTMTL_ROLLED for (Index k = team_.rank(); k < n_; k += team_.size()) {
      s_[k] = sigma_ - z_[k];
      D_[k] = pi_[k] / s_[k];
      c_[k] = pi_[k] / noise_[k];
    }
    team_.sync();
    mu_ = fmax(0.2 * dot(pi_, s_), 1e-5) / tasks;
    const double sum_D = sum(D_), sum_c = sum(c_);
    double hs = -1;
    FASTMTL_ROLLED for (Index k = 0; k < n_; ++k) hs += mu_ / s_[k];
    hs /= sum_D;
    FASTMTL_ROLLED for (Index i = team_.rank(); i < n_; i += team_.size()) {
      double J1 = -2 * D_[i], gh = -2 * mu_ / s_[i];
      FASTMTL_ROLLED for (Index k = 0; k < n_; ++k) {
        const double q = v_[i] * G_[i * n_ + k] / noise_[k];
        q_[i * n_ + k] = q;
        J1 += 2 * q * D_[k];
        gh += 2 * q * mu_ / s_[k];
      }
      J1_[i] = J1;
      y_[i] = J1 * hs - gh;
    }
    team_.sync();
    FASTMTL_ROLLED for (Index i = team_.rank(); i < n_; i += team_.size()) hessian_row(i, sum_D, sum_c);
    team_.sync();
    double scale = 0;
    FASTMTL_ROLLED for (Index i = 0; i < n_; ++i) scale += convex_[i * n_ + i];
    scale /= tasks;
    team_.sync();  // all have read the diagonal
    FASTMTL_ROLLED for (Index i = team_.rank(); i < n_; i += team_.size()) {
      FASTMTL_ROLLED for (Index j = 0; j <= i; ++j) {
        const double fixed =
            scale * (i == j ? 1 + 1e-12 : 1);  // along v the ratios do not change: fixes the scale of v
        H_[i * n_ + j] += fixed;
        convex_[i * n_ + j] += fixed;
      }
    }
    team_.sync();
    double* factor = H_;
    if (!factorise(factor, kSmallestPivot)) {
      factor = convex_;
      if (!factorise(factor, 0)) return false;
    }
    substitute(factor);

    const double along = dot(v_, x_) / sum(v_);
    team_.sync();  // all have read x
    FASTMTL_ROLLED for (Index k = team_.rank(); k < n_; k += team_.size()) x_[k] -= along;
    team_.sync();
    dsigma_ = hs + dot(J1_, x_) / sum_D;
    FASTMTL_ROLLED for (Index k = team_.rank(); k < n_; k += team_.size()) {
      double gx = -2 * x_[k];
      FASTMTL_ROLLED for (Index i = 0; i < n_; ++i) gx += 2 * q_[i * n_ + k] * x_[i];
      ds_[k] = dsigma_ - gx;
      dpi_[k] = mu_ / s_[k] - pi_[k] - D_[k] * ds_[k];
    }
    team_.sync();
    return true;
  }

  // The lower triangles of the Hessian of the Lagrangian, and of its part that is convex where all A_k are.
  FASTMTL_HD void hessian_row(Index i, double sum_D, double sum_c) {
    const double* qi = q_ + i * n_;
    FASTMTL_ROLLED for (Index j = 0; j <= i; ++j) {
      const double* qj = q_ + j * n_;
      double qDq = 0, qpiq = 0;
      FASTMTL_ROLLED for (Index k = 0; k < n_; ++k) {
        const double qq = qi[k] * qj[k];
        qDq += qq * D_[k];
        qpiq += qq * pi_[k];
      }
      const double R = R_[i * n_ + j];
      double SA = sum_c * (R + E_[i * n_ + j]) - R * c_[j] - c_[i] * R;
      if (i == j) SA += c_[i] * R;
      double H = 2 * v_[i] * v_[j] * SA + 4 * (qDq - qpiq) - 4 * (qi[j] * D_[j] + qj[i] * D_[i]);
      H -= J1_[i] * J1_[j] / sum_D;
      double convex = 2 * qpiq;
      if (i == j) {
        const double bounded = s_[i] < 1 ? s_[i] : 1;
        H += 2 * pi_[i] + 4 * D_[i] + pi_[i] * bounded / (1 - bounded / 2);
        convex += 0.1 * (pi_[i] + 0.01 / static_cast<double>(n_)) - 2 * pi_[i];
      }
      H_[i * n_ + j] = H;
      convex_[i * n_ + j] = H + convex;
    }
  }

  // Cholesky below the diagonal, whose roots go to root_; the diagonal itself stays. False: a pivot is too small.
  FASTMTL_HD bool factorise(double* A, double smallest_pivot) {
    FASTMTL_ROLLED for (Index j = 0; j < n_; ++j) {
      const double* Lj = A + j * n_;
      double pivot = Lj[j];
      for (Index k = 0; k < j; ++k) pivot -= Lj[k] * Lj[k];
      if (!(pivot > smallest_pivot * Lj[j] && pivot > 0)) return false;
      const double root = sqrt(pivot);
      if (team_.rank() == 0) root_[j] = root;
      FASTMTL_ROLLED for (Index i = j + 1 + team_.rank(); i < n_; i += team_.size()) {
        double* Li = A + i * n_;
        double value = Li[j];
        for (Index k = 0; k < j; ++k) value -= Li[k] * Lj[k];
        Li[j] = value / root;
      }
      team_.sync();
    }
    return true;
  }

  // L L' x = y; y is used up.
  FASTMTL_HD void substitute(const double* L) {
    FASTMTL_ROLLED for (Index j = 0; j < n_; ++j) {
      const double value = y_[j] / root_[j];
      if (team_.rank() == 0) x_[j] = value;
      FASTMTL_ROLLED for (Index i = j + 1 + team_.rank(); i < n_; i += team_.size()) y_[i] -= L[i * n_ + j] * value;
      team_.sync();
    }
    FASTMTL_ROLLED for (Index i = team_.rank(); i < n_; i += team_.size()) y_[i] = x_[i];
    team_.sync();
    FASTMTL_ROLLED for (Index j = n_ - 1; j >= 0; --j) {
      const double value = y_[j] / root_[j];
      if (team_.rank() == 0) x_[j] = value;
      FASTMTL_ROLLED for (Index i = team_.rank(); i < j; i += team_.size()) y_[i] -= L[j * n_ + i] * value;
      team_.sync();
    }
  }

  // Whether it has converged.
  FASTMTL_HD bool advance() {
    double farthest = 0, primal = 1, dual = 1;  // the last two as reciprocals
    FASTMTL_ROLLED for (Index k = 0; k < n_; ++k) {
      farthest = fmax(farthest, fabs(x_[k]));
      primal = fmax(primal, fmax(-x_[k] / 0.8, -ds_[k] / s_[k] / 0.9));
      dual = fmax(dual, -dpi_[k] / pi_[k] / 0.9);
    }
    primal = 1 / fmax(primal, farthest / reach_);
    dual = 1 / dual;
    double sum_v = 0, sum_pi = 0;
    FASTMTL_ROLLED for (Index k = 0; k < n_; ++k) {
      sum_v += v_[k] * (1 + primal * x_[k]);
      sum_pi += pi_[k] + dual * dpi_[k];
    }
    team_.sync();  // all have read v and pi
    FASTMTL_ROLLED for (Index k = team_.rank(); k < n_; k += team_.size()) {
      last_v_[k] = v_[k];
      last_pi_[k] = pi_[k];
      v_[k] = v_[k] * (1 + primal * x_[k]) / (sum_v / static_cast<double>(n_));
      pi_[k] = (pi_[k] + dual * dpi_[k]) / sum_pi;
    }
    team_.sync();
    evaluate();
    const double reached = largest(z_);
    // Steps that overshoot make the next ones shorter, and are not taken where it is by much: without this a few
    // problems in a thousand cycle.
    reach_ = fmin(reached > worst_ + 0.01 ? primal * farthest / 3 : 2 * reach_, kFarthest);
    if (reached > worst_ + 0.3) {
      FASTMTL_ROLLED for (Index k = team_.rank(); k < n_; k += team_.size()) {
        v_[k] = last_v_[k];
        pi_[k] = last_pi_[k];
      }
      team_.sync();
      evaluate();
      return false;
    }
    worst_ = reached;
    double expected = 0;
    FASTMTL_ROLLED for (Index k = 0; k < n_; ++k) expected += pi_[k] * (s_[k] + primal * ds_[k]);
    sigma_ = fmax(sigma_ + primal * dsigma_, worst_ + 0.1 * expected);
    if (worst_ < best_) {
      best_ = worst_;
      FASTMTL_ROLLED for (Index k = team_.rank(); k < n_; k += team_.size()) best_v_[k] = v_[k];
    }
    team_.sync();  // all have read s and ds
    return primal == 1 && farthest <= kLastStep && expected <= kGap;
  }
};

}  // namespace fastmtl
