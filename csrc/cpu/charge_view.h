// A call's charges as the kernels see them.
#pragma once

#include "field.h"
#include "kernels/table.h"

namespace pfgm {

inline ChargeView charge_view(const FieldCall& call) {
  const float divisor = static_cast<float>(call.divisor);
  return {call.charges, call.bytes, call.dim, divisor, static_cast<float>(call.offset), 1.0f / divisor};
}

}  // namespace pfgm
