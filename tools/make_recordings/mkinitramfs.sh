#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Build a reproducible initramfs: mkinitramfs.sh BUSYBOX INIT OUT.cpio.gz [PROGRAM ...]
# BUSYBOX is a static busybox, INIT a shell script that becomes /init, each PROGRAM goes to /bin.
set -eu
busybox=$1 init=$2 out=$3
shift 3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/bin" "$work/proc" "$work/sys" "$work/dev" "$work/tmp"
cp "$busybox" "$work/bin/busybox"
cp "$init" "$work/init"
for program in "$@"; do cp "$program" "$work/bin/"; done
chmod 755 "$work/init" "$work"/bin/*
find "$work" -exec touch -h -d @0 {} +
(cd "$work" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --reproducible 2>/dev/null | gzip -n -9) > "$out"
