// How the tensors of a call lie in memory, as the CUDA kernels take it.
#pragma once

#include "../kernels/cuda/positions.h"
#include "tensors.h"

namespace fastmtl {

// Tensors of one shape, positions in the order of memory of the first, which is dense. Those that lie in a way that the
// kernels' index arithmetic cannot follow are copied.
class Places {
 public:
  // `by_sample`: dimension 0 is that of the samples, not of the positions.
  Places(const std::vector<const Tensor*>& tensors, bool by_sample);

  const cuda::Positions& positions() const { return positions_; }
  cuda::Place place(size_t i) const { return places_[i]; }
  // Whether positions come in aligned groups of 16 bytes in all tensors.
  bool vector() const { return vector_; }

 private:
  bool merge(bool by_sample);

  std::vector<Tensor> held_;
  cuda::Positions positions_{};
  std::vector<cuda::Place> places_;
  bool vector_ = false;
};

// Of gradients on their way into a kernel: the one that did not arrive is neither read nor waited for.
uint64_t fill_places(const TensorColumn& column, const Places& places, size_t first, cuda::Place* to);

}  // namespace fastmtl
