// log_density(query): the relative log-sum-exp.
#include <tuple>

#include "query.h"

namespace pfgm {
namespace {

Tensor log_density(PFGM_QUERY_PARAMETERS) {
  FieldCall call = field_call(Wanted::kLogDensity, PFGM_QUERY_ARGUMENTS);
  Tensor lse = new_lse(x);
  call.lse = static_cast<double*>(lse.mutable_data_ptr());
  serve(call);
  return lse;
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(m) { m.impl("log_density", TORCH_BOX(&pfgm::log_density)); }
