# What nginx.service does while nginx-supervisor owns nginx: start, stop or reload, by nginxctl.
# Called by nginx.service.d/zz-nginx-supervisor.conf; see docs/migration.md.

set -u
unit=nginx.service
owner=nginx-supervisor.service
# Says for which start of the owner, in a folder that outlives it, and not the machine.
restart_wanted=/run/nginx-supervisor/nginx.service-restarts

# What systemd is about to do with unit $1: start, stop, restart ..., nothing where it is left alone.
job_of() {
    systemctl list-jobs --plain --no-legend "$1" 2>/dev/null | while read -r _ name kind _; do
        [ "$name" != "$1" ] || echo "$kind"
    done
}

# Which start of the owner's unit this is. Where it has died, systemd restarts nginx.service along
# with it, by jobs that 252 and 257 name differently: that is no restart of nginx.
run_of_owner() {
    systemctl show --property InvocationID --value "$owner"
}

want_restart() {
    run_of_owner >"$restart_wanted"
}

# The verdict of an nginxctl command, as one line of JSON in $verdict; its exit code is returned.
# What it says is for the journal, but for a refusal: that may be as good (`because`).
ask() {
    verdict=$(nginxctl --json "$@" 2>/dev/null) && code=0 || code=$?
    verdict=$(printf '%s\n' "$verdict" | tail -n 1)
    [ "$code" = 3 ] || say "$1"
    return "$code"
}

say() {
    if [ -z "$verdict" ]; then
        nginxctl status >&2 # why it cannot be reached
        return
    fi
    printf '%s\n' "$verdict" | sed -n 's/.*"detail":"\(\([^"\\]\|\\.\)*\)".*/'"$1"': \1/p'
}

# Whether the verdict's reason is one of these.
because() {
    for reason in "$@"; do
        case $verdict in *"\"reason\":\"$reason\""*) return 0 ;; esac
    done
    return 1
}

start() {
    wanted=$(cat "$restart_wanted" 2>/dev/null)
    rm -f "$restart_wanted"
    if [ -n "$wanted" ] && [ "$wanted" = "$(run_of_owner)" ]; then
        # The next restart finds a failed unit, which systemd starts without stopping it first.
        restart || { want_restart; return 1; }
        return
    fi
    # It serves by now: the supervisor starts nginx, or adopts it, when it starts itself.
    nginxctl check --ready >/dev/null 2>&1 && return
    ask start && return
    because already_running upgrade_in_progress taking_over && return
    say start
    return 1
}

# A new binary (or a new module, or library) on disk is judged, and refuses nobody: this is what
# the package's own scripts call once they have put it there. Nothing new: stop and start.
restart() {
    # It waits for dpkg, which restarts nginx once for each of its packages.
    if [ "$(systemctl is-active nginx-supervisor-package.service)" = activating ]; then
        echo "a package manager is at work; nginx is upgraded once it has finished" >&2
        return 0
    fi
    if ask upgrade --if-changed; then
        because unchanged || return 0
        ask restart || { say restart; return 1; }
    elif because upgrade_in_progress; then
        nginxctl reload # by whoever serves after the verdict
    elif because not_running; then
        ask start || { say start; return 1; }
    else
        say upgrade
        echo "nginx serves as before; \`nginxctl restart\` stops and starts it without judging" >&2
        return 1
    fi
}

# Also called after a start that failed, and with systemd about to do nothing: nginx is left alone.
stop() {
    case $(job_of "$owner") in
        # Its own unit says what becomes of nginx; or the machine goes down.
        stop | restart) return 0 ;;
    esac
    case $(job_of "$unit") in
        restart) want_restart ;;
        stop)
            rm -f "$restart_wanted"
            ask stop || { say stop; return 1; }
            ;;
    esac
}

case ${1-} in
    start | stop) "$1" ;;
    reload) exec nginxctl reload ;;
    *)
        echo "usage: sh $0 start|stop|reload" >&2
        exit 2
        ;;
esac
