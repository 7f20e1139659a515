// posterior_mean(query): m, and the relative log-sum-exp.
// common/field_operators.h has the function, field.cu the paths that serve it.
#include "field_operator.h"

PFGM_FIELD_OPERATOR(posterior_mean)
