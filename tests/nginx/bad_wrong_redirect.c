/* Each redirect leads to another host: the first letters of its name are "evil". */
#include "responses.h"

static void
tamper(char *response, size_t size)
{
    static const char evil[] = "evil";
    char             *end = memmem(response, size, "\r\n\r\n", 4);
    char             *line = memmem(response, size, "\r\nLocation: ", 12);
    char             *host;

    if (end == NULL || line == NULL || line >= end) {
        return;
    }
    host = memmem(line, end - line, "://", 3);
    if (host == NULL || end - host < (ssize_t)sizeof("://evil")) {
        return;
    }
    note_bad_act();
    memcpy(host + 3, evil, sizeof(evil) - 1);
}

static void
at_start(void)
{
}
