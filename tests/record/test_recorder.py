# SPDX-License-Identifier: GPL-2.0-only
"""How ``kvmmu record`` prepares a guest, and how a recording ends, with a stand-in for QEMU that ends in every way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kvmmu.errors import RecorderError
from kvmmu.record import build_plugin as plugin
from kvmmu.record import format as f
from kvmmu.record.kernel_image import ANYWHERE, entry_range
from kvmmu.record.qemu import Memory, Prepared, find_qemu, parse_size, prepare, survey
from kvmmu.record.qmp import parse_memory_tree
from kvmmu.record.reader import Reader
from kvmmu.record.recorder import Order, Progress, Start, map_changes, record

HERE = Path(__file__).parent
FAKE = str(HERE / "fake_qemu.py")


@pytest.fixture(autouse=True)
def no_compiler_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The stand-in loads no plugin: any file will do."""
    (tmp_path / "plugin.so").touch()
    monkeypatch.setattr("kvmmu.record.recorder.build_plugin", lambda: tmp_path / "plugin.so")


def ready(*words: str) -> Prepared:
    """The command line of QEMU with ``words``."""
    return prepare(("qemu", *words), "p.so", "fd=3", {"kvmmu-ram": "/w/ram", "m1": "/w/m1", "m": "/w/m"})


def run(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, start: str = "kernel") -> f.Trailer:
    """Record the stand-in's guest."""
    monkeypatch.setenv("FAKE_QEMU", how)
    return record(Order(str(tmp_path / "x.kmr"), (FAKE, "-m", "16"), Start.parse(start), 1), lambda _: None)


def test_a_guest_that_powers_off_is_recorded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    shown: list[Progress] = []
    monkeypatch.setenv("FAKE_QEMU", "good")
    order = Order(str(tmp_path / "x.kmr"), (FAKE, "-m", "16", "-smp", "2"), Start(), 1)
    trailer = record(order, said.append, shown.append)
    assert (trailer.cut, trailer.reason, trailer.seen, trailer.stale) == (False, "guest-shutdown", 1234, 5)
    assert trailer.counts == {"regs": 1, "page": 1, "access": 1, "map": 1, "mmio": 1}
    assert "-accel tcg,thread=single" in said[0]
    assert "memory-backend-file,id=kvmmu-ram,size=16777216" in said[0]
    assert shown[-1].records == 5
    with Reader(str(tmp_path / "x.kmr")) as reader:
        header = reader.header
        assert header.memory == (
            f.Region(0, 0xC0000, "ram"),
            f.Region(0x10_0000, 0xF0_0000, "ram", "ram", 0x10_0000),
            f.Region(0xC0000, 0x20000, "rom", "pc.rom"),
        )
        assert (header.cpus, header.maxphyaddr, header.features) == (2, 40, ("nx", "la57"))
        assert (header.entry, header.start, header.qemu) == (0x10_0000, "kernel", "10.0.2 (fake)")
        assert [reader.next() for _ in range(6)] == [f.K_REGS, f.K_PAGE, f.K_ACCESS, f.K_MAP, f.K_MMIO, 0]


@pytest.mark.parametrize(
    ("how", "cut", "reason"),
    [
        ("reset", False, "guest-reset"),
        ("triple", True, "the guest crashed (reset without asking for it)"),
        ("dies", True, "QEMU ended with status 3"),
        ("killed", True, "QEMU ended by signal 9"),
    ],
)
def test_the_file_says_how_the_guest_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, cut: bool, reason: str
) -> None:
    trailer = run(tmp_path, how, monkeypatch)
    assert (trailer.cut, trailer.reason, trailer.records) == (cut, reason, 5)
    with Reader(str(tmp_path / "x.kmr")) as reader:
        assert reader.cut == cut
        assert reader.skip(9) == 5


def test_ctrl_c_leaves_a_recording_that_says_it_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press() -> None:
        while not (tmp_path / "x.kmr").exists():
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    trailer = run(tmp_path, "hangs", monkeypatch)
    thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (trailer.cut, trailer.reason, trailer.records) == (True, "interrupted", 5)
    with Reader(str(tmp_path / "x.kmr")) as reader:
        assert reader.cut
        assert reader.skip(9) == 5


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("early", "failed to start or ended early with status 1"),
        ("silent", r"before the recording's start \(kernel\); nothing was recorded; --firmware"),
        ("old", "is QEMU 7.2.22, recording needs 10 or newer"),
        ("other", "is not QEMU's system emulator"),
    ],
)
def test_nothing_recorded_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, words: str) -> None:
    with pytest.raises(RecorderError, match=words):
        run(tmp_path, how, monkeypatch)
    assert not (tmp_path / "x.kmr").exists()


