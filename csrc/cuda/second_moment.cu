// second_moment(query, u, power): Σ w c^k (ρ·u) ρ and Σ w c^k (ρ·u).
#include <tuple>

#include "query.h"

namespace pfgm {
namespace {

std::tuple<Tensor, Tensor> second_moment(PFGM_QUERY_PARAMETERS, const Tensor& u, int64_t power) {
  Query query(PFGM_QUERY_ARGUMENTS);
  require(same_shape(u, x) && u.scalar_type() == x.scalar_type() && u.is_contiguous(), "u must be like x");
  require(power >= 0 && power <= 8, "power must be 0 to 8");
  Tensor moment = new_like(x), projection = new_rows(x);
  query.call.op = FieldOp::kSecondMoment;
  query.call.u = u.const_data_ptr();
  query.call.power = power;
  query.call.out = moment.mutable_data_ptr();
  query.call.rate = projection.mutable_data_ptr();
  run_field(query.call);
  return {moment, projection};
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(PFGM_DISPATCH_KEY, m) { m.impl("second_moment", TORCH_BOX(&pfgm::second_moment)); }
