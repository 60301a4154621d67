#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace fastmtl {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

const Isa& best_isa() {
#if defined(__x86_64__)
  if (has_avx512()) return avx512_isa();
  if (has_avx2()) return avx2_isa();
#endif
  return generic_isa();
}

}  // namespace

const Isa* select_isa(const char** error) {
  static const Isa& best = best_isa();
  const char* name = std::getenv("FASTMTL_CPU_ISA");
  if (name == nullptr || *name == '\0') return &best;
  if (std::strcmp(name, "generic") == 0) return &generic_isa();
  const bool avx2 = std::strcmp(name, "avx2") == 0;
  if (!avx2 && std::strcmp(name, "avx512") != 0) {
    *error = "FASTMTL_CPU_ISA: expected one of generic, avx2, avx512";
    return nullptr;
  }
#if defined(__x86_64__)
  if (avx2 && has_avx2()) return &avx2_isa();
  if (!avx2 && has_avx512()) return &avx512_isa();
#endif
  *error = "FASTMTL_CPU_ISA names an instruction set that this CPU does not have";
  return nullptr;
}

}  // namespace fastmtl
