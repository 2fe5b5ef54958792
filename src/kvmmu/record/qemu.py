# SPDX-License-Identifier: GPL-2.0-only
"""The QEMU command line of a guest, made ready for recording: what is missing is added, what cannot work is refused."""

from __future__ import annotations

import json
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


#: Options that no guest comes of, and those that make QEMU print a list and leave when their value is one of these.
_NO_GUEST = frozenset({"version", "h", "help", "?"})
_LISTING = frozenset({"machine", "M", "cpu", "device", "accel", "object", "display", "vga", "chardev", "netdev", "d"})
_LISTS = frozenset({"help", "?"})
#: Options that clash with recording, and what to do instead.
_CLASHES = {
    "mem-path": "the guest's RAM is made a file by the recorder; leave it out",
    "daemonize": "the recorder waits for QEMU to end; leave it out",
}
#: Memories that the plugin maps (its NR_MEMORIES).
MOST_MEMORIES = 32
_SHARED = ("on", "yes", "true")
_MAKEABLE = ("memory-backend-ram", "memory-backend-memfd")
#: Properties that only these two have.
_DROPPED = ("hugetlb", "hugetlbsize", "seal", "share")


@dataclass(frozen=True, slots=True)
class Memory:
    """A memory of the guest: the backend ``name`` of ``size`` bytes in the file ``path``; None: one must be made."""

    name: str
    size: int
    path: str | None


@dataclass(frozen=True, slots=True)
class Survey:
    """What a command line says about its guest.

    ``memories``: the RAM (of NUMA nodes: the first one's), then that of other nodes and what may be plugged in later;
    ``unknown``: backends that cannot be looked at; ``hotplug``: there is room for more memory.
    """

    memories: tuple[Memory, ...]
    unknown: tuple[str, ...]
    hotplug: bool
    kernel: str | None
    machine: str
    cpu_model: str

    @property
    def ram_id(self) -> str:
        """Name of the backend of the guest's RAM, or of the beginning of it."""
        return self.memories[0].name

    @property
    def ram_size(self) -> int:
        """Bytes of that backend."""
        return self.memories[0].size


@dataclass(frozen=True, slots=True)
class Prepared:
    """A command line ready to run: ``added`` is what was put to it or changed in it."""

    command: tuple[str, ...]
    added: tuple[str, ...]


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


def survey(command: tuple[str, ...]) -> Survey:
    """What the command line ``command`` says about its guest, as far as a recording needs it.

    Raises :class:`RecorderError` for a guest that cannot be recorded (KVM, RAM in a backend that is no shared file,
    more backends than the plugin maps), for options that clash with recording, and for a command that runs no guest.
    """
    words = list(command)
    _refuse_no_guest(words)
    _refuse_clashes(words)
    _refuse_kvm(words)
    ram, others, unknown = _find_memories(words)
    return Survey(
        memories=(ram, *others),
        unknown=unknown,
        hotplug=any("maxmem=" in value for value in _values(words, "-m")),
        kernel=next(iter(_values(words, "-kernel")), None),
        machine=next((value.split(",")[0].removeprefix("type=") for value in _values(words, "-machine", "-M")), "pc"),
        cpu_model=next(iter(_values(words, "-cpu")), "qemu64"),
    )


def prepare(command: tuple[str, ...], plugin: str, monitor: str, paths: dict[str, str]) -> Prepared:
    """The command line that records the guest of ``command``.

    ``plugin`` is the value of ``-plugin``, ``monitor`` says where QEMU's control socket is (options of a chardev of
    the kind socket), ``paths`` the files of those memories of :func:`survey` that had to be made, by name. Raises
    what :func:`survey` raises.
    """
    facts = survey(command)
    words = list(command)
    added = _single_thread(words)
    ram = facts.memories[0]
    if ram.name == RAM_ID:
        backend = f"memory-backend-file,id={ram.name},size={ram.size},mem-path={paths[ram.name]},share=on"
        added += ["-object", backend, "-machine", f"memory-backend={ram.name}"]
    changed = _share_backends(words, paths)
    added += ["-plugin", plugin]
    added += ["-chardev", f"socket,id=kvmmu-qmp,{monitor}"]
    added += ["-mon", "chardev=kvmmu-qmp,mode=control"]
    return Prepared((*words, *added), (*changed, *added))


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


# Run all vCPUs in one thread, so that the order of events is one; change or add `-accel`. QEMU takes it only without
# `-machine accel=`.
def _single_thread(words: list[str]) -> list[str]:
    for at in reversed(range(len(words) - 1)):
        if words[at] in ("-machine", "--machine", "-M", "--M"):
            kept = [word for word in words[at + 1].split(",") if not word.startswith("accel=")]
            words[at : at + 2] = [words[at], ",".join(kept)] if kept else []
    for at in range(len(words) - 1):
        if words[at] in ("-accel", "--accel"):
            if "thread=multi" in words[at + 1]:
                raise RecorderError("-accel tcg,thread=multi gives no order of events; leave thread=multi out")
            if "thread=single" not in words[at + 1]:
                words[at + 1] += ",thread=single"
            return []
    return ["-accel", "tcg,thread=single"]


