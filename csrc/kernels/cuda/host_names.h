// What CUDA declares for device code alone. The bindings take structs from headers that have device functions beside
// them: g++ parses these there, and nothing calls them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <device_launch_parameters.h>

#include <cstdint>

void __syncthreads();
void __syncwarp(unsigned mask = 0xffffffffu);
void __threadfence();
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32);
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32);
template <class T>
T atomicAdd(T* p, T x);
template <class T>
T __ldcg(const T* p);
float __uint_as_float(uint32_t bits);
uint32_t __float_as_uint(float x);
float __fmaf_rn(float a, float b, float c);
