#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Add Debian's backports to this machine's package sources: its own Debian entry, copied with that suite.
# QEMU >= 10 comes from there on Debian 12. Mirrors, keys and options stay those the machine already uses.
#
# usage: add_backports.sh [ETC_APT]     (default /etc/apt; a test gives another)
set -euo pipefail

apt=${1:-/etc/apt}
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
[ -n "$codename" ] || { echo "add_backports.sh: no VERSION_CODENAME in /etc/os-release; this is for Debian" >&2; exit 1; }
suite=$codename-backports

if grep -qsrE --include='*.list' --include='*.sources' "^[^#]*\b$suite\b" "$apt/sources.list" "$apt/sources.list.d"; then
    exit 0
fi

# The deb822 form: the first paragraph whose Suites name the release itself.
for file in "$apt"/sources.list.d/*.sources; do
    [ -e "$file" ] || continue
    entry=$(awk -v RS= -v codename="$codename" -v suite="$suite" '
        {
            lines = split($0, line, "\n"); ours = 0; binary = 0; text = ""
            for (i = 1; i <= lines; i++) {
                if (line[i] ~ /^Suites:/) {
                    words = split(line[i], word, /[ \t]+/)
                    for (j = 2; j <= words; j++) if (word[j] == codename) ours = 1
                    line[i] = "Suites: " suite
                }
                if (line[i] ~ /^Types:[ \t]*deb([ \t]|$)/) binary = 1
                if (line[i] ~ /^Components:/) line[i] = "Components: main"
                text = text line[i] "\n"
            }
            if (ours && binary) { printf "%s", text; exit }
        }' "$file")
    if [ -n "$entry" ]; then
        printf '%s\n' "$entry" >"$apt/sources.list.d/$suite.sources"
        exit 0
    fi
done

# The one-line form: deb [options] URI SUITE COMPONENTS.
for file in "$apt"/sources.list "$apt"/sources.list.d/*.list; do
    [ -e "$file" ] || continue
    entry=$(sed -nE "s/^deb[[:blank:]]+((\[[^]]*\][[:blank:]]+)?[^[:blank:]]+)[[:blank:]]+$codename[[:blank:]].*/deb \1 $suite main/p" \
        "$file" | head -n 1)
    if [ -n "$entry" ]; then
        printf '%s\n' "$entry" >"$apt/sources.list.d/$suite.list"
        exit 0
    fi
done

echo "add_backports.sh: no entry for $codename in $apt; add $suite by hand" >&2
exit 1
