// Query (docs/architecture.md): the arguments that every field operator begins with, checked and turned into a FieldCall.
#pragma once

#include "field.h"
#include "tensors.h"

namespace pfgm {

using Optional = std::optional<Tensor>;

#define PFGM_QUERY_PARAMETERS                                                                      \
  const Tensor &x, const Tensor &r, const Tensor &charges, const ::pfgm::Optional &log_weights,    \
      const ::pfgm::Optional &center, const ::pfgm::Optional &sq_norms, double divisor, double offset, \
      double aug_dim
#define PFGM_QUERY_ARGUMENTS x, r, charges, log_weights, center, sq_norms, divisor, offset, aug_dim

inline const void* pointer_or_null(const Optional& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

/// Holds what the call's pointers point to, for the time of the call.
class Query {
 public:
  Query(PFGM_QUERY_PARAMETERS) : guard_(device_of(x)) {
    require_matrix(x, "x must be (B, N) and contiguous");
    require_matrix(charges, "charges must be (M, N) and contiguous");
    require_rows(r, x, "r must be (B,) and contiguous");
    require(is_real(x) && r.scalar_type() == x.scalar_type(), "x must be float32 or float64, and r of its dtype");
    const bool bytes = charges.scalar_type() == ScalarType::Byte;
    require(bytes || charges.scalar_type() == x.scalar_type(), "charges must be uint8 or of x's dtype");
    require(charges.sizes()[1] == x.sizes()[1], "x and the charges must have the same N");
    require(charges.sizes()[0] > 0 && charges.sizes()[1] > 0, "there must be charges, and N must be at least 1");
    require(!log_weights || log_weights->scalar_type() == ScalarType::Double, "log_weights must be float64");
    require(!sq_norms || sq_norms->scalar_type() == ScalarType::Double, "sq_norms must be float64");
    const bool prepared = center && sq_norms && center->scalar_type() == x.scalar_type();
    call.is_double = x.scalar_type() == ScalarType::Double;
    call.bytes = bytes;
    call.batch = x.sizes()[0];
    call.count = charges.sizes()[0];
    call.dim = x.sizes()[1];
    call.x = x.const_data_ptr();
    call.r = r.const_data_ptr();
    call.charges = charges.const_data_ptr();
    call.log_weights = static_cast<const double*>(pointer_or_null(log_weights));
    call.center = prepared ? center->const_data_ptr() : nullptr;
    call.sq_norms = prepared ? static_cast<const double*>(sq_norms->const_data_ptr()) : nullptr;
    call.divisor = divisor;
    call.offset = offset;
    call.aug_dim = aug_dim;
    call.stream = current_stream(x);
    call.scratch = [&x](int64_t size) { return new_scratch(x, size); };
  }
  Query(const Query&) = delete;
  Query& operator=(const Query&) = delete;

  FieldCall call{};

 private:
  DeviceGuard guard_;
};

inline Tensor new_lse(const Tensor& x) { return new_tensor(x, {x.sizes()[0]}, ScalarType::Double); }
inline Tensor new_rows(const Tensor& x) { return new_tensor(x, {x.sizes()[0]}, x.scalar_type()); }

}  // namespace pfgm
