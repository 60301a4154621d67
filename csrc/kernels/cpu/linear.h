// Inner products of the weight gradients W_k = sum_b grad_kb (x) input_b of small linear layers with one position a
// sample. Neither way has weight gradients in memory: what is formed of them stays in the cache.
#pragma once

#include <cstdint>
#include <vector>

#include "isa.h"
#include "work.h"

namespace fastmtl {

constexpr int64_t kCacheBytes = 1 << 20;  // of a core's L2, or nearly: what a thread works on is to fit
constexpr int64_t kSummed = 128;          // products that a tile adds up before they join the sum of those before

// Matrix of one row a sample: element [b, i] lies at data[b * pitch + i * step].
template <class S>
struct Samples {
  const S* data = nullptr;  // null: the gradient is missing
  int64_t pitch = 0, step = 0;
};

template <class S>
struct LinearLayer {
  int64_t batch, width, outputs;
  bool bias;  // a constant input 1 besides those `width`
  Samples<S> inputs;
  std::vector<Samples<S>> grads;
};

// result[i * tasks + j] = <W_i, W_j>. False, and nothing done, where the layer is too large or too small for it.
//
// From the rows of W, formed a few at a time: T B in out multiply-adds.
template <class S>
bool linear_by_forming(const Isa& isa, const Executor& parallel, const LinearLayer<S>& layer, double* result);
// From inner products of all pairs of samples, each but once: (in + T out) B (B + 1) / 2, and a little more.
template <class S>
bool linear_by_pairs(const Isa& isa, const Executor& parallel, const LinearLayer<S>& layer, double* result);

}  // namespace fastmtl
