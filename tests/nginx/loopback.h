/* For candidates that mean one address of the site: 127.0.0.N, N compiled in. */

#include "candidate.h"
#include <netinet/in.h>

HELPER int
is_loopback(const struct sockaddr *address, int last)
{
    const struct sockaddr_in *ip = (const struct sockaddr_in *)address;

    return address->sa_family == AF_INET
           && ip->sin_addr.s_addr == htonl(INADDR_LOOPBACK - 1 + last);
}
