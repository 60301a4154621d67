// Where the CPU kernels run.
#include "tensors.h"

namespace fastmtl {

void check_device(const Tensor& tensor, const Label& label) {
  STD_TORCH_CHECK(tensor.is_cpu(), label.text(), ": expected a tensor on the cpu, got one on another device");
}

}  // namespace fastmtl