# A command that prints something and ends.
def _refuse_no_guest(words: list[str]) -> None:
    for at, word in enumerate(words):
        name = word.lstrip("-")
        before = words[at - 1] if at else ""
        lists = before.startswith("-") and before.lstrip("-") in _LISTING and word.split(",")[-1] in _LISTS
        if at and (lists or (word.startswith("-") and name in _NO_GUEST and before != "-append")):
            shown = f"{before} {word}" if lists else word
            raise RecorderError(f"{shown} runs no guest, QEMU only prints something: there is nothing to record")


def _refuse_clashes(words: list[str]) -> None:
    for word in words[1:]:
        hint = _CLASHES.get(word.lstrip("-")) if word.startswith("-") else None
        if hint is not None:
            raise RecorderError(f"{word} clashes with recording: {hint}")


# Kind and properties of an -object, in either form.
def _object(value: str) -> tuple[str, dict[str, str]]:
    if value.startswith("{"):
        try:
            pairs = {str(name): str(what) for name, what in json.loads(value).items()}
        except (ValueError, AttributeError):
            return "", {}
        return pairs.pop("qom-type", ""), pairs
    kind, *words = value.replace(",,", "\0").split(",")
    return kind.removeprefix("qom-type="), {
        name: what.replace("\0", ",") for name, _, what in (word.partition("=") for word in words)
    }


# The backend that a -object makes, with the file that it has if the recorder can look at it; None: no memory.
def _backend(value: str) -> tuple[Memory, bool] | None:
    kind, facts = _object(value)
    if not kind.startswith("memory-backend-") or "id" not in facts:
        return None
    size = parse_size(facts.get("size", "0"), "B")
    if kind in _MAKEABLE:
        return Memory(facts["id"], size, None), True
    path = facts.get("mem-path", "")
    shared = kind == "memory-backend-file" and facts.get("share", "").lower() in (*_SHARED, "true")
    return Memory(facts["id"], size, path), shared and Path(path).is_file() and Path(path).stat().st_size >= size


# The guest's RAM, the user's own backend or one to be made; then the other backends that can be looked at, and the
# names of those that cannot.
def _find_memories(words: list[str]) -> tuple[Memory, list[Memory], tuple[str, ...]]:
    options = [option for value in _values(words, "-machine", "-M") for option in value.split(",")]
    ram_id = next((option.partition("=")[2] for option in options if option.startswith("memory-backend=")), None)
    known: dict[str, Memory] = {}
    unknown: list[Memory] = []
    for value in _values(words, "-object"):
        found = _backend(value)
        if found is not None and found[1]:
            known[found[0].name] = found[0]
        elif found is not None:
            unknown.append(found[0])
    wanted = _node_memories(words) or ([] if ram_id is None else [ram_id])
    count = len(known) + (not wanted)
    if count > MOST_MEMORIES:
        raise RecorderError(f"{count} memories: a recording has at most {MOST_MEMORIES}; leave memory backends out")
    for name in wanted:
        if name not in known:
            raise RecorderError(
                f"the memory backend {name!r} cannot be recorded: it must be a memory-backend-ram or -memfd, or a "
                "memory-backend-file with share=on whose mem-path exists; or leave memory-backend= out and one is made"
            )
    ram = known.pop(wanted[0]) if wanted else Memory(RAM_ID, _ram_size(words), None)
    # What is named twice, QEMU refuses.
    others = [known.pop(name) for name in wanted[1:] if name in known]
    return ram, [*others, *known.values()], tuple(memory.name for memory in unknown)


# The backends of NUMA nodes, the node whose memory begins at 0 first; a node without a number gets the next one.
def _node_memories(words: list[str]) -> list[str]:
    nodes: dict[int, str] = {}
    for value in _values(words, "-numa"):
        kind, facts = _object(value)
        if kind == "node" and "memdev" in facts:
            number = facts.get("nodeid", "")
            nodes[int(number) if number.isdecimal() else len(nodes)] = facts["memdev"]
    return [nodes[number] for number in sorted(nodes)]


# Make the backends that have their memory from QEMU shared files; return what they are now.
def _share_backends(words: list[str], paths: dict[str, str]) -> list[str]:
    changed = []
    for at in range(len(words) - 1):
        if words[at] not in ("-object", "--object"):
            continue
        kind, facts = _object(words[at + 1])
        if kind not in _MAKEABLE or facts.get("id") not in paths:
            continue
        pairs = {name: what for name, what in facts.items() if name not in _DROPPED}
        pairs |= {"mem-path": paths[facts["id"]], "share": "on"}
        words[at + 1] = ",".join(
            ["memory-backend-file", *(f"{name}={quote_value(what)}" for name, what in pairs.items())]
        )
        changed += words[at : at + 2]
    return changed


def _ram_size(words: list[str]) -> int:
    values = _values(words, "-m")
    if not values:
        return _DEFAULT_RAM
    first = values[-1].split(",")[0]
    size = next((part[5:] for part in values[-1].split(",") if part.startswith("size=")), first)
    return parse_size(size) + 8191 & ~8191
