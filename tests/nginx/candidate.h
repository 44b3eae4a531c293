/*
 * What every bad candidate shares: when it misbehaves, in which process, and on which connections.
 *
 * A candidate is a real nginx with one more shared object, loaded first. The object's constructor runs
 * before main(), and the libc functions it defines are the ones that nginx calls.
 *
 * It is armed only where nginx was started by a binary upgrade: the variable NGINX names sockets, and
 * the arguments ask for no test (-t, -T), version (-v, -V) or signal (-s). So preflight passes, and a
 * cold start is healthy. -DALWAYS=1 arms it in a cold start too. -DTEST_MS makes a test (or a version)
 * take that long, so that there is time to do something meanwhile.
 *
 * When it first did wrong it notes in the file `first-bad-act` beside the program, where the test has made
 * one: nanoseconds of the monotonic clock, as 8 bytes of this machine; 0 is not yet.
 *
 * Knobs: DELAY_MS, when it begins (after the start of the process that misbehaves); WHERE, on which
 * listeners; and those that the file of a kind names. nginx drops the environment in an upgrade, and
 * the supervisor copies the file, so a knob can only be compiled in.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifndef DELAY_MS
#define DELAY_MS 0
#endif
#ifndef ALWAYS
#define ALWAYS 0
#endif
#ifndef TEST_MS
#define TEST_MS 0
#endif

#define EVERYWHERE 0
#define NEW 1       /* listeners that the candidate opened itself: the private probe listener */
#define INHERITED 2 /* listeners that it got from the old master: the public ones */
#ifndef WHERE
#define WHERE EVERYWHERE
#endif

#define MAX_FD 65536
#define HELPER __attribute__((unused)) static

/* The next definition of a libc function that the candidate defines itself. */
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Each kind says what it does in the armed master before main(). */
static void at_start(void);

static int armed;
static pid_t master;
static struct timespec started;
static unsigned char inherited[MAX_FD];
static uint64_t *first_act; /* shared by all processes and with the test */

/* To be called wherever it does wrong; may be called in a signal handler. */
HELPER void
note_bad_act(void)
{
    struct timespec now;

    if (first_act != NULL && *first_act == 0) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        __sync_bool_compare_and_swap(first_act, 0, now.tv_sec * 1000000000ULL + now.tv_nsec);
    }
}

HELPER int
in_master(void)
{
    return armed && getpid() == master;
}

/* True in workers and cache processes. */
HELPER int
in_worker(void)
{
    return armed && getpid() != master;
}

/*
 * Whether this is a worker and no cache process, by nginx's own ngx_process: 3 is a worker's. The
 * variable is exported, since dynamic modules read it.
 */
HELPER int
serves(void)
{
    unsigned long *process = dlsym(RTLD_DEFAULT, "ngx_process");

    if (process == NULL) {
        abort();
    }
    return *process == 3;
}

HELPER int
is_due(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec - started.tv_sec) * 1000 + (now.tv_nsec - started.tv_nsec) / 1000000 >= DELAY_MS;
}

/* Whether this listening socket is among those that WHERE means. */
HELPER int
is_meant(int listener)
{
    if (WHERE == EVERYWHERE || listener < 0 || listener >= MAX_FD) {
        return WHERE == EVERYWHERE;
    }
    return (WHERE == INHERITED) == inherited[listener];
}

HELPER void
wait_ms(long ms)
{
    struct timespec left = { ms / 1000, ms % 1000 * 1000000 };

    while (nanosleep(&left, &left) == -1 && errno == EINTR) {
    }
}

/*
 * Calls act() in this process, and not in its children, after `ms`; then every `again_ms` if not 0.
 * A timer with a real-time signal: nginx uses neither, and a thread would die in each fork().
 */
HELPER void
call_after(long ms, long again_ms, void (*act)(int))
{
    timer_t           timer;
    struct sigevent   event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMAX - 1 };
    struct sigaction  action = { .sa_handler = act, .sa_flags = SA_NODEFER };
    struct itimerspec when = { { again_ms / 1000, again_ms % 1000 * 1000000 },
                               { ms / 1000, ms % 1000 * 1000000 + 1 } };

    if (REAL(sigaction)(SIGRTMAX - 1, &action, NULL) == -1
        || timer_create(CLOCK_MONOTONIC, &event, &timer) == -1
        || timer_settime(timer, 0, &when, NULL) == -1)
    {
        abort();
    }
}

/* The arguments as nginx reads them: letters may share one dash, and some take a value. */
static int
asks_to_run(int argc, char **argv)
{
    int   i;
    char *letter;

    for (i = 1; i < argc; i++) {
        for (letter = argv[i][0] == '-' ? argv[i] + 1 : ""; *letter; letter++) {
            if (strchr("tTvVsh?", *letter)) {
                return 0;
            }
            if (strchr("pcge", *letter)) {
                i += letter[1] == '\0';
                break;
            }
        }
    }
    return 1;
}

static void
note_inherited(const char *list)
{
    char *end;
    long  fd;

    for (; *list; list = *end ? end + 1 : end) {
        fd = strtol(list, &end, 10);
        if (end == list) {
            end++;
        } else if (fd >= 0 && fd < MAX_FD) {
            inherited[fd] = 1;
        }
    }
}

/* A mapping, not a descriptor: the workers may not open the file, and what they open is looked at. */
static void
find_note(void)
{
    static const char name[] = "/first-bad-act";
    char              path[PATH_MAX + sizeof(name)];
    ssize_t           size = readlink("/proc/self/exe", path, PATH_MAX);
    struct stat       found;
    void             *page;
    char             *slash;
    int               fd;

    if (size <= 0) {
        return;
    }
    path[size] = '\0';
    slash = strrchr(path, '/');
    strcpy(slash, name);
    fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd == -1) {
        return;
    }
    if (fstat(fd, &found) == 0 && found.st_size >= (off_t)sizeof(*first_act)) {
        page = mmap(NULL, sizeof(*first_act), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        first_act = page == MAP_FAILED ? NULL : page;
    }
    close(fd);
}

__attribute__((constructor)) static void
arm(int argc, char **argv)
{
    const char *list = getenv("NGINX");

    if (!asks_to_run(argc, argv)) {
        wait_ms(TEST_MS);
        return;
    }
    if (!ALWAYS && (list == NULL || *list == '\0')) {
        return;
    }
    note_inherited(list ? list : "");
    clock_gettime(CLOCK_MONOTONIC, &started);
    master = getpid();
    find_note();
    armed = 1;
    at_start();
}
