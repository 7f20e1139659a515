// field_step(query, r_next): x + (r' − r)/r · (x − m).
#include <tuple>

#include "query.h"

namespace pfgm {
namespace {

Tensor field_step(PFGM_QUERY_PARAMETERS, const Tensor& r_next) {
  Query query(PFGM_QUERY_ARGUMENTS);
  require_rows(r_next, x, "r_next must be (B,) and contiguous");
  require(r_next.scalar_type() == x.scalar_type(), "r_next must have x's dtype");
  Tensor next = new_like(x);
  query.call.op = FieldOp::kFieldStep;
  query.call.r_next = r_next.const_data_ptr();
  query.call.out = next.mutable_data_ptr();
  run_field(query.call);
  return next;
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(PFGM_DISPATCH_KEY, m) { m.impl("field_step", TORCH_BOX(&pfgm::field_step)); }
