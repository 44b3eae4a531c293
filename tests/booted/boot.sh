#!/usr/bin/env bash
# Boots systemd as PID 1 of a private box; box.py starts it, stage "outer", and knows the environment:
#
#   BOX        a folder of the box's own; below it: work/ (an empty mount point), host/ (the notify socket)
#   LOWER      overlayfs' lowerdir= : the root file systems that the box sees, the uppermost first
#   CGROUP     the box's own folder in the host's cgroup2 tree
#   BINDINGS   lines "HOST BOX ro|rw"
#   PID_PIPE   descriptor that gets the number of the box's PID 1, as the host sees it, at each boot
#
# Everything is mounted in namespaces that end with the last process; nothing is written outside BOX.
set -euo pipefail

SELF=$(readlink -f "${BASH_SOURCE[0]}")
R=$BOX/work/root

# Own mount, network, uts and ipc namespaces, but the host's processes and cgroups: a process that is
# outside of the box's pid namespace must not be in the cgroups that the box's systemd manages.
outer() {
    mount -t tmpfs -o mode=0755 box "$BOX/work"
    mkdir "$BOX"/work/{upper,ovl,root}
    mount -t overlay -o "lowerdir=$LOWER,upperdir=$BOX/work/upper,workdir=$BOX/work/ovl" box "$R"
    rm -f "$R"/etc/{machine-id,hostname,fstab,resolv.conf}
    tr -d - </proc/sys/kernel/random/uuid >"$R/etc/machine-id"
    echo box >"$R/etc/hostname"
    : >"$R/etc/fstab"
    bind_all below_run_or_tmp_is_later
    # reboot(2) in a pid namespace ends its PID 1 with SIGHUP, power-off with SIGINT.
    local status=129
    while [ "$status" = 129 ]; do
        mkdir -p "$CGROUP"
        status=0
        setpriv --pdeathsig KILL unshare --mount --propagation private --pid --fork \
            --kill-child=KILL bash "$SELF" inner || status=$?
        find "$CGROUP" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    done
}

bind_all() {
    local from to how
    while read -r from to how; do
        [ -n "$from" ] || continue
        case $to in
            /run/* | /tmp/*) [ "$1" = in_new_root ] || continue ;;
            *) [ "$1" != in_new_root ] || continue ;;
        esac
        if [ -d "$from" ]; then mkdir -p "$R$to"; else mkdir -p "$(dirname "$R$to")" && : >"$R$to"; fi
        mount --rbind "$from" "$R$to"
        [ "$how" = rw ] || mount -o remount,bind,ro "$R$to"
    done <<<"$BINDINGS"
}

# PID 1 of the new namespace; /proc is still the host's, and tells our number there.
inner() {
    local pid
    read -r pid _ </proc/self/stat
    echo 0 >"$CGROUP/cgroup.procs"
    HOST_PID=$pid exec unshare --cgroup bash "$SELF" root
}

# From here on the box's cgroup is the root of the tree that it sees.
root() {
    local device
    mount -t tmpfs -o mode=0755,nosuid,strictatime dev "$R/dev"
    for device in null zero full random urandom tty; do
        : >"$R/dev/$device"
        mount --bind "/dev/$device" "$R/dev/$device"
    done
    ln -s /proc/self/fd "$R/dev/fd"
    ln -s /proc/self/fd/0 "$R/dev/stdin"
    ln -s /proc/self/fd/1 "$R/dev/stdout"
    ln -s /proc/self/fd/2 "$R/dev/stderr"
    ln -s pts/ptmx "$R/dev/ptmx"
    mkdir "$R"/dev/{pts,shm}
    mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$R/dev/pts"
    mount -t tmpfs -o mode=1777,nosuid,nodev shm "$R/dev/shm"
    mount -t proc -o nosuid,nodev,noexec proc "$R/proc"
    # A boot of its own, for whoever compares; and the kernel's settings are not the box's to change.
    cat /proc/sys/kernel/random/uuid >"$BOX/work/boot_id"
    mount --bind "$BOX/work/boot_id" "$R/proc/sys/kernel/random/boot_id"
    mount --rbind "$R/proc/sys" "$R/proc/sys"
    mount -o remount,bind,ro,nosuid,nodev,noexec "$R/proc/sys"
    mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$R/sys"
    mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$R/sys/fs/cgroup"
    mount -t tmpfs -o mode=0755,nosuid,nodev run "$R/run"
    mount -t tmpfs -o mode=1777,nosuid,nodev tmp "$R/tmp"
    mkdir "$R/run/host"
    mount --bind "$BOX/host" "$R/run/host"
    bind_all in_new_root
    echo "$HOST_PID" >&"$PID_PIPE"
    cd "$R"
    pivot_root . .
    umount -l .
    cd /
    # A unit's mounts, made later, have to come from a tree that is shared (systemd leaves that to
    # whoever makes the container).
    mount --make-rshared /
    exec {PID_PIPE}>&-
    exec env -i container=other LANG=C.UTF-8 TERM=dumb NOTIFY_SOCKET=/run/host/notify \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        /usr/lib/systemd/systemd systemd.log_target=journal
}

"$1"
exit
