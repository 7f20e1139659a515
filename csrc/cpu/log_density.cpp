// log_density(query) on the CPU: the relative log-sum-exp.
// common/field_operators.h has the function, field.cpp the paths that serve it.
#include "field_operator.h"

PFGM_FIELD_OPERATOR(log_density)
