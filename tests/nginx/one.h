/* For candidates of which one worker alone misbehaves: the first that asks. */

static pid_t *the_one; /* shared by all workers */

__attribute__((constructor)) static void
share_the_one(void)
{
    the_one = mmap(NULL, sizeof(*the_one), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (the_one == MAP_FAILED) {
        abort();
    }
}

HELPER int
is_the_one(void)
{
    return __sync_bool_compare_and_swap(the_one, 0, getpid()) || *the_one == getpid();
}
