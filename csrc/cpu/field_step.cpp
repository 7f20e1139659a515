// field_step(query, r_next): x + (r' − r)/r · (x − m), one Euler step in the true field.
#include <tuple>

#include "query.h"

namespace pfgm {
namespace {

Tensor field_step(PFGM_QUERY_PARAMETERS, const Tensor& r_next) {
  require_rows(r_next, x, "r_next must be (B,) and contiguous");
  require(r_next.scalar_type() == x.scalar_type(), "r_next must have x's dtype");
  FieldCall call = field_call(Wanted::kStep, PFGM_QUERY_ARGUMENTS);
  Tensor stepped = new_like(x);
  call.r_next = r_next.const_data_ptr();
  call.vector = stepped.mutable_data_ptr();
  serve(call);
  return stepped;
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(m) { m.impl("field_step", TORCH_BOX(&pfgm::field_step)); }
