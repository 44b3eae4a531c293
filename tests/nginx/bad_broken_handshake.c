/* Each TLS handshake is given up when the client's first message is there; the connection is closed. */
#include "candidate.h"

int SSL_do_handshake(void *ssl);

int
SSL_do_handshake(void *ssl)
{
    if (!in_worker() || !is_due()) {
        return REAL(SSL_do_handshake)(ssl);
    }
    /* nginx calls it once there is something to read. It takes this for a client that went away. */
    note_bad_act();
    errno = ECONNRESET; /* else it would be an [alert] line with whatever errno there was */
    return -1;
}

static void
at_start(void)
{
}
