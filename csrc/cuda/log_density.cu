// log_density(query): the relative log-sum-exp.
#include <tuple>

#include "query.h"

namespace pfgm {
namespace {

Tensor log_density(PFGM_QUERY_PARAMETERS) {
  Query query(PFGM_QUERY_ARGUMENTS);
  Tensor lse = new_lse(x);
  query.call.op = FieldOp::kLogDensity;
  query.call.lse = static_cast<double*>(lse.mutable_data_ptr());
  run_field(query.call);
  return lse;
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(PFGM_DISPATCH_KEY, m) { m.impl("log_density", TORCH_BOX(&pfgm::log_density)); }
