// posterior_mean(query) on the CPU: m = Σ w y, and the relative log-sum-exp.
// common/field_operators.h has the function, field.cpp the paths that serve it.
#include "field_operator.h"

PFGM_FIELD_OPERATOR(posterior_mean)
