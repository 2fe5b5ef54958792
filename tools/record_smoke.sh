#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Record a tiny guest with the installed QEMU (>= 10), look into the recording, and replay it. Takes seconds.
# usage: record_smoke.sh [QEMU]      (kvmmu must be in PATH; needs gcc and binutils)
set -eu
qemu=${1:-qemu-system-x86_64}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

gcc -m32 -nostdlib -c -o "$work/guest.o" "$here/smoke_guest.S"
ld -m elf_i386 -Ttext 0x100000 --oformat binary -o "$work/guest" "$work/guest.o"

kvmmu record -o "$work/smoke.kmr" -- "$qemu" -machine pc -cpu max,la57=off -m 16 -nodefaults -display none -no-reboot \
    -kernel "$work/guest"
kvmmu info "$work/smoke.kmr" --json > "$work/info.json"
python3 - "$work/info.json" << 'CHECK'
import json, sys

info = json.load(open(sys.argv[1]))
kinds = info["kinds"]
assert not info["cut"] and info["reason"] == "guest-shutdown", info
assert info["machine"]["start"] == "kernel" and info["machine"]["entry"] == 0x100000, info["machine"]
assert info["stale"] == 0 and kinds["invlpg"] == 1 and kinds["mmio"] >= 1 and kinds["page"] >= 5, kinds
assert kinds["store"] >= 1 and kinds["regs"] >= 5, kinds
CHECK
kvmmu run "$work/smoke.kmr" --json > "$work/run.json"
python3 - "$work/run.json" << 'CHECK'
import json, sys

run = json.load(open(sys.argv[1]))
assert run["mismatches"] == 0 and run["accesses"] >= 15, run
print(f"record-smoke: {run['accesses']} accesses recorded and replayed, 0 mismatches")
CHECK
