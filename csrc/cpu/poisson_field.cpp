// poisson_field(query) on the CPU: x − m as a sum of differences, and the relative log-sum-exp.
// common/field_operators.h has the function, field.cpp the paths that serve it.
#include "field_operator.h"

PFGM_FIELD_OPERATOR(poisson_field)
