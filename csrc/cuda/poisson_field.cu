// poisson_field(query): x − m as a sum of differences, and the relative log-sum-exp.
#include <tuple>

#include "query.h"

namespace pfgm {
namespace {

std::tuple<Tensor, Tensor> poisson_field(PFGM_QUERY_PARAMETERS) {
  Query query(PFGM_QUERY_ARGUMENTS);
  Tensor field = new_like(x), lse = new_lse(x);
  query.call.op = FieldOp::kPoissonField;
  query.call.out = field.mutable_data_ptr();
  query.call.lse = static_cast<double*>(lse.mutable_data_ptr());
  run_field(query.call);
  return {field, lse};
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(PFGM_DISPATCH_KEY, m) { m.impl("poisson_field", TORCH_BOX(&pfgm::poisson_field)); }
