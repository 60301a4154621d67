#if defined(__x86_64__)
#define FASTMTL_VECTOR_BYTES 32
#include "compute_impl.h"

namespace fastmtl {
const Isa& avx2_isa() {
  static const Isa isa = make_isa("avx2");
  return isa;
}
}  // namespace fastmtl
#endif
