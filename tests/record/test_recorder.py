# SPDX-License-Identifier: GPL-2.0-only
"""How ``kvmmu record`` prepares a guest, and how a recording ends, with a stand-in for QEMU that ends in every way."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmmu.errors import ConfigError, RecorderError
from kvmmu.record import build_plugin as plugin
from kvmmu.record import format as f
from kvmmu.record.kernel_image import ANYWHERE, entry_range
from kvmmu.record.memmap import map_changes
from kvmmu.record.qemu import Memory, Prepared, find_qemu, parse_size, prepare, survey
from kvmmu.record.qmp import parse_memory_tree
from kvmmu.record.reader import Reader
from kvmmu.record.recorder import Order, Progress, Start, record
from kvmmu.record.writer import Writer

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


def wait_until(done: Callable[[], object]) -> None:
    """Wait up to 20 seconds."""
    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def wait_for_records(path: Path) -> None:
    """Wait until a block of records was written to ``path``."""
    wait_until(lambda: path.exists() and b"RECS" in path.read_bytes())


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


@pytest.fixture
def hangup() -> Iterator[None]:
    """The suite may itself run under nohup, whose children ignore SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_two_signals_at_once_are_one_wish_and_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def press() -> None:
        wait_for_records(tmp_path / "x.kmr")
        # As timeout does: the process, then its group.
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)

    before = [signal.getsignal(n) for n in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)]
    thread = threading.Thread(target=press)
    thread.start()
    trailer = run(tmp_path, "slow", monkeypatch)
    thread.join()
    assert [signal.getsignal(n) for n in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)] == before
    # The sixth record is what QEMU still had when it was told to end.
    assert (trailer.cut, trailer.reason, trailer.records, trailer.seen) == (True, "interrupted", 6, 1234)
    with Reader(str(tmp_path / "x.kmr")) as reader:
        assert reader.cut
        assert reader.skip(9) == 6


def test_a_signal_a_second_later_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press() -> None:
        wait_for_records(tmp_path / "x.kmr")
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    trailer = run(tmp_path, "deaf", monkeypatch)
    thread.join()
    assert (trailer.cut, trailer.reason, trailer.records) == (True, "interrupted", 5)


def start_recorder(output: Path, how: str, *more: str) -> subprocess.Popen[bytes]:
    """``kvmmu record`` of the stand-in, in a process of its own, whose errors go to a file beside ``output``."""
    program = (
        "import sys; from pathlib import Path; from kvmmu.record import recorder; from kvmmu.cli import main;"
        f"recorder.build_plugin = lambda: Path({str(output)!r});"
        f"sys.exit(main(['record', '-o', {str(output)!r}, *{more!r}, '--', {FAKE!r}, '-m', '16']))"
    )
    environment = os.environ | {"FAKE_QEMU": how, "FAKE_PID": str(output.with_suffix(".pid"))}
    with output.with_suffix(".err").open("wb") as errors:
        return subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=errors)


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_recorder_that_is_killed_leaves_what_was_seen(tmp_path: Path) -> None:
    output = tmp_path / "x.kmr"
    recorder = start_recorder(output, "watches")
    wait_for_records(output)
    time.sleep(1)
    recorder.kill()
    assert recorder.wait() == -signal.SIGKILL
    with Reader(str(output)) as reader:
        assert (reader.cut, reader.trailer, reader.total) == (True, None, 5)
    assert not list(Path("/dev/shm").glob("kvmmu-*"))
    pid = int(output.with_suffix(".pid").read_text())
    wait_until(lambda: not is_running(pid))
    # It stands in nobody's way but as a file that exists.
    again = start_recorder(output, "good")
    assert again.wait() == 2
    assert output.with_suffix(".err").read_text() == f"kvmmu: {output} exists; --force replaces it\n"
    assert start_recorder(output, "good", "--force").wait() == 0
    with Reader(str(output)) as reader:
        assert (reader.cut, reader.total) == (False, 5)


def test_qemu_that_is_killed_is_a_failure(tmp_path: Path) -> None:
    output = tmp_path / "x.kmr"
    recorder = start_recorder(output, "watches")
    wait_for_records(output)
    os.kill(int(output.with_suffix(".pid").read_text()), signal.SIGKILL)
    assert recorder.wait() == 4
    with Reader(str(output)) as reader:
        assert reader.trailer is not None
        assert (reader.cut, reader.total, reader.trailer.reason) == (True, 5, "QEMU ended by signal 9")
        # Counted until a moment before.
        assert (reader.trailer.seen, reader.trailer.left_out) == (1234, {"stale": 5})


def test_two_recordings_into_one_file_are_refused(tmp_path: Path) -> None:
    output = tmp_path / "x.kmr"
    first = start_recorder(output, "watches")
    wait_for_records(output)
    second = start_recorder(output, "good", "--force")
    assert second.wait() == 2
    assert output.with_suffix(".err").read_text() == f"kvmmu: {output}: another recording is being written to it\n"
    first.send_signal(signal.SIGINT)
    assert first.wait() == 130
    with Reader(str(output)) as reader:
        assert reader.total >= 5


