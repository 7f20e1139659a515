// posterior_mean(query): m = Σ w y, and the relative log-sum-exp.
#include <tuple>

#include "query.h"

namespace pfgm {
namespace {

std::tuple<Tensor, Tensor> posterior_mean(PFGM_QUERY_PARAMETERS) {
  Query query(PFGM_QUERY_ARGUMENTS);
  Tensor mean = new_like(x), lse = new_lse(x);
  query.call.op = FieldOp::kPosteriorMean;
  query.call.out = mean.mutable_data_ptr();
  query.call.lse = static_cast<double*>(lse.mutable_data_ptr());
  run_field(query.call);
  return {mean, lse};
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(PFGM_DISPATCH_KEY, m) { m.impl("posterior_mean", TORCH_BOX(&pfgm::posterior_mean)); }
