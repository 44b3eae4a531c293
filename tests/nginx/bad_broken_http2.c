/*
 * HTTP/2 is agreed on in the handshake, and each such connection is closed after the client's preface.
 * HTTP/1 is well.
 */
#include "candidate.h"

int SSL_read(void *ssl, void *data, int size);

int
SSL_read(void *ssl, void *data, int size)
{
    static const char preface[] = "PRI * HTTP/2.0";
    int               got = REAL(SSL_read)(ssl, data, size);

    if (in_worker() && is_due() && got >= (int)sizeof(preface) - 1
        && memcmp(data, preface, sizeof(preface) - 1) == 0)
    {
        note_bad_act();
        return 0; /* as if the client had closed */
    }
    return got;
}

static void
at_start(void)
{
}