def test_a_full_disk_stops_the_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_QEMU", "hangs")
    with pytest.raises(RecorderError, match="the disk is full; nothing was recorded"):
        record(Order("/dev/full", (FAKE, "-m", "16"), Start(), 1), lambda _: None)


def test_no_qemu_and_no_command(tmp_path: Path) -> None:
    with pytest.raises(RecorderError, match="no such program; install QEMU 10"):
        record(Order(str(tmp_path / "x"), ("qemu-that-is-not-there",)), lambda _: None)
    with pytest.raises(RecorderError, match="behind --"):
        record(Order(str(tmp_path / "x"), ()), lambda _: None)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("kernel", Start()),
        ("firmware", Start("firmware")),
        ("user", Start("user")),
        ("port:0x5e9", Start("port", 0x5E9)),
    ],
)
def test_where_a_recording_starts(text: str, start: Start) -> None:
    assert Start.parse(text) == start
    assert str(start) == text


@pytest.mark.parametrize("text", ["", "port", "port:", "port:0x10000", "kernel:1", "later"])
def test_where_a_recording_cannot_start(text: str) -> None:
    with pytest.raises(RecorderError, match="must be kernel, firmware, user or port:NUMBER"):
        Start.parse(text)


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ([], 128 << 20),
        (["-m", "256"], 256 << 20),
        (["-m", "1G"], 1 << 30),
        (["-m", "size=512M,slots=2"], 512 << 20),
        (["-m", "1.5G"], 3 << 29),
    ],
)
def test_the_size_of_the_guests_ram(words: list[str], size: int) -> None:
    facts = survey(("qemu", *words))
    prepared = ready(*words)
    assert facts.ram_size == size
    assert f"memory-backend-file,id=kvmmu-ram,size={size},mem-path=/w/ram,share=on" in prepared.command


def test_what_is_there_is_kept_and_what_is_missing_is_added() -> None:
    words = ("-accel", "tcg", "-M", "q35,hpet=off", "-cpu", "max", "-kernel", "k")
    prepared, facts = ready(*words), survey(("qemu", *words))
    assert prepared.command[:3] == ("qemu", "-accel", "tcg,thread=single")
    assert "-accel" not in prepared.added
    assert (facts.machine, facts.cpu_model, facts.kernel) == ("q35", "max", "k")


def test_a_guests_own_shared_memory_file_is_used(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.touch()
    words = (
        "qemu",
        "-object",
        f"memory-backend-file,id=m,size=64M,mem-path={path},share=on",
        "-machine",
        "pc,memory-backend=m",
    )
    path.write_bytes(bytes(4096))
    with pytest.raises(RecorderError, match="the memory backend 'm' cannot be recorded"):
        survey(words)
    os.truncate(path, 64 << 20)
    assert survey(words).memories == (Memory("m", 64 << 20, str(path)),)
    assert "memory-backend=kvmmu-ram" not in prepare(words, "p.so", "fd=3", {}).command


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["-enable-kvm"], "'kvm' cannot be recorded"),
        (["-accel", "kvm"], "'kvm' cannot be recorded"),
        (["-machine", "q35,accel=kvm"], "'kvm' cannot be recorded"),
        (["-accel", "tcg,thread=multi"], "no order of events"),
        (["-m", "lots"], "memory size 'lots'"),
        (["-numa", "node,memdev=m"], "NUMA"),
        (["-machine", "memory-backend=m"], "the memory backend 'm' cannot be recorded"),
        (["-object", "memory-backend-file,id=m,size=1G,mem-path=/x", "-machine", "memory-backend=m"], "cannot be rec"),
        (["-mem-path", "/dev/hugepages"], "-mem-path clashes with recording: the guest's RAM is made a file"),
        (["-daemonize"], "-daemonize clashes with recording: the recorder waits"),
        (["--version"], "--version runs no guest"),
        (["-h"], "-h runs no guest"),
        (["-cpu", "help"], "-cpu help runs no guest"),
        (["-device", "pc-dimm,help"], "-device pc-dimm,help runs no guest"),
    ],
)
def test_guests_that_cannot_be_recorded(words: list[str], why: str) -> None:
    with pytest.raises(RecorderError, match=why):
        ready(*words)


