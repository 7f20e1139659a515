// A query (pfgm_fast/ops/schema.py): the arguments that every field operator begins with, checked and turned
// into FieldArguments.
#pragma once

#include "field_arguments.h"
#include "tensors.h"

namespace pfgm {

#define PFGM_QUERY_PARAMETERS                                                           \
  const Tensor &x, const Tensor &r, const Tensor &charges, const Optional &log_weights, \
      const Optional &center, const Optional &sq_norms, double divisor, double offset, double aug_dim
#define PFGM_QUERY x, r, charges, log_weights, center, sq_norms, divisor, offset, aug_dim

inline FieldArguments field_arguments(FieldOp op, PFGM_QUERY_PARAMETERS) {
  require_matrix(x, "x must be (B, N) and contiguous");
  require_matrix(charges, "charges must be (M, N) and contiguous");
  require_rows(r, x, "r must be (B,) and contiguous");
  require(is_real(x) && r.scalar_type() == x.scalar_type(),
          "x must be float32 or float64, and r of its dtype");
  const bool bytes = charges.scalar_type() == ScalarType::Byte;
  require(bytes || charges.scalar_type() == x.scalar_type(), "charges must be uint8 or of x's dtype");
  require(charges.sizes()[1] == x.sizes()[1], "x and the charges must have the same N");
  require(charges.sizes()[0] > 0 && charges.sizes()[1] > 0,
          "there must be charges, and N must be at least 1");
  for (const Optional& per_charge : {log_weights, sq_norms})
    require(!per_charge || (per_charge->scalar_type() == ScalarType::Double && per_charge->is_contiguous() &&
                            per_charge->numel() == charges.sizes()[0]),
            "log_weights and sq_norms must be float64, (M,) and contiguous");
  require(!center || (center->is_contiguous() && center->numel() == x.sizes()[1]),
          "center must be (N,) and contiguous");
  FieldArguments arguments{};
  arguments.op = op;
  arguments.is_double = x.scalar_type() == ScalarType::Double;
  arguments.bytes = bytes;
  arguments.batch = x.sizes()[0];
  arguments.count = charges.sizes()[0];
  arguments.dim = x.sizes()[1];
  arguments.x = x.const_data_ptr();
  arguments.r = r.const_data_ptr();
  arguments.charges = charges.const_data_ptr();
  if (log_weights) arguments.log_weights = static_cast<const double*>(log_weights->const_data_ptr());
  if (center && sq_norms && center->scalar_type() == x.scalar_type()) {
    arguments.center = center->const_data_ptr();
    arguments.sq_norms = static_cast<const double*>(sq_norms->const_data_ptr());
  }
  arguments.divisor = divisor;
  arguments.offset = offset;
  arguments.aug_dim = aug_dim;
  return arguments;
}

}  // namespace pfgm
