// From tensors to a FieldCall: the device and stream of x, and memory from PyTorch's allocator.
#include "field.h"
#include "field_operator.h"

namespace pfgm {

void serve(const FieldArguments& arguments, const Tensor& x) {
  const DeviceGuard guard(device_of(x));
  run_field({arguments, current_stream(x), [&x](int64_t bytes) { return new_scratch(x, bytes); }});
}

}  // namespace pfgm
