#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Record guests that are not among the bundled recordings, and replay each in every mode.

Firmware, boot programs, other kernels, memory that is plugged in, sleep, SMM. WORK keeps packages and recordings
between runs. Packages come from Debian by apt-get download; nothing is installed. Needs QEMU >= 10, dpkg and cpio.
Prints a table; ends with 1 when a replay finds a mismatch, when the warning of `kvmmu run` would be about an unnamed
reason, or when a guest leaves no records. The environment: KVMMU, the command (default kvmmu); LEVEL, of zstd (3).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
KVMMU = shlex.split(os.environ.get("KVMMU", "kvmmu"))
LEVEL = os.environ.get("LEVEL", "3")
MODES = ("none", "shadow", "tdp", "tdp-legacy")
#: What may be left out: the reasons that docs/limits.md names, and SMM.
NAMED = {"stale", "table-in-rom", "table-in-device", "table-in-unknown-memory", "unplaced"}


@dataclass(frozen=True)
class Guest:
    """A guest: its QEMU options (``{name}``: a file of WORK), the seconds that it gets, what begins the recording, the
    packages that it needs, and what happens to it from outside.
    """

    name: str
    options: str
    seconds: int
    start: str = "firmware"
    packages: tuple[str, ...] = ()
    acts: Callable[[Path], None] | None = None
    program: str = "qemu-system-x86_64"


def monitor(work: Path) -> Iterator[Callable[..., object]]:
    """QEMU's monitor at WORK/monitor, as a function of a command and its arguments; waits until the guest waits."""
    console = work / "console"
    while not console.exists() or b"guest: waits" not in console.read_bytes():
        time.sleep(0.2)
    time.sleep(2)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(work / "monitor"))
        lines = connection.makefile("rw")
        lines.readline()

        def ask(command: str, **arguments: object) -> object:
            lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
            lines.flush()
            while True:
                answer = json.loads(lines.readline())
                if "return" in answer or "error" in answer:
                    return answer

        ask("qmp_capabilities")
        yield ask


def plug_named(work: Path) -> None:
    """Plug in the memory that the command line has named."""
    for ask in monitor(work):
        print(ask("device_add", driver="pc-dimm", id="d1", memdev="m1"))


def plug_new(work: Path) -> None:
    """Make memory through the monitor, which the recorder does not see, and plug it in."""
    for ask in monitor(work):
        print(ask("object-add", **{"qom-type": "memory-backend-ram", "id": "m2", "size": 1 << 30}))
        print(ask("device_add", driver="pc-dimm", id="d2", memdev="m2"))


def wake(work: Path) -> None:
    """Wake the guest from its sleep."""
    for ask in monitor(work):
        for _ in range(10):
            print(ask("system_wakeup"))
            time.sleep(1)


