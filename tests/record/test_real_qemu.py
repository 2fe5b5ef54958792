# SPDX-License-Identifier: GPL-2.0-only
"""Tiny guests under an installed QEMU >= 10: what happened is what was recorded."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from kvmmu.errors import RecorderError
from kvmmu.record import format as f
from kvmmu.record.qemu import find_qemu
from kvmmu.record.reader import Reader
from kvmmu.record.recorder import Order, Start, record
from oracle.recording_walker import check_recording

QEMU = "qemu-system-x86_64"
SMOKE = Path(__file__).parents[2] / "tools" / "smoke_guest.S"


def is_usable() -> bool:
    try:
        find_qemu(QEMU)
    except RecorderError:
        return False
    return all(shutil.which(tool) for tool in ("gcc", "as", "ld"))


pytestmark = [
    pytest.mark.skipif(not is_usable(), reason="needs QEMU 10, gcc and binutils"),
    pytest.mark.xdist_group("qemu"),
]


def build(source: str, work: Path) -> Path:
    """A flat multiboot image of ``source`` at 1 MiB."""
    (work / "guest.S").write_text(source)
    subprocess.run(["gcc", "-m32", "-nostdlib", "-c", "-o", work / "guest.o", work / "guest.S"], check=True)
    linker = ["ld", "-m", "elf_i386", "-Ttext", "0x100000", "--oformat", "binary"]
    subprocess.run([*linker, "-o", str(work / "guest"), str(work / "guest.o")], check=True)
    return work / "guest"


def run(source: str, work: Path, *more: str, start: str = "kernel") -> f.Trailer:
    """Record the guest that ``source`` assembles to."""
    command = (QEMU, "-cpu", "max,la57=off", "-m", "16", "-nodefaults", "-display", "none", "-no-reboot", *more)
    command += ("-kernel", str(build(source, work)))
    return record(Order(str(work / "x.kmr"), command, Start.parse(start), 1), lambda _: None)


def records(work: Path) -> list[tuple[int, ...]]:
    """(kind, ...) of each record."""
    seen: list[tuple[int, ...]] = []
    with Reader(str(work / "x.kmr")) as reader:
        while kind := reader.next():
            if kind in (f.K_ACCESS, f.K_STORE, f.K_MMIO):
                seen.append((kind, reader.gva, reader.gpa, reader.access))
            elif kind == f.K_REGS:
                seen.append((kind, reader.what, reader.cr3))
            else:
                seen.append((kind, reader.gva if kind == f.K_INVLPG else reader.gpa))
    return seen


def explained(work: Path) -> None:
    with Reader(str(work / "x.kmr")) as reader:
        found = check_recording(reader)
    assert found.bad == 0, "\n".join(found.wrong)


def test_one_of_everything(tmp_path: Path) -> None:
    trailer = run(SMOKE.read_text(), tmp_path)
    assert (trailer.cut, trailer.reason, trailer.stale) == (False, "guest-shutdown", 0)
    explained(tmp_path)
    seen = records(tmp_path)
    paged = seen[next(at for at, entry in enumerate(seen) if entry[0] == f.K_PAGE) :]
    # The page moves from 0x300000 to 0x302000 with a store to its table and an INVLPG.
    first = paged.index((f.K_ACCESS, 0x400000, 0x300000, f.K_WRITE))
    crossing = paged.index((f.K_ACCESS, 0x401000, 0x301000, f.K_WRITE))
    stored = paged.index((f.K_STORE, 0x203000, 0x203000, f.K_WRITE))
    flushed = paged.index((f.K_INVLPG, 0x400123))
    moved = paged.index((f.K_ACCESS, 0x400000, 0x302000, f.K_WRITE))
    reloaded = paged.index((f.K_REGS, f.W_CR3, 0x200000))
    again = paged.index((f.K_ACCESS, 0x400000, 0x302000, 0))
    assert first < crossing < stored < flushed < moved < reloaded < again
    assert (f.K_MMIO, 0xFEE00020, 0xFEE00020, 0) in paged


def test_from_the_firmware_on_the_memory_map_changes(tmp_path: Path) -> None:
    trailer = run(SMOKE.read_text(), tmp_path, "-vga", "std", start="firmware")
    assert trailer.stale == 0
    assert trailer.counts["map"] >= 3  # shadow RAM opened and closed, SMRAM
    explained(tmp_path)
    assert (f.K_INVLPG, 0x400123) in records(tmp_path)


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_ram_above_the_pci_hole(tmp_path: Path, machine: str) -> None:
    source = SMOKE.read_text().replace("movl    $0x300003, 0x203000", "movl $0x300003, 0x203000; movl $1, 0x20300c")
    trailer = run(source, tmp_path, "-machine", machine, "-m", "5G")
    assert trailer.stale == 0
    explained(tmp_path)
    assert any(entry[0] == f.K_ACCESS and entry[2] == 0x1_0030_1000 for entry in records(tmp_path))


def test_a_triple_fault_is_a_crash(tmp_path: Path) -> None:
    source = SMOKE.read_text().replace("mov     $0x604, %dx", "lidt 0; ud2; mov $0x604, %dx")
    trailer = run(source, tmp_path)
    assert (trailer.cut, trailer.reason) == (True, "the guest crashed (reset without asking for it)")
    explained(tmp_path)


def test_ctrl_c(tmp_path: Path) -> None:
    source = SMOKE.read_text().replace("mov     $0x604, %dx", "2: invlpg (%rdi); jmp 2b; mov $0x604, %dx")

    def press() -> None:
        while not (tmp_path / "x.kmr").exists():
            time.sleep(0.05)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    trailer = run(source, tmp_path)
    thread.join()
    assert (trailer.cut, trailer.reason) == (True, "interrupted")
    assert trailer.counts["invlpg"] > 1000
    explained(tmp_path)


def test_qemu_that_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(RecorderError, match="failed to start or ended early with status 1"):
        run(SMOKE.read_text(), tmp_path, "-machine", "no-such-machine")


def test_a_port_starts_the_recording(tmp_path: Path) -> None:
    source = SMOKE.read_text().replace("movq    $0x3333, (%rdi)", "out %al, $0x99; movq $0x3333, (%rdi)")
    run(source, tmp_path, start="port:0x99")
    explained(tmp_path)
    seen = records(tmp_path)
    assert seen[0][:2] == (f.K_REGS, f.W_INIT)
    assert (f.K_ACCESS, 0x400000, 0x302000, f.K_WRITE) in seen
    assert all(entry[2:3] != (0x300000,) for entry in seen)
