#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Record what real KVM does with scenarios: a stock kernel with kvm-amd, under QEMU's software emulation.

usage: record.py FOLDER OUT [--modes shadow,tdp,tdplegacy] [--kernel DEB|FOLDER] [--qemu FOLDER] [--work FOLDER]

Plays each NAME.scn of FOLDER in each mode, and leaves NAME.scn, NAME.MODE.norm.xz and NAME.MODE.res.xz in OUT. Virtual
time follows the instruction count, so the same packages give the same bytes. Needs no KVM and no root. What is not
given, kernel and QEMU of ``packages``, is fetched with apt-get download and unpacked, not installed.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import lzma
import shutil
import subprocess
import sys
from pathlib import Path

from initramfs import build
from normalise import normalise

HERE = Path(__file__).parent
#: Mode -> parameters of kvm, of kvm-amd.
MODES = {
    "shadow": ("", "npt=0"),
    "tdp": ("", "npt=1"),
    "tdplegacy": ("tdp_mmu=0", "npt=1"),
    "tdplazy": ("eager_page_split=N", "npt=1"),
    "shadownx": ("nx_huge_pages=force", "npt=0"),
    "tdpnx": ("nx_huge_pages=force", "npt=1"),
    "tdplegacynx": ("nx_huge_pages=force,tdp_mmu=0", "npt=1"),
}
APPEND = "console=ttyS0 nokaslr no_hash_pointers norandmaps mitigations=off panic=-1 quiet loglevel=4"
MACHINE = (
    "-accel", "tcg,thread=single", "-machine", "q35,hpet=off", "-m", "2048", "-smp", "1", "-cpu", "max,la57=off",
    "-nographic", "-nodefaults", "-no-reboot", "-global", "isa-debugcon.iobase=0x5e9",
    "-icount", "shift=1,sleep=off", "-rtc", "base=2024-01-01,clock=vm", "-seed", "1",
)  # fmt: skip


def packages() -> dict[str, list[str]]:
    """The lines of ``packages``: what a package is for -> its names, with versions."""
    lines = [line.split() for line in (HERE / "packages").read_text().splitlines() if line and line[0] != "#"]
    return {words[0]: words[1:] for words in lines}


def unpacked(what: str, work: Path) -> Path:
    """Where the packages of ``what`` lie unpacked in ``work``; fetched if they do not."""
    folder = work / what
    if not folder.exists():
        debs = work / f"{what}.debs"
        shutil.rmtree(debs, ignore_errors=True)
        debs.mkdir(parents=True)
        subprocess.run(["apt-get", "download", *packages()[what]], cwd=debs, check=True)
        part = work / f"{what}.part"
        for deb in sorted(debs.glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(deb), str(part)], check=True)
        part.rename(folder)
    return folder


def compiled(work: Path) -> dict[str, bytes]:
    """The programs of the recording machine."""
    files = {}
    for name, sources in (("labvmm", ("labvmm.c", "guest.S")), ("put", ("put.c",))):
        out = work / name
        subprocess.run(
            ["gcc", "-s", "-O1", "-static", *(str(HERE / source) for source in sources), "-o", str(out)], check=True
        )
        files[f"lab/{name}"] = out.read_bytes()
    return files


def run_qemu(qemu: Path, kernel: Path, initrd: Path, log: Path) -> bytes:
    """Boot, and return what the machine sent through its debug port."""
    (image,) = (kernel / "boot").glob("vmlinuz-*")
    stream = log.with_suffix(".out")
    command = [str(qemu / "usr" / "bin" / "qemu-system-x86_64")]
    for folder in ("qemu", "seabios"):
        command += ["-L", str(qemu / "usr" / "share" / folder)]
    command += [*MACHINE, "-serial", f"file:{log}", "-debugcon", f"file:{stream}", "-kernel", str(image)]
    subprocess.run([*command, "-initrd", str(initrd), "-append", APPEND], check=True)
    return stream.read_bytes()


def files_of(stream: bytes) -> dict[str, bytes]:
    """The files in the stream of put.c; the firmware's noise is left out."""
    files = {}
    at = stream.find(b"FILE ")
    while 0 <= at < len(stream):
        end = stream.index(b"\n", at)
        _, name, size = stream[at:end].decode().split(" ")
        files[name] = stream[end + 1 : end + 1 + int(size)]
        at = end + 1 + int(size)
    return files


def main() -> int:
    """Record; 1 if a scenario has no recording in a mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--modes", default="shadow,tdp,tdplegacy", help=", ".join(MODES))
    parser.add_argument("--kernel", type=Path, help="an unpacked kernel package")
    parser.add_argument("--qemu", type=Path, help="unpacked QEMU packages")
    parser.add_argument("--work", type=Path, default=Path("out/oracle"))
    options = parser.parse_args()
    modes = options.modes.split(",")
    scenarios = sorted(options.folder.glob("*.scn"))
    if not scenarios or not set(modes) <= set(MODES):
        parser.error(f"{options.folder} needs *.scn, modes are {', '.join(MODES)}")
    options.work.mkdir(parents=True, exist_ok=True)
    kernel = options.kernel or unpacked("kernel", options.work)
    qemu = options.qemu or unpacked("qemu", options.work)
    files = {"init": (HERE / "init.sh").read_bytes(), "lab/job.sh": (HERE / "job.sh").read_bytes()}
    files["lab/modes"] = "".join(f"{mode}:{MODES[mode][0]}:{MODES[mode][1]}\n" for mode in modes).encode()
    files |= compiled(options.work) | {f"lab/scn/{path.name}": path.read_bytes() for path in scenarios}
    initrd = options.work / "initrd.gz"
    initrd.write_bytes(build(kernel, Path("/bin/busybox"), files))
    stream = run_qemu(qemu, kernel, initrd, options.work / "log.txt")
    recorded = files_of(stream)
    options.out.mkdir(parents=True, exist_ok=True)
    missing = 0
    for path in scenarios:
        shutil.copy(path, options.out)
        for mode in modes:
            name = f"{path.stem}.{mode}"
            trace, results = recorded.get(f"{name}.trace.gz"), recorded.get(f"{name}.res")
            if trace is None or results is None:
                print(f"{name}: nothing was recorded (see {options.work}/log.txt)", file=sys.stderr)
                missing += 1
                continue
            text = "\n".join(normalise(gzip.decompress(trace).decode(errors="replace").splitlines())) + "\n"
            (options.out / f"{name}.norm.xz").write_bytes(lzma.compress(text.encode(), preset=9))
            (options.out / f"{name}.res.xz").write_bytes(lzma.compress(results, preset=9))
    print(f"{len(scenarios)} scenarios in {len(modes)} modes; stream sha256 {hashlib.sha256(stream).hexdigest()}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
