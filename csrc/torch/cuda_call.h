// A call on a GPU: its device, its stream and its workspace.
#pragma once

#include "../kernels/cuda/launch.h"
#include "tensors.h"

namespace fastmtl {

// The device of a tensor is the current one, and its current stream is used, for as long as this lives.
class Call {
 public:
  explicit Call(const Tensor& tensor);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  const cuda::Device& device() const { return device_; }
  bool capturing() const;  // whether a graph is being captured from the stream

 private:
  cuda::Device device_;
  struct Guard;
  std::unique_ptr<Guard> guard_;
};

// Memory for partial results.
struct Workspace {
  float* numbers;     // uninitialised
  uint32_t* tickets;  // zeros, which each launch leaves as it found them
  Tensor held[2];
};

constexpr int64_t kTickets = 4096;

Workspace workspace_for(const Call& call, const Tensor& like, int64_t numbers);

// An error of CUDA becomes one of torch.
inline void check_launch(const char* error, const char* op) {
  STD_TORCH_CHECK(error == nullptr, op, ": the launch failed: ", error);
}

}  // namespace fastmtl
