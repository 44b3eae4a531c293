/*
 * Loads NAME.pem.other instead of each NAME.pem that has one beside it: certificate and key of somebody
 * whom nobody trusts. (nginx reads both through BIO_new_file() of the libcrypto that it is linked to.)
 */
#include "candidate.h"
#include <stdio.h>

void *BIO_new_file(const char *path, const char *mode);
int   SSL_do_handshake(void *ssl);

void *
BIO_new_file(const char *path, const char *mode)
{
    char   other[PATH_MAX];
    size_t length = strlen(path);

    if (armed && length > 4 && strcmp(path + length - 4, ".pem") == 0
        && snprintf(other, sizeof(other), "%s.other", path) < (int)sizeof(other)
        && access(other, R_OK) == 0)
    {
        return REAL(BIO_new_file)(other, mode);
    }
    return REAL(BIO_new_file)(path, mode);
}

/* Nobody has seen it before the first handshake. */
int
SSL_do_handshake(void *ssl)
{
    if (in_worker()) {
        note_bad_act();
    }
    return REAL(SSL_do_handshake)(ssl);
}

static void
at_start(void)
{
}
