#!/bin/sh
# Makes .venv with the project in editable form and its development tools.
#
#   tools/make_venv.sh          from the repository's root; `make venv` calls it when pyproject.toml changed
#   PYTHON=/path/to/python3     picks the interpreter; otherwise the first suitable one of the list below
#
# pip's own configuration (indexes, certificates, caches) is respected: nothing is overridden here.
set -eu

venv=.venv
stamp=$venv/.installed
log=$venv/install.log
tries=3

say() { printf 'venv: %s\n' "$*"; }
die() { printf 'venv: %s\n' "$*" >&2; exit 1; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
# Debian ships `venv` without ensurepip, and then `python3 -m venv` fails half-way.
can_make_venv() { "$1" -c 'import venv, ensurepip' 2>/dev/null; }

candidates() {
    if [ -n "${PYTHON:-}" ]; then echo "$PYTHON"; return; fi
    # The system's interpreter comes after the one that PATH names, so that a pyenv or container choice wins.
    printf '%s\n' python3 python3.11 python3.12 python3.13 python3.14 /usr/bin/python3
}

find_python() {
    for name in $(candidates); do
        path=$(command -v "$name" 2>/dev/null) || continue
        new_enough "$path" && "$1" "$path" && { echo "$path"; return 0; }
    done
    return 1
}

any() { :; }

install_venv_package() {
    package=$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing $package"
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$package" >/dev/null 2>&1 ||
            { apt-get update -qq >/dev/null &&
                DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$package" >/dev/null; } ||
            die "cannot install $package: install it by hand, then run this again"
    else
        die "cannot make a virtual environment with $1: its ensurepip is missing; install $package (Debian) as root"
    fi
}

[ -f pyproject.toml ] || die "cannot find pyproject.toml: run this from the repository's root"

# Two `make test` at the same time must not install into one folder at once.
if command -v flock >/dev/null; then
    exec 9>.venv.lock
    flock 9
fi
if [ -e "$stamp" ] && [ "$stamp" -nt pyproject.toml ] && [ "$stamp" -nt "$0" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    exit 0
fi

if ! python=$(find_python can_make_venv); then
    python=$(find_python any) || die "cannot find Python 3.11 or newer (tried: $(candidates | tr '\n' ' ')): install it, or set PYTHON=/path/to/python3"
    install_venv_package "$python"
    can_make_venv "$python" || die "cannot make a virtual environment with $python: its ensurepip is still missing"
fi

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    say "making $venv with $python ($("$python" -V 2>&1))"
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi

say "installing the project and its development tools into $venv"
try=1
until "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[dev]' >"$log" 2>&1; do
    if [ "$try" -ge "$tries" ]; then
        cat "$log" >&2
        die "cannot install the dependencies after $tries tries: see above (pip's own configuration was used)"
    fi
    say "try $try of $tries failed: $(tail -n 1 "$log"); once more in $((try * 2)) s"
    sleep $((try * 2))
    try=$((try + 1))
done
touch "$stamp"
say "ready"
