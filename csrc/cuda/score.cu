// score(query): g = Σ w c ρ, x − m, s = Σ w c, t = Σ w c ‖ρ‖², and the relative log-sum-exp.
#include <tuple>

#include "query.h"

namespace pfgm {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> score(PFGM_QUERY_PARAMETERS) {
  Query query(PFGM_QUERY_ARGUMENTS);
  Tensor gradient = new_like(x), field = new_like(x), rate = new_rows(x), trace = new_rows(x), lse = new_lse(x);
  query.call.op = FieldOp::kScore;
  query.call.out = field.mutable_data_ptr();
  query.call.gradient = gradient.mutable_data_ptr();
  query.call.rate = rate.mutable_data_ptr();
  query.call.trace = trace.mutable_data_ptr();
  query.call.lse = static_cast<double*>(lse.mutable_data_ptr());
  run_field(query.call);
  return {gradient, field, rate, trace, lse};
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(PFGM_DISPATCH_KEY, m) { m.impl("score", TORCH_BOX(&pfgm::score)); }
