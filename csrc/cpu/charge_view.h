// A call's charges as the kernels see them.
#pragma once

#include "field.h"
#include "kernels/table.h"

namespace pfgm {

/// A view, and the table of byte values that it points to.
class Charges {
 public:
  explicit Charges(const FieldCall& call)
      : divisor_(static_cast<float>(call.divisor)), offset_(static_cast<float>(call.offset)) {
    for (int byte = 0; call.bytes && byte < 256; ++byte)
      values_[byte] = static_cast<float>(byte) / divisor_ + offset_;
    view_ = {call.charges, call.bytes, call.dim, divisor_, offset_, 1.0f / divisor_, values_};
  }
  Charges(const Charges&) = delete;
  Charges& operator=(const Charges&) = delete;
  const ChargeView& view() const { return view_; }

 private:
  float divisor_, offset_, values_[256];
  ChargeView view_;
};

}  // namespace pfgm
