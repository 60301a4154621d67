// The products that the moments of layers are made of: of tensors of one shape, any strides.
#pragma once

#include "../dtype.h"
#include "finish.h"
#include "launch.h"
#include "positions.h"
#include "weights.h"

namespace fastmtl::cuda {

// Tensors of one dtype on one side of a product.
struct Side {
  int count;
  Dtype dtype;
  uint64_t present;  // a bit for each that is there
};

// Left and right rows that a launch takes: their places are in its arguments.
constexpr int kMostRows = 40;

struct CrossGram {
  Positions positions;
  bool vector;  // positions come in aligned groups of 16 bytes
  Side left, right;
  Finish finish;
  float* result;  // [left, right] of a matrix
  int64_t stride;
  Place rows[kMostRows], columns[kMostRows];
};

struct SampleGram {
  Positions positions;  // of a sample
  int64_t samples;
  bool vector;
  Side grads;
  Weights weights;  // [samples]
  Finish finish;
  float* result;  // [tasks, tasks]
  Place places[kMaxTasks];
};

// Numbers of the workspace that either takes at most.
int64_t products_numbers(const Device& device);

// These fill in `finish` but for its memory, and launch.
const char* cross_gram(const Device& device, CrossGram& problem);
const char* sample_gram(const Device& device, SampleGram& problem);

}  // namespace fastmtl::cuda
