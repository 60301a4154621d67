// Powers by exp and log, which compilers put in place: a library's own is a function that a kernel would call.
#pragma once

#include <cmath>

#include "team.h"

namespace fastmtl {

// base^exponent of a base that is not negative; 0^0 is 1.
FASTMTL_HD inline double power(double base, double exponent) {
  if (base > 0) return exp(exponent * log(base));
  return exponent == 0 ? 1 : 0;
}

}  // namespace fastmtl
