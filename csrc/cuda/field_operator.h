// What a field operator's file needs: the functions, and their registration.
#pragma once

#include "tensors.h"

#include "../common/field_operators.h"

#define PFGM_FIELD_OPERATOR(name) \
  PFGM_LIBRARY_IMPL(PFGM_DISPATCH_KEY, m) { m.impl(#name, TORCH_BOX(&pfgm::name)); }
