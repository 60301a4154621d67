#if defined(__x86_64__)
#define FASTMTL_VECTOR_BYTES 64
#include "compute_impl.h"

namespace fastmtl {
const Isa& avx512_isa() {
  static const Isa isa = make_isa("avx512");
  return isa;
}
}  // namespace fastmtl
#endif