def test_a_recording_that_fails_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.kmr").write_bytes(b"older")
    monkeypatch.setenv("FAKE_QEMU", "silent")
    with pytest.raises(ConfigError, match=r"x\.kmr exists; --force replaces it"):
        record(Order(str(tmp_path / "x.kmr"), (FAKE,)), lambda _: None)
    with pytest.raises(RecorderError, match="nothing was recorded"):
        record(Order(str(tmp_path / "x.kmr"), (FAKE,), force=True), lambda _: None)
    assert (tmp_path / "x.kmr").read_bytes() == b"older"
    with pytest.raises(ConfigError, match="cannot write the recording /no/such/x: No such file"):
        record(Order("/no/such/x", (FAKE,)), lambda _: None)


def test_for_so_many_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_QEMU", "slow")
    started = time.monotonic()
    trailer = record(Order(str(tmp_path / "x.kmr"), (FAKE,), seconds=1.5), lambda _: None)
    assert 1.5 <= time.monotonic() - started < 8
    assert (trailer.cut, trailer.reason, trailer.records) == (True, "1.5 seconds were over", 6)
    monkeypatch.setenv("FAKE_QEMU", "never")
    with pytest.raises(RecorderError, match=r"0\.5 seconds were over before the recording's start \(kernel\)"):
        record(Order(str(tmp_path / "y.kmr"), (FAKE,), seconds=0.5), lambda _: None)


@pytest.mark.parametrize(("count", "warns"), [(0, False), (1, True)])
def test_what_was_left_out_is_said_by_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, warns: bool
) -> None:
    """Above one in a thousand; the stand-in has seen 1234 accesses and left out 5 stale ones: that is above."""
    monkeypatch.setenv("FAKE_LEFT_OUT", str(700 * count))
    trailer = run(tmp_path, "good", monkeypatch)
    assert trailer.left_out == {"stale": 5} | ({"table-in-unknown-memory": 700} if count else {})
    assert trailer.warning() == (
        "57.1 % of the accesses were left out: 5 stale, 700 table-in-unknown-memory (docs/limits.md)"
        if warns
        else "0.4 % of the accesses were left out: 5 stale (docs/limits.md)"
    )
    assert f.Trailer(1, seen=10_000, stale=10).warning() is None
    assert f.Trailer(1, seen=10_000, stale=11).warning() is not None


def test_a_machine_of_512_gib_has_a_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_QEMU", "good")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record(Order(str(tmp_path / "x.kmr"), (FAKE, "-m", "512G"), Start(), 1), lambda _: None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
    whole = f.Header(1, (f.Region(0, 3 << 30, "ram"), f.Region(4 << 30, 509 << 30, "ram", "ram", 3 << 30)), 40)
    whole.check()
    with pytest.raises(RecorderError, match="this machine cannot be recorded: its backing memories have more than"):
        Writer(str(tmp_path / "y.kmr"), f.Header(1, (f.Region(0, 2 << 40, "ram"),), 48))


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
        (["-numa", "node,memdev=m"], "the memory backend 'm' cannot be recorded"),
        ([*(word for n in range(32) for word in ("-object", f"memory-backend-ram,id=m{n},size=1M"))], "33 memories"),
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


@pytest.mark.parametrize(
    ("nodes", "order"),
    [
        (["node,memdev=a", "node,memdev=b"], ["a", "b", "spare"]),
        (["node,nodeid=1,memdev=a", "node,nodeid=0,cpus=0-1,memdev=b"], ["b", "a", "spare"]),
        (["node,nodeid=0,memdev=b", "cpu,node-id=0,socket-id=0", "node,memdev=a"], ["b", "a", "spare"]),
    ],
)
def test_the_memory_of_numa_nodes_is_the_ram_the_first_node_s_first(nodes: list[str], order: list[str]) -> None:
    words = ["-m", "32M,maxmem=1G,slots=1"]
    for name in ("spare", "a", "b"):
        words += ["-object", f"memory-backend-ram,id={name},size=16M"]
    for node in nodes:
        words += ["-numa", node]
    facts, prepared = survey(("qemu", *words)), prepare(("qemu", *words), "p.so", "fd=3", dict.fromkeys("ab", "/w"))
    assert [memory.name for memory in facts.memories] == order
    assert (facts.ram_id, facts.ram_size) == (order[0], 16 << 20)
    assert not [word for word in prepared.command if "kvmmu-ram" in word]
    assert len([word for word in prepared.command if "memory-backend-file" in word and "share=on" in word]) == 2


def test_a_backend_of_two_nodes_is_left_for_qemu_to_refuse() -> None:
    node = ("-numa", "node,memdev=a")
    facts = survey(("qemu", "-object", "memory-backend-ram,id=a,size=16M", *node, *node))
    assert [memory.name for memory in facts.memories] == ["a"]


def test_nodes_without_memory_of_their_own_share_the_ram() -> None:
    assert survey(("qemu", "-m", "64", "-numa", "node", "-numa", "node,nodeid=1")).ram_id == "kvmmu-ram"


def test_a_kernel_that_the_first_memory_does_not_hold(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(bytes(0x202) + b"HdrS" + bytes(4096))
    words = ("-object", "memory-backend-ram,id=a,size=512K", "-numa", "node,memdev=a", "-kernel", str(kernel))
    with pytest.raises(RecorderError, match=r"^the first 0x80000 bytes of memory do not reach to 0x100000, where"):
        record(Order(str(tmp_path / "x.kmr"), (FAKE, *words), Start(), 1), lambda _: None)
    assert not (tmp_path / "x.kmr").exists()


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
    note = NOTE if NOTE in more else ""
    header = more.removesuffix(note)
    (tmp_path / "a.s").write_text(f'{text}{note}.section .low, "ax"\n{header}.fill 64, 1, 0x90\n')
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
