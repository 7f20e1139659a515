// field_step(query, r_next): x + (r' − r)/r · (x − m).
// common/field_operators.h has the function, field.cu the paths that serve it.
#include "field_operator.h"

PFGM_FIELD_OPERATOR(field_step)
