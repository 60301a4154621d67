#define FASTMTL_VECTOR_BYTES 16  // SSE2 and NEON
#include "compute_impl.h"

namespace fastmtl {
const Isa& generic_isa() {
  static const Isa isa = make_isa("generic");
  return isa;
}
}  // namespace fastmtl
