// What a field operator's file on the CPU needs: the functions, and their registration.
#pragma once

#include "tensors.h"

#include "../common/field_operators.h"

#define PFGM_FIELD_OPERATOR(name) \
  PFGM_LIBRARY_IMPL(m) { m.impl(#name, TORCH_BOX(&pfgm::name)); }
