// The tensors of the CPU in place of a GPU's.
#include "../../csrc/torch/cuda_call.h"

namespace fastmtl {

namespace {
int processors = 3;
bool fresh = false;
}  // namespace

void check_device(const Tensor& tensor, const Label& label) {
  STD_TORCH_CHECK(tensor.is_cpu(), label.text(), ": expected a tensor on a GPU, got one on another device");
}

struct Call::Guard {};

Call::Call(const Tensor&) : device_{processors, nullptr} {}
Call::~Call() = default;
bool Call::capturing() const { return fresh; }

}  // namespace fastmtl

extern "C" {
void fastmtl_processors(int chosen) { fastmtl::processors = chosen; }
// Whether each call gets memory of its own, as while a graph is captured.
void fastmtl_fresh_workspace(int chosen) { fastmtl::fresh = chosen != 0; }
}
