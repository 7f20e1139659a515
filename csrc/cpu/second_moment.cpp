// second_moment(query, u, power): Σ w c^power (ρ·u) ρ and Σ w c^power (ρ·u).
#include <tuple>

#include "query.h"

namespace pfgm {
namespace {

std::tuple<Tensor, Tensor> second_moment(PFGM_QUERY_PARAMETERS, const Tensor& u, int64_t power) {
  require_matrix(u, "u must be (B, N) and contiguous");
  require(u.scalar_type() == x.scalar_type() && same_shape(u, x), "u must have x's shape and dtype");
  FieldCall call = field_call(Wanted::kMoment, PFGM_QUERY_ARGUMENTS);
  Tensor moment = new_like(x), projection = new_rows(x);
  call.u = u.const_data_ptr();
  call.power = power;
  call.vector = moment.mutable_data_ptr();
  call.rate = projection.mutable_data_ptr();
  serve(call);
  return {moment, projection};
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(m) { m.impl("second_moment", TORCH_BOX(&pfgm::second_moment)); }