KERNEL = "linux-image-amd64"
#: Of another architecture, which this machine's apt may not know.
KERNEL_686 = "linux-image-686"
LINUX = "-kernel {linux} -initrd {initrd}"
CONSOLE = "-serial file:{work}/console -qmp unix:{work}/monitor,server=on,wait=off"
PLUG = "-m 192M,slots=2,maxmem=4G"
QUIET = "console=ttyS0 panic=-1 quiet"
SLEEP = f"{QUIET} no_timer_check"
FLASH = "-drive if=pflash,format=raw,unit=0,readonly=on,file={0} -drive if=pflash,format=raw,unit=1,file={1}"
GUESTS = (
    Guest("seabios", "-M pc -m 128 -vga std", 8),
    Guest("seabios-smm", "-M q35,smm=on -smp 2 -m 128 -vga std", 8),
    Guest("ovmf", f"-M q35 -m 256 {FLASH.format('{ovmf}', '{ovmf_vars}')}", 90, packages=("ovmf",)),
    Guest(
        "ovmf-smm",
        "-M q35,smm=on -m 256 -global driver=cfi.pflash01,property=secure,value=on "
        + FLASH.format("{ovmf_smm}", "{ovmf_smm_vars}"),
        120,
        packages=("ovmf",),
    ),
    Guest(
        "xen",
        f'-m 768 {CONSOLE} -kernel {{xen}} -append "com1=115200 console=com1 dom0_mem=256M" '
        f'-initrd "{{linux}} console=hvc0 panic=-1 guest=work,{{initrd}}"',
        400,
        "kernel",
        ("xen-hypervisor-4.17-amd64", KERNEL),
    ),
    Guest(
        "hotplug",
        f'{PLUG} -object memory-backend-ram,id=m1,size=1G {CONSOLE} {LINUX} -append "{QUIET} guest=plug"',
        300,
        "kernel",
        (KERNEL,),
        plug_named,
    ),
    Guest("hotplug-qmp", f'{PLUG} {CONSOLE} {LINUX} -append "{QUIET} guest=plug"', 300, "kernel", (KERNEL,), plug_new),
    Guest("s3", f'-M q35 -m 256 {CONSOLE} {LINUX} -append "{SLEEP} guest=sleep"', 300, "kernel", (KERNEL,), wake),
    Guest(
        "linux-smp4",
        f'-M q35 -cpu max,la57=off -smp 4 -m 384 {CONSOLE} {LINUX} -append "{QUIET} guest=work"',
        300,
        "kernel",
        (KERNEL,),
    ),
    Guest("linux-64g", f'-cpu max -m 64G {CONSOLE} {LINUX} -append "{QUIET} guest=work"', 150, "kernel", (KERNEL,)),
    Guest("linux-686", f'-m 256 {CONSOLE} -kernel {{linux_686}} -append "{QUIET}"', 150, "kernel", (KERNEL_686,)),
    Guest("memtest86", "-m 64 -vga std -smp 2 -kernel {memtest}", 30, "kernel", ("memtest86+",)),
    Guest("memtest86-ia32", "-m 64 -vga std -kernel {memtest32}", 30, "kernel", ("memtest86+",)),
    Guest("ipxe", "-m 128 -vga std -device e1000,netdev=n -netdev user,id=n -kernel {ipxe}", 40, packages=("ipxe",)),
)  # fmt: skip
#: Files of packages: package, pattern, whether it is unpacked, whether the guest writes it.
FILES = {
    "ovmf": ("ovmf", "usr/share/OVMF/OVMF_CODE_4M.fd", ""),
    "ovmf_vars": ("ovmf", "usr/share/OVMF/OVMF_VARS_4M.fd", "copy"),
    "ovmf_smm": ("ovmf", "usr/share/OVMF/OVMF_CODE_4M.secboot.fd", ""),
    "ovmf_smm_vars": ("ovmf", "usr/share/OVMF/OVMF_VARS_4M.fd", "copy"),
    "xen": ("xen-hypervisor-4.17-amd64", "boot/xen-*-amd64.gz", "gunzip"),
    "linux": (KERNEL, "boot/vmlinuz-*", ""),
    "linux_686": (KERNEL_686, "boot/vmlinuz-*", ""),
    "memtest": ("memtest86+", "boot/*x64.bin", ""),
    "memtest32": ("memtest86+", "boot/*ia32.bin", ""),
    "ipxe": ("ipxe", "boot/ipxe.lkrn", ""),
}


