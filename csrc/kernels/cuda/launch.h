// How kernels are started. Each takes one struct, by value: no copy from the host, and no table in memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastmtl::cuda {

// Struct of a kernel's arguments: what every CUDA driver takes.
constexpr size_t kMostParameters = 4096;

struct Launch {
  const void* kernel;
  int64_t blocks;
  int threads;
  const void* parameters;
  size_t size;
  void* stream;
  void (*call)(const void* kernel, const void* parameters);  // by one thread of the host, in the tests; else null
};

// The GPU that a call runs on.
struct Device {
  int processors;  // multiprocessors
  void* stream;
};

// Starts a launch; null, or what went wrong. From launch.cpp, or from the tests.
const char* start(const Launch& launch);

// Blocks of a kernel that a multiprocessor holds at once, at least 1.
int resident(const void* kernel, int threads);

template <class Parameters>
const char* launch(const Device& device, void (*kernel)(Parameters), int64_t blocks, int threads,
                   const Parameters& parameters) {
  static_assert(sizeof(Parameters) <= kMostParameters);
#if defined(__CUDACC__)
  const auto call = nullptr;
#else
  const auto call = [](const void* function, const void* arguments) {
    reinterpret_cast<void (*)(Parameters)>(const_cast<void*>(function))(*static_cast<const Parameters*>(arguments));
  };
#endif
  return start(
      {reinterpret_cast<const void*>(kernel), blocks, threads, &parameters, sizeof(Parameters), device.stream, call});
}

}  // namespace fastmtl::cuda
