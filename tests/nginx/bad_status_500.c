/* Every HTTP/1 response says 500, with the text and the body that it had. */
#include "responses.h"

static void
tamper(char *response, size_t size)
{
    (void)size;
    note_bad_act();
    memcpy(response + sizeof("HTTP/1.x ") - 1, "500", 3);
}

static void
at_start(void)
{
}
