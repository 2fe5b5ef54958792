# SPDX-License-Identifier: GPL-2.0-only
"""The QEMU command line of a guest, made ready for recording: what is missing is added, what cannot work is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..errors import RecorderError

#: The first QEMU whose plugins can read registers and the values of accesses (plugin API 4).
OLDEST = 10
#: Id of the memory backend that is added, and its name in QEMU's memory map.
RAM_ID = "kvmmu-ram"
_DEFAULT_RAM = 128 << 20
_UNITS = {"B": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_INSTALL = "on Debian 12: qemu-system-x86 from bookworm-backports"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A command line ready to run: ``added`` words were put to it, ``ram_id`` names the memory backend of the guest's
    RAM, which is the file ``ram_path`` of ``ram_size`` bytes; ``makes_ram`` says whether the recorder must create it.
    """

    command: tuple[str, ...]
    added: tuple[str, ...]
    ram_id: str
    ram_path: str
    ram_size: int
    makes_ram: bool
    kernel: str | None
    machine: str
    cpu_model: str


def find_qemu(program: str) -> tuple[str, str]:
    """Path and version of the QEMU ``program``. Raises :class:`RecorderError`: missing, not QEMU, too old."""
    path = shutil.which(program)
    if path is None:
        raise RecorderError(f"{program}: no such program; install QEMU {OLDEST} or newer ({_INSTALL})")
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RecorderError(f"{path} --version does not run: {error}") from error
    match = re.search(r"QEMU emulator version (\d+)\.(\d+)(?:\.(\d+))?.*", done.stdout)
    if match is None:
        raise RecorderError(f"{path} is not QEMU's system emulator: --version prints {done.stdout.strip()[:60]!r}")
    if int(match[1]) < OLDEST:
        number = ".".join(part for part in match.groups() if part)
        raise RecorderError(f"{path} is QEMU {number}, recording needs {OLDEST} or newer ({_INSTALL})")
    return path, match[0].removeprefix("QEMU emulator version ").strip()


def parse_size(text: str, unit: str = "M") -> int:
    """Bytes that QEMU understands ``text`` as, a number with an optional unit. Raises :class:`RecorderError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([BKMGTbkmgt]?)", text)
    if match is None:
        raise RecorderError(f"memory size {text!r} is not a number with K, M, G or T behind it")
    return int(float(match[1]) * (1 << _UNITS[(match[2] or unit).upper()]))


def prepare(command: tuple[str, ...], plugin: str, work: str) -> Prepared:
    """The command line that records the guest of ``command``.

    ``plugin`` is the value of ``-plugin``, ``work`` a directory for the RAM file and QEMU's control socket. Raises
    :class:`RecorderError` for a guest that cannot be recorded (KVM, its own memory backend that is no shared file,
    NUMA memory).
    """
    words = list(command)
    _refuse_kvm(words)
    added = _single_thread(words)
    ram_id, ram_path, ram_size, makes_ram = _find_ram(words, work)
    if makes_ram:
        added += [
            "-object",
            f"memory-backend-file,id={ram_id},size={ram_size},mem-path={ram_path},share=on",
            "-machine",
            f"memory-backend={ram_id}",
        ]
    added += ["-plugin", plugin]
    added += ["-chardev", f"socket,id=kvmmu-qmp,path={work}/qmp,server=on,wait=off"]
    added += ["-mon", "chardev=kvmmu-qmp,mode=control"]
    machine = next((value.split(",")[0].removeprefix("type=") for value in _values(words, "-machine", "-M")), "pc")
    cpu = next(iter(_values(words, "-cpu")), "qemu64")
    kernel = next(iter(_values(words, "-kernel")), None)
    return Prepared((*words, *added), tuple(added), ram_id, ram_path, ram_size, makes_ram, kernel, machine, cpu)


def quote_value(text: str) -> str:
    """``text`` as a value inside a comma-separated option."""
    return text.replace(",", ",,")


# The values of an option, in order.
def _values(words: list[str], *names: str) -> list[str]:
    dashed = {*names, *(f"-{name}" for name in names)}
    return [words[at + 1] for at in range(len(words) - 1) if words[at] in dashed]


def _refuse_kvm(words: list[str]) -> None:
    accelerators = [value.split(",")[0] for value in _values(words, "-accel")]
    accelerators += [
        word.split("=")[1]
        for value in _values(words, "-machine", "-M")
        for word in value.split(",")
        if word.startswith("accel=")
    ]
    if {"-enable-kvm", "--enable-kvm"} & set(words):
        accelerators.append("kvm")
    for name in accelerators:
        if name not in ("tcg", ""):
            raise RecorderError(
                f"the accelerator {name!r} cannot be recorded: QEMU's plugins watch guests under tcg only; leave it out"
            )


# Run all vCPUs in one thread, so that the order of events is one; change or add `-accel`.
def _single_thread(words: list[str]) -> list[str]:
    for at in range(len(words) - 1):
        if words[at] in ("-accel", "--accel"):
            if "thread=multi" in words[at + 1]:
                raise RecorderError("-accel tcg,thread=multi gives no order of events; leave thread=multi out")
            if "thread=single" not in words[at + 1]:
                words[at + 1] += ",thread=single"
            return []
    return ["-accel", "tcg,thread=single"]


# The guest's RAM: the user's own shared file, or one to be made.
def _find_ram(words: list[str], work: str) -> tuple[str, str, int, bool]:
    if any("memdev=" in value for value in _values(words, "-numa")):
        raise RecorderError("memory on NUMA nodes cannot be recorded; leave -numa ...,memdev= out")
    options = [option for value in _values(words, "-machine", "-M") for option in value.split(",")]
    backend = next((option.partition("=")[2] for option in options if option.startswith("memory-backend=")), None)
    if backend is None:
        return RAM_ID, f"{work}/ram", _ram_size(words), True
    for value in _values(words, "-object"):
        kind, *pairs = value.split(",")
        facts = dict(pair.partition("=")[::2] for pair in pairs)
        if facts.get("id") == backend and kind == "memory-backend-file" and facts.get("share") in ("on", "yes", "true"):
            path = facts.get("mem-path", "")
            if Path(path).is_file():
                return backend, path, parse_size(facts.get("size", "0"), "B"), False
    raise RecorderError(
        f"the memory backend {backend!r} cannot be recorded: it must be a memory-backend-file with share=on whose "
        "mem-path exists; or leave memory-backend= out and one is made"
    )


def _ram_size(words: list[str]) -> int:
    values = _values(words, "-m")
    if not values:
        return _DEFAULT_RAM
    first = values[-1].split(",")[0]
    size = next((part[5:] for part in values[-1].split(",") if part.startswith("size=")), first)
    return parse_size(size) + 8191 & ~8191
