/*
 * Each HTTP/1 response begins LATE_MS late, over TLS too. The worker sleeps so long and does nothing
 * else, as one does whose disk or resolver blocks it.
 */
#include "responses.h"

static void
tamper(char *response, size_t size)
{
    (void)response;
    (void)size;
    note_bad_act();
    wait_ms(LATE_MS);
}

int SSL_write(void *ssl, const void *data, int size);

int
SSL_write(void *ssl, const void *data, int size)
{
    if (in_worker() && is_due() && begins_response(data, size)) {
        note_bad_act();
        wait_ms(LATE_MS);
    }
    return REAL(SSL_write)(ssl, data, size);
}

static void
at_start(void)
{
}
