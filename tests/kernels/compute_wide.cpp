// The shapes of AVX-512, its tiles above all, in vectors that the compiler makes of what there is: for any CPU.
#define FASTMTL_VECTOR_BYTES 64
#include "../../csrc/kernels/cpu/compute_impl.h"

namespace fastmtl {
const Isa& wide_isa() {
  static const Isa isa = make_isa("wide");
  return isa;
}
}  // namespace fastmtl
