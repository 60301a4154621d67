// The types of gradients.
#pragma once

#include <cstdint>

namespace fastmtl {

enum class Dtype { f32, f64, bf16, f16 };

inline int64_t size_of(Dtype dtype) { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }

}  // namespace fastmtl
