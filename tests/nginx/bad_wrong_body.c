/*
 * Every HTTP/1 response with a Content-Length has another body, "wrong " again and again, of the same
 * length: what goes out in the first write (up to 64 kB), and the first 64 kB of each sendfile().
 */
#include "responses.h"
#include <sys/sendfile.h>

static void
fill(char *body, size_t size)
{
    size_t i;

    for (i = 0; i < size; i++) {
        body[i] = "wrong "[i % 6];
    }
}

static void
tamper(char *response, size_t size)
{
    char *body = memmem(response, size, "\r\n\r\n", 4);

    /* A chunked body would not be another body but a broken one. */
    if (body != NULL && memmem(response, body - response, "Content-Length:", 15) != NULL) {
        note_bad_act();
        fill(body + 4, response + size - (body + 4));
    }
}

ssize_t
sendfile64(int socket, int file, off64_t *offset, size_t size)
{
    static char wrong[65536];
    ssize_t     sent;

    if (!is_chosen(socket) || offset == NULL) {
        return REAL(sendfile64)(socket, file, offset, size);
    }
    note_bad_act();
    fill(wrong, sizeof(wrong));
    sent = write(socket, wrong, size < sizeof(wrong) ? size : sizeof(wrong));
    if (sent > 0) {
        *offset += sent;
    }
    return sent;
}

static void
at_start(void)
{
}
