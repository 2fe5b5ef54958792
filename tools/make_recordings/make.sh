#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Make the recordings of src/kvmmu/recordings again: make.sh WORK [NAME ...]
#
# WORK is a directory for packages, kernels and results (kept between runs). Needs QEMU >= 10 (Debian 12:
# bookworm-backports), gcc, cpio, and apt with Debian's bookworm and bookworm-security; nothing is installed and no
# system configuration is changed. One run of all takes about five minutes on two cores. With -icount a guest does the
# same each time, so the same packages and options give the same records, give or take a handful. KVMMU=... is the
# command to record with.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$1
shift
all="linux-6.12-boot linux-6.12-boot-4level linux-6.12-smp2 linux-6.12-processes"
all="$all linux-686-pae-boot linux-686-boot"
names=${*:-$all}
kvmmu=${KVMMU:-kvmmu}
kernel=${KERNEL:-linux-image-6.12.107+deb12-cloud-amd64}
kernel_686=${KERNEL_686:-linux-image-6.1.0-50-686}
mkdir -p "$work"
cd "$work"

# An apt of its own: another architecture, its own state, Debian's bookworm main only.
i386() {
    mkdir -p i386/lists/partial i386/cache/archives/partial i386/sources
    touch i386/status
    sed -n '/^URIs:/{p;q}' /etc/apt/sources.list.d/debian.sources > i386/uri
    key=$(sed -n 's/^Signed-By: *//p' /etc/apt/sources.list.d/debian.sources | head -n 1)
    { echo "Types: deb"; cat i386/uri; echo "Suites: bookworm"; echo "Components: main"
      echo "Architectures: i386"; echo "Signed-By: $key"; } > i386/sources/bookworm.sources
    cat > i386/apt.conf << CONF
Dir::State "$work/i386"; Dir::State::status "$work/i386/status"; Dir::State::lists "$work/i386/lists";
Dir::Cache "$work/i386/cache"; Dir::Etc::sourcelist "/dev/null"; Dir::Etc::sourceparts "$work/i386/sources";
APT::Architecture "i386"; APT::Architectures "i386";
CONF
    [ -n "$(ls i386/lists/*Packages* 2> /dev/null)" ] || APT_CONFIG=i386/apt.conf apt-get -q update
    APT_CONFIG=i386/apt.conf apt-get -q download "$1"
}

# Unpack one file of a package: unpack DIRECTORY PACKAGE PATTERN TARGET [i386]
unpack() {
    [ -e "$4" ] && return
    mkdir -p "$1"
    if [ "${5:-}" = i386 ]; then i386 "$2"; else apt-get -q download "$2"; fi
    for deb in "$(echo "$2" | cut -d: -f1)"_*.deb; do dpkg -x "$deb" "$1"; rm -f "$deb"; done
    cp "$1"/$3 "$4"
}

# record NAME START QEMU-OPTIONS...: the options that all guests share make them repeat.
record() {
    name=$1 start=$2
    shift 2
    $kvmmu record --force -o "$name.kmr" --start "$start" -- qemu-system-x86_64 -machine pc,hpet=off -nodefaults -display none \
        -no-reboot -serial "file:$name.log" -icount shift=0,sleep=off -rtc base=2024-01-01,clock=vm -seed 1 "$@" \
        -append "console=ttyS0 quiet panic=-1"
    ls -l "$name.kmr"
}

for name in $names; do
    case $name in
    linux-686*) unpack bb32 busybox-static:i386 bin/busybox busybox-i386 i386
        "$here/mkinitramfs.sh" busybox-i386 "$here/boot.init" initrd-i386.gz ;;
    *) unpack bb64 busybox-static bin/busybox busybox-amd64
        "$here/mkinitramfs.sh" busybox-amd64 "$here/boot.init" initrd-amd64.gz
        unpack amd64 "$kernel" 'boot/vmlinuz-*' vmlinuz-6.12-cloud-amd64 ;;
    esac
    case $name in
    linux-6.12-boot)
        record "$name" kernel -cpu max -m 256 -kernel vmlinuz-6.12-cloud-amd64 -initrd initrd-amd64.gz ;;
    linux-6.12-boot-4level)
        record "$name" kernel -cpu max,la57=off -m 256 -kernel vmlinuz-6.12-cloud-amd64 -initrd initrd-amd64.gz ;;
    linux-6.12-smp2)
        record "$name" kernel -cpu max,la57=off -smp 2 -m 256 \
            -kernel vmlinuz-6.12-cloud-amd64 -initrd initrd-amd64.gz ;;
    linux-6.12-processes)
        gcc -O1 -static -s -o processes "$here/processes.c"
        "$here/mkinitramfs.sh" busybox-amd64 processes initrd-processes.gz
        record "$name" user -cpu max,la57=off -m 128 -kernel vmlinuz-6.12-cloud-amd64 -initrd initrd-processes.gz ;;
    linux-686-pae-boot)
        unpack pae "$kernel_686-pae" 'boot/vmlinuz-*' vmlinuz-6.1-686-pae i386
        record "$name" kernel -cpu max -m 256 -kernel vmlinuz-6.1-686-pae -initrd initrd-i386.gz ;;
    linux-686-boot)
        unpack 686 "$kernel_686" 'boot/vmlinuz-*' vmlinuz-6.1-686 i386
        record "$name" kernel -cpu max -m 256 -kernel vmlinuz-6.1-686 -initrd initrd-i386.gz ;;
    *) echo "make.sh: no recording is called $name" >&2; exit 2 ;;
    esac
done
