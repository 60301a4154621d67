// Devices and streams. The library is built without libtorch_cuda and without a driver: what torch has of them is
// looked up when it is first needed, and the library is loaded only where torch has CUDA.
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <memory>
#include <string>

#include "cuda_call.h"

namespace fastmtl {

void check_device(const Tensor& tensor, const Label& label) {
  STD_TORCH_CHECK(tensor.is_cuda(), label.text(), ": expected a tensor on a GPU, got one on another device");
}

struct Call::Guard {
  torch::stable::accelerator::DeviceGuard guard;
};

namespace {

void* current_stream(int32_t device) {
  using Get = int32_t (*)(int32_t, void**);
  static const Get get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_NOW);
    return library == nullptr ? nullptr : reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  STD_TORCH_CHECK(get != nullptr, "fastmtl's CUDA kernels need a torch with CUDA, this one has none");
  void* stream = nullptr;
  STD_TORCH_CHECK(get(device, &stream) == 0, "torch gives no stream of device ", device);
  return stream;
}

}  // namespace

Call::Call(const Tensor& tensor)
    : guard_(new Guard{torch::stable::accelerator::DeviceGuard(tensor.get_device_index())}) {
  const int32_t device = tensor.get_device_index();
  int processors = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  STD_TORCH_CHECK(error == cudaSuccess, "device ", device, ": ", cudaGetErrorString(error));
  device_ = {processors, current_stream(device)};
}

Call::~Call() = default;

bool Call::capturing() const {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(static_cast<cudaStream_t>(device_.stream), &status);
  return error == cudaSuccess && status != cudaStreamCaptureStatusNone;
}

namespace {

// The GPUs that the kernels are compiled for, as TORCH_CUDA_ARCH_LIST has them.
std::string architectures_op() { return FASTMTL_ARCHITECTURES; }

}  // namespace
}  // namespace fastmtl

STABLE_TORCH_LIBRARY_FRAGMENT(fastmtl_cuda, library) { library.def("architectures() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(fastmtl_cuda, CompositeExplicitAutograd, library) {
  library.impl("architectures", TORCH_BOX(&fastmtl::architectures_op));
}
