/* Nothing is wrong with it: the same version with another hash. */
#include "candidate.h"

static void
at_start(void)
{
}