def foreign_apt(work: Path) -> dict[str, str]:
    """The environment of an apt with i386 packages of Debian's own suite, and no other state than in WORK."""
    state = work / "i386"
    lists = state / "lists" / "partial"
    if not lists.exists():
        for path in (lists, state / "cache" / "archives" / "partial", state / "sources"):
            path.mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        own = Path("/etc/apt/sources.list.d/debian.sources").read_text().splitlines()
        kept = [next(line for line in own if line.startswith(name)) for name in ("URIs:", "Signed-By:")]
        release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
        kept += ["Types: deb", f"Suites: {release['VERSION_CODENAME']}", "Components: main", "Architectures: i386"]
        (state / "sources" / "debian.sources").write_text("\n".join(kept) + "\n")
        (state / "apt.conf").write_text(
            f'Dir::State "{state}"; Dir::State::status "{state}/status"; Dir::State::lists "{state}/lists";\n'
            f'Dir::Cache "{state}/cache"; Dir::Etc::sourcelist "/dev/null"; Dir::Etc::sourceparts "{state}/sources";\n'
            'APT::Architecture "i386"; APT::Architectures "i386";\n'
        )
        subprocess.run(
            ["apt-get", "-q", "update"], env=os.environ | {"APT_CONFIG": str(state / "apt.conf")}, check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
    return os.environ | {"APT_CONFIG": str(state / "apt.conf")}


def unpack(work: Path, package: str) -> Path:
    """The tree of a Debian package; of one that only depends on another, that other's."""
    tree = work / "packages" / package
    if not tree.exists():
        fresh = tree.with_suffix(".new")
        fresh.mkdir(parents=True, exist_ok=True)
        wanted = package
        apt = foreign_apt(work) if package == KERNEL_686 else dict(os.environ)
        if package in (KERNEL, KERNEL_686):
            listed = subprocess.run(
                ["apt-cache", "depends", package], env=apt, capture_output=True, text=True, check=True
            )
            wanted = next(line.split()[-1] for line in listed.stdout.splitlines() if "Depends: linux-image" in line)
        subprocess.run(["apt-get", "-q", "download", wanted], env=apt, cwd=fresh, check=True, stdout=subprocess.DEVNULL)
        for archive in fresh.glob("*.deb"):
            subprocess.run(["dpkg", "-x", archive, fresh], check=True)
            archive.unlink()
        fresh.rename(tree)
    return tree


def find_file(work: Path, name: str) -> Path:
    """A file that the options of a guest name."""
    if name == "work":
        return work
    if name == "initrd":
        made = work / "initrd.gz"
        busybox = unpack(work, "busybox-static") / "bin" / "busybox"
        script = HERE.parent / "make_recordings" / "mkinitramfs.sh"
        subprocess.run(["bash", "-e", "-o", "pipefail", script, busybox, HERE / "guest.init", made], check=True)
        return made
    package, pattern, how = FILES[name]
    found = next(iter(sorted(unpack(work, package).glob(pattern))))
    made = work / name
    if how == "gunzip":
        made.write_bytes(gzip.decompress(found.read_bytes()))
    elif how == "copy":
        made.write_bytes(found.read_bytes())
    return made if how else found


class Names(dict[str, str]):
    """Files by the name that options use, made when they are asked for."""

    def __init__(self, work: Path) -> None:
        super().__init__()
        self.work = work

    def __missing__(self, name: str) -> str:
        self[name] = str(find_file(self.work, name))
        return self[name]


def record(guest: Guest, work: Path) -> str:
    """Record ``guest``; return the sentence that it ended with."""
    for left in ("console", "monitor"):
        (work / left).unlink(missing_ok=True)
    options = shlex.split(guest.options.format_map(Names(work)))
    command = [*KVMMU, "record", "--force", "--level", LEVEL, "--for", str(guest.seconds), "--start", guest.start, "-o"]
    command += [str(work / f"{guest.name}.kmr"), "--", guest.program, "-nodefaults", "-display", "none", "-no-reboot"]
    if guest.acts is not None:
        threading.Thread(target=guest.acts, args=(work,), daemon=True).start()
    with (work / f"{guest.name}.log").open("w") as log:
        log.write(shlex.join([*command, *options]) + "\n")
        log.flush()
        done = subprocess.run([*command, *options], stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=False)
    if (work / "console").exists():
        (work / f"{guest.name}.console").write_bytes((work / "console").read_bytes())
    return f"status {done.returncode}"


def check(guest: Guest, work: Path) -> tuple[list[str], bool]:
    """Replay the recording in every mode: a row of the table, and whether all is well."""
    path = work / f"{guest.name}.kmr"
    row, good = [guest.name], path.exists()
    for mode in MODES if good else ():
        done = subprocess.run(
            [*KVMMU, "run", str(path), "--mmu", mode, "--json"], capture_output=True, text=True, check=False
        )
        with (work / f"{guest.name}.log").open("a") as log:
            log.write(f"{mode}: status {done.returncode}\n{done.stderr}{done.stdout}\n")
        if not done.stdout:
            row += [f"{mode}: {done.stderr.strip().splitlines()[-1] if done.stderr else 'no result'}"]
            good = False
            continue
        result = json.loads(done.stdout)
        if mode == MODES[0]:
            left_out = result["left_out"]
            share = 100 * sum(left_out.values()) / max(result["seen"], 1)
            listed = " ".join(f"{count} {name}" for name, count in left_out.items()) or "-"
            row += [
                f"{result['position']:,}",
                f"{result['seen']:,}",
                f"{share:.3f} % {listed}",
                f"{result['smm_records']:,}",
            ]
            good = good and set(left_out) <= NAMED and result["position"] > 0
        row += [f"{result['mismatches']} in {result['seconds']:.1f} s"]
        good = good and done.returncode == 0
    return [*row, "ok" if good else "FAILS"], good


def main() -> int:
    names = [guest.name for guest in GUESTS]
    parser = argparse.ArgumentParser(
        prog="guests.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", metavar="WORK", type=Path, help="folder for packages, recordings and logs")
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"which guests, of {', '.join(names)}; none: all")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in names]
    if unknown:
        parser.error(f"no guest {', '.join(unknown)}; there are {', '.join(names)}")
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    wanted = options.names or names
    rows = [["guest", "records", "accesses seen", "left out", "in SMM", *MODES, ""]]
    all_good = True
    for guest in GUESTS:
        if guest.name not in wanted:
            continue
        ended = record(guest, work)
        row, good = check(guest, work)
        all_good = all_good and good
        print(f"{' | '.join(row)} ({ended})", flush=True)
        rows.append(row)
    widths = [max(len(row[at]) for row in rows if at < len(row)) for at in range(max(map(len, rows)))]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