def test_what_looks_like_a_clash_and_is_none() -> None:
    assert ready("-append", "help", "-name", "?").command[:5] == ("qemu", "-append", "help", "-name", "?")
    command = ready("-machine", "accel=tcg", "-M", "q35,accel=tcg,smm=on").command
    assert command[:5] == ("qemu", "-M", "q35,smm=on", "-accel", "tcg,thread=single")


@pytest.mark.parametrize(
    "backend",
    [
        "memory-backend-ram,id=m1,size=1G,merge=off",
        "memory-backend-memfd,id=m1,size=1G,merge=off,seal=on,share=off",
        '{"qom-type": "memory-backend-ram", "id": "m1", "size": "1073741824", "merge": "off"}',
    ],
)
def test_memory_that_may_be_plugged_in_becomes_a_shared_file(backend: str) -> None:
    words = ("-m", "1G,slots=2,maxmem=4G", "-object", backend, "-object", "rng-builtin,id=r")
    facts, prepared = survey(("qemu", *words)), ready(*words)
    assert facts.memories == (Memory("kvmmu-ram", 1 << 30, None), Memory("m1", 1 << 30, None))
    assert facts.hotplug
    kind, *pairs = prepared.command[4].split(",")
    assert kind == "memory-backend-file"
    assert {"id=m1", "merge=off", "mem-path=/w/m1", "share=on"} <= set(pairs)
    assert prepared.command[6] == "rng-builtin,id=r"
    assert prepared.command[4] in prepared.added


def test_memory_that_cannot_be_looked_at_is_known_to_be_so(tmp_path: Path) -> None:
    private = f"memory-backend-file,id=m1,size=1M,mem-path={tmp_path}"
    facts = survey(("qemu", "-object", private))
    assert ([memory.name for memory in facts.memories], facts.unknown) == (["kvmmu-ram"], ("m1",))
    assert private in ready("-object", private).command


def test_sizes() -> None:
    assert parse_size("4096", "B") == 4096
    assert parse_size("2k") == 2048


def test_the_memory_tree_of_a_machine_with_ram_above_4g() -> None:
    tree = """FlatView #0
 AS "cpu-smm-0", root: memory
  0000000000000000-00000000000bffff (prio 0, ram): kvmmu-ram

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): kvmmu-ram
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000c2fff (prio 0, ram): kvmmu-ram @00000000000c0000
  00000000000c3000-00000000000fffff (prio 0, rom): kvmmu-ram @00000000000c3000
  0000000000100000-000000007fffffff (prio 0, ram): kvmmu-ram @0000000000100000
  00000000fed00000-00000000fed003ff (prio 0, i/o): hpet
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
  0000000100000000-00000001ffffffff (prio 0, ram): kvmmu-ram @0000000080000000

FlatView #2
 AS "nothing", root: (none)
"""
    assert parse_memory_tree(tree, "kvmmu-ram") == (
        f.Region(0, 0xA0000, "ram"),
        f.Region(0xC0000, 0x3000, "ram", "ram", 0xC0000),
        f.Region(0xC3000, 0x3D000, "rom", "ram", 0xC3000),
        f.Region(0x10_0000, 0x7FF0_0000, "ram", "ram", 0x10_0000),
        f.Region(1 << 32, 1 << 32, "ram", "ram", 0x8000_0000),
        f.Region(0xFFFC_0000, 0x40000, "rom", "pc.bios"),
    )
    with pytest.raises(RecorderError, match="does not show the guest's RAM"):
        parse_memory_tree(tree, "another")


def test_what_changes_between_two_memory_maps() -> None:
    before = (
        f.Region(0, 0xA0000, "ram"),
        f.Region(0xC0000, 0x40000, "rom", "bios"),
        f.Region(0x10_0000, 0x1000, "ram"),
    )
    now = (
        f.Region(0, 0xA0000, "ram"),
        f.Region(0xA0000, 0x20000, "ram", "ram", 0xA0000),
        f.Region(0xC0000, 0x20000, "rom", "bios"),
        f.Region(0xE0000, 0x20000, "ram", "ram", 0xE0000),
    )
    assert map_changes(before, now) == (
        f.Region(0xA0000, 0x20000, "ram", "ram", 0xA0000),
        f.Region(0xE0000, 0x20000, "ram", "ram", 0xE0000),
        f.Region(0x10_0000, 0x1000, "io", "", 0),
    )
    assert map_changes(now, now) == ()


