// The six field operators: arguments checked, outputs allocated, served by the backend that includes this. A
// backend has one file an operator, NAME.cpp or NAME.cu, which registers the function NAME of this header.
#pragma once

#include <tuple>

#include "query.h"

namespace pfgm {

/// Fills the outputs of a call; x is on the device that is to do it. Defined by the backend.
void serve(const FieldArguments& arguments, const Tensor& x);

/// m = Σ w y (B, N), and the relative log-sum-exp (B,).
inline std::tuple<Tensor, Tensor> posterior_mean(PFGM_QUERY_PARAMETERS) {
  FieldArguments arguments = field_arguments(FieldOp::kPosteriorMean, PFGM_QUERY);
  Tensor mean = new_like(x), lse = new_lse(x);
  arguments.out = mean.mutable_data_ptr();
  arguments.lse = static_cast<double*>(lse.mutable_data_ptr());
  serve(arguments, x);
  return {mean, lse};
}

/// x − m (B, N) as a sum of differences, and the relative log-sum-exp (B,).
inline std::tuple<Tensor, Tensor> poisson_field(PFGM_QUERY_PARAMETERS) {
  FieldArguments arguments = field_arguments(FieldOp::kPoissonField, PFGM_QUERY);
  Tensor field = new_like(x), lse = new_lse(x);
  arguments.out = field.mutable_data_ptr();
  arguments.lse = static_cast<double*>(lse.mutable_data_ptr());
  serve(arguments, x);
  return {field, lse};
}

/// g = Σ w c ρ (B, N), x − m (B, N), s = Σ w c (B,), t = Σ w c ‖ρ‖² (B,), and the relative log-sum-exp (B,).
inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> score(PFGM_QUERY_PARAMETERS) {
  FieldArguments arguments = field_arguments(FieldOp::kScore, PFGM_QUERY);
  Tensor gradient = new_like(x), field = new_like(x), rate = new_rows(x), trace = new_rows(x),
         lse = new_lse(x);
  arguments.gradient = gradient.mutable_data_ptr();
  arguments.out = field.mutable_data_ptr();
  arguments.rate = rate.mutable_data_ptr();
  arguments.trace = trace.mutable_data_ptr();
  arguments.lse = static_cast<double*>(lse.mutable_data_ptr());
  serve(arguments, x);
  return {gradient, field, rate, trace, lse};
}

/// The relative log-sum-exp (B,).
inline Tensor log_density(PFGM_QUERY_PARAMETERS) {
  FieldArguments arguments = field_arguments(FieldOp::kLogDensity, PFGM_QUERY);
  Tensor lse = new_lse(x);
  arguments.lse = static_cast<double*>(lse.mutable_data_ptr());
  serve(arguments, x);
  return lse;
}

/// Σ w c^power (ρ·u) ρ (B, N) and Σ w c^power (ρ·u) (B,).
inline std::tuple<Tensor, Tensor> second_moment(PFGM_QUERY_PARAMETERS, const Tensor& u, int64_t power) {
  FieldArguments arguments = field_arguments(FieldOp::kSecondMoment, PFGM_QUERY);
  require(same_shape(u, x) && u.scalar_type() == x.scalar_type() && u.is_contiguous(), "u must be like x");
  require(power >= 0 && power <= 8, "power must be 0 to 8");
  Tensor moment = new_like(x), projection = new_rows(x);
  arguments.u = u.const_data_ptr();
  arguments.power = power;
  arguments.out = moment.mutable_data_ptr();
  arguments.rate = projection.mutable_data_ptr();
  serve(arguments, x);
  return {moment, projection};
}

/// x + (r' − r)/r · (x − m) (B, N): one Euler step in the true field.
inline Tensor field_step(PFGM_QUERY_PARAMETERS, const Tensor& r_next) {
  FieldArguments arguments = field_arguments(FieldOp::kFieldStep, PFGM_QUERY);
  require_rows(r_next, x, "r_next must be (B,) and contiguous");
  require(r_next.scalar_type() == x.scalar_type(), "r_next must have x's dtype");
  Tensor stepped = new_like(x);
  arguments.r_next = r_next.const_data_ptr();
  arguments.out = stepped.mutable_data_ptr();
  serve(arguments, x);
  return stepped;
}

}  // namespace pfgm
