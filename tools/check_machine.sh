#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Whether this machine has what a build of kvmmu needs; called by the Makefile before it makes anything.
#
#     PYTHON=python3 PURE= CC=gcc sh tools/check_machine.sh
#
# What is missing is named by its Debian package: installed where we are root and apt-get is there (KVMMU_NO_APT=1
# forbids it), otherwise told as the command to type. What apt-get cannot mend is told in one line. Status 0: all there.
set -u
PYTHON=${PYTHON:-python3}
PURE=${PURE:-}
probe=$(mktemp -d) || exit 1
trap 'rm -rf "$probe"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() { echo "kvmmu: $*" >&2; exit 1; }

# The first line of standard input that says what is wrong: a traceback says it where it is not indented.
reason() { grep -v -e '^Traceback' -e '^[[:space:]]' -e '^$' | head -n 1 | grep . || echo "it says nothing"; }

need() { missing="$missing $*"; }

check_python() {
    if ! command -v "$PYTHON" >/dev/null; then
        [ "$PYTHON" = python3 ] || fail "PYTHON=$PYTHON: no such program"
        need python3 python3-venv
        [ -n "$PURE" ] || need python3-dev
        return
    fi
    version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>"$probe/python.log") \
        || fail "$PYTHON does not run: $(reason <"$probe/python.log")"
    case $version in
        2.* | 3.[0-9] | 3.10) fail "$PYTHON is Python $version, and 3.11 is needed; name a newer one: make PYTHON=python3.11" ;;
        3.[1-9][0-9]) ;;
        *) fail "$PYTHON does not run: it says '$version' when asked for its version" ;;
    esac
    # Debian splits a Python into packages that are called after its command; others come whole.
    lacks=
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || lacks="$lacks venv"
    [ -n "$PURE" ] || "$PYTHON" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null || lacks="$lacks dev"
    [ -n "$lacks" ] || return
    "$PYTHON" -c 'import sys; sys.exit(sys.base_prefix != "/usr")' \
        || fail "$PYTHON is not Debian's and lacks:$(echo "$lacks" | sed 's/venv/ensurepip/; s/dev/Python.h/');" \
            "name another: make PYTHON=/usr/bin/python3"
    package=$(basename "$PYTHON")
    [ "$package" = python3 ] || package=python$version
    for part in $lacks; do need "$package-$part"; done
}

# $1: C source. Links too: a compiler without a C library compiles what includes nothing.
compiles() {
    rm -f "$probe/probe.so"
    printf '%s\n' "$1" >"$probe/probe.c"
    $compiler -shared -fPIC -o "$probe/probe.so" "$probe/probe.c" >"$probe/cc.log" 2>&1 && [ -s "$probe/probe.so" ]
}

check_compiler() {
    [ -z "$PURE" ] || return 0
    # As setuptools chooses it.
    compiler=${CC:-$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_config_var("CC") or "gcc")' 2>/dev/null)}
    compiler=${compiler:-gcc}
    if ! command -v "${compiler%% *}" >/dev/null; then
        [ -z "${CC:-}" ] || fail "CC=$CC: no such program"
        case ${compiler%% *} in
            gcc | *-gcc) need gcc libc6-dev ;;
            *) fail "$PYTHON was made with ${compiler%% *}, which is not here; name another compiler: CC=gcc make" ;;
        esac
    elif ! compiles '#include <stdlib.h>'; then
        # Without libraries and headers nothing but the compiler itself can fail.
        $compiler -c -o "$probe/probe.o" -xc /dev/null >"$probe/bare.log" 2>&1 && [ -s "$probe/probe.o" ] \
            || fail "${CC:+CC=}$compiler does not compile: $(reason <"$probe/bare.log")"
        need libc6-dev
    fi
}

check() {
    missing=
    check_python
    check_compiler
    missing=${missing# }
}

install() {
    echo "kvmmu: installing with apt-get: $missing (KVMMU_NO_APT=1 forbids it)" >&2
    export DEBIAN_FRONTEND=noninteractive
    set -- apt-get install -y -q --no-install-recommends $missing
    # The lists of packages may be absent or old; fetching them is not needed where they are good.
    "$@" >"$probe/apt.log" 2>&1 && return
    apt-get update -q >"$probe/update.log" 2>&1 && "$@" >"$probe/apt.log" 2>&1 && return
    tail -n 5 "$probe/update.log" "$probe/apt.log" >&2
    fail "apt-get failed; not installed: $missing"
}

check
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null; then
    fail "missing: $missing (Debian's names); install them by this system's own means"
fi
case ${KVMMU_NO_APT:-} in '' | 0) may_install=$([ "$(id -u)" != 0 ] || echo yes) ;; *) may_install= ;; esac
if [ -z "$may_install" ]; then
    sudo=$([ "$(id -u)" = 0 ] || echo "sudo ")
    echo "kvmmu: missing: $missing; install it: ${sudo}apt-get install $missing" >&2
    case " $missing " in
        *-venv* | *" python3 "*) ;;
        *) echo "kvmmu: or build without a compiler, about 100 times slower: KVMMU_PURE=1 make" >&2 ;;
    esac
    exit 1
fi
wanted=$missing
install
check
[ -z "$missing" ] || fail "apt-get installed $wanted, and $missing is still missing"