def test_where_kernels_lie(tmp_path: Path) -> None:
    image = tmp_path / "k"
    assert entry_range(None) == ANYWHERE
    image.write_bytes(b"anything")
    assert entry_range(str(image)) == ANYWHERE
    bzimage = bytearray(512 * 5 + 4096)
    bzimage[0x1F1] = 4
    bzimage[0x202:0x206] = b"HdrS"
    image.write_bytes(bzimage)
    assert entry_range(str(image)) == (0x10_0000, 0x10_1000)
    words = (
        0x1BADB002,
        1 << 16,
        -(0x1BADB002 + (1 << 16)) & 0xFFFF_FFFF,
        0x20_0000,
        0x20_0000,
        0x20_0800,
        0,
        0x20_0040,
    )
    image.write_bytes(b"".join(word.to_bytes(4, "little") for word in words) + bytes(2000))
    assert entry_range(str(image)) == (0x20_0040, 0x20_0041)
    with pytest.raises(RecorderError, match="cannot read the kernel"):
        entry_range(str(tmp_path / "none"))


NOTE = """
.section .note.xen, "a", @note
.long 4, 4, 18
.asciz "Xen"
.long 0x300010
"""
MULTIBOOT = ".long 0x1badb002, 0, -0x1badb002\n"


@pytest.mark.skipif(shutil.which("ld") is None, reason="needs ld")
@pytest.mark.parametrize("form", ["elf_i386", "elf_x86_64"])
@pytest.mark.parametrize(("more", "entry"), [("", 0x30_0005), (NOTE, 0x30_0010), (MULTIBOOT + NOTE, 0x30_0005)])
def test_an_elf_kernel_starts_at_its_entry(tmp_path: Path, form: str, more: str, entry: int) -> None:
    """A segment where SeaBIOS runs is no start: physical addresses, PVH notes and multiboot as QEMU takes them."""
    text = ".globl _start\n.fill 5, 1, 0x90\n_start: nop\n.fill 5000, 1, 0x90\n"
    (tmp_path / "a.s").write_text(f"{text}{more}.section .low, \"ax\"\n.fill 64, 1, 0x90\n")
    (tmp_path / "a.ld").write_text(
        "PHDRS { low PT_LOAD; text PT_LOAD; note PT_NOTE; }\nENTRY(_start)\n"
        "SECTIONS { .low 0xff000 : { *(.low) } :low\n"
        ".text 0x10300000 : AT(0x300000) { *(.text) } :text\n"
        ".notes 0x10310000 : AT(0x310000) { *(.note.xen) } :text :note }\n"
    )
    bits = "--32" if form == "elf_i386" else "--64"
    subprocess.run(["as", bits, "-o", tmp_path / "a.o", tmp_path / "a.s"], check=True)
    linker = ["ld", "-m", form, "-z", "max-page-size=4096", "-T", str(tmp_path / "a.ld")]
    subprocess.run([*linker, "-o", tmp_path / "k", tmp_path / "a.o"], check=True)
    assert entry_range(str(tmp_path / "k")) == (entry, entry + 1)


def test_a_damaged_elf_kernel(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(b"\x7fELF\x02" + bytes(20))
    with pytest.raises(RecorderError, match="is a damaged ELF file"):
        entry_range(str(tmp_path / "k"))


def test_the_plugin_is_built_once_and_again_when_its_source_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    built = plugin.build_plugin()
    assert built.parent == tmp_path / "kvmmu"
    stamp = built.stat().st_mtime_ns
    assert plugin.build_plugin() == built
    assert built.stat().st_mtime_ns == stamp
    monkeypatch.setattr(plugin, "_FLAGS", (*plugin._FLAGS, "-DNEW"))
    assert plugin.build_plugin() != built


def test_a_plugin_that_cannot_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(RecorderError, match=r"no C compiler .*install gcc"):
        plugin.build_plugin()
    monkeypatch.setenv("CC", "false")
    with pytest.raises(RecorderError, match="false cannot build QEMU's plugin"):
        plugin.build_plugin()
    monkeypatch.setenv("CC", "true")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(RecorderError, match="cannot write QEMU's plugin"):
        plugin.build_plugin()


def test_the_version_of_a_program_that_does_not_run(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    with pytest.raises(RecorderError, match="does not run"):
        find_qemu(str(program))
    assert find_qemu(sys.executable.replace(sys.executable, FAKE))[1] == "10.0.2 (fake)"
