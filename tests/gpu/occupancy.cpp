// Blocks that a multiprocessor holds at once, as CUDA's own calculator has it. For ctypes.
#include <cuda_occupancy.h>

// Bytes of shared memory: of a multiprocessor; those of it that a block may have; those that CUDA keeps of each block.
extern "C" int fastmtl_resident(int major, int minor, int processors, int threads_of_processor,
                                int registers_of_processor, int shared_of_processor, int shared_of_block, int reserved,
                                int threads, int registers, int shared) {
  cudaOccDeviceProp device;
  device.computeMajor = major;
  device.computeMinor = minor;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = threads_of_processor;
  device.regsPerBlock = device.regsPerMultiprocessor = registers_of_processor;
  device.warpSize = 32;
  device.sharedMemPerBlock = 48 << 10;
  device.sharedMemPerMultiprocessor = shared_of_processor;
  device.numSms = processors;
  device.sharedMemPerBlockOptin = shared_of_block;
  device.reservedSharedMemPerBlock = reserved;
  cudaOccFuncAttributes kernel;
  kernel.maxThreadsPerBlock = threads;
  kernel.numRegs = registers;
  kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  kernel.maxDynamicSharedSizeBytes = shared_of_block;
  const cudaOccDeviceState state;
  cudaOccResult result;
  const cudaOccError error =
      cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared);
  return error == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -static_cast<int>(error);
}
