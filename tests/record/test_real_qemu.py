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


# Two requests to QEMU's firmware configuration device, which copies from the kernel image: skip 0x200 bytes of it,
# then copy 8 bytes to entry 20 of the guest's table. Numbers are big endian.
DMA = """
        mov     $skip, %eax
        bswap   %eax
        mov     $0x518, %dx
        outl    %eax, %dx
        mov     $copy, %eax
        bswap   %eax
        outl    %eax, %dx
        mov     0x414000, %rbx
        mov     $0x604, %dx"""
DMA_DATA = """
        .balign 8
skip:   .byte   0, 0x11, 0, 0x0c, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0
copy:   .byte   0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0x20, 0x30, 0xa0
        .org    0x200
        .quad   0x304003
image_end:"""


def test_a_table_that_a_device_changed_is_recorded_again(tmp_path: Path) -> None:
    source = SMOKE.read_text().replace("        mov     $0x604, %dx", DMA).replace("image_end:", DMA_DATA)
    assert run(source, tmp_path).stale == 0
    explained(tmp_path)
    seen = records(tmp_path)
    assert seen.count((f.K_PAGE, 0x203000)) == 2
    assert seen.index((f.K_ACCESS, 0x414000, 0x304000, 0)) > max(
        at for at, entry in enumerate(seen) if entry == (f.K_PAGE, 0x203000)
    )


def test_wide_stores_of_fxsave_are_records(tmp_path: Path) -> None:
    # XMM0 lands on entry 20 of the table.
    source = SMOKE.read_text().replace(
        "mov     $0x604, %dx",
        "mov %cr4, %rax; or $0x600, %rax; mov %rax, %cr4; mov $0x304003, %eax; movq %rax, %xmm0; fxsave 0x203000;"
        "mov 0x414000, %rbx; mov $0x604, %dx",
    )
    assert run(source, tmp_path).stale == 0
    explained(tmp_path)
    seen = records(tmp_path)
    assert (f.K_STORE, 0x2030A0, 0x2030A0, f.K_WRITE) in seen
    assert (f.K_ACCESS, 0x414000, 0x304000, 0) in seen


def test_a_table_that_became_data_is_not_followed_until_it_is_a_table_again(tmp_path: Path) -> None:
    source = SMOKE.read_text().replace(
        "mov     $0x604, %dx",
        "mov $200, %ecx; 3: mov %rcx, 0x203800; loop 3b; movq $0x305003, 0x2030a8; mov 0x415000, %rbx; mov $0x604, %dx",
    )
    trailer = run(source, tmp_path)
    assert trailer.stale == 0
    assert 60 <= trailer.counts["store"] <= 70
    explained(tmp_path)
    seen = records(tmp_path)
    assert seen.count((f.K_PAGE, 0x203000)) == 2
    assert (f.K_ACCESS, 0x415000, 0x305000, 0) in seen


SEGMENTS = """
        .code32
        .globl _start
_start: jmp     begin
        .balign 4
header: .long   0x1badb002, 0x10000, -(0x1badb002 + 0x10000)
        .long   header, _start, image_end, image_end, _start
begin:  cli
        mov     $0x200000, %edi
        mov     $2048, %ecx
        xor     %eax, %eax
        rep stosl
        movl    $0x000083, 0x200000     // 4M: code and tables
        movl    $0x201003, 0x200004     // a table of 4K pages
        movl    $0x300003, 0x201000
        mov     $0x10, %eax
        mov     %eax, %cr4              // PSE
        mov     $0x200000, %eax
        mov     %eax, %cr3
        mov     $0x80000011, %eax
        mov     %eax, %cr0
        lgdt    gdtr
        ljmp    $8, $(high - 0x80000)
high:   mov     $0x10, %ax
        mov     %ax, %ds
        movl    $1, 0x300000            // linear 0x400000
        movl    $0x302003, 0x101000     // its table's entry
        invlpg  0x300010
        movl    $2, 0x300000
        mov     $0x18, %ax
        mov     %ax, %ss
        mov     $0x100, %esp
        push    %eax                    // linear 0x4000fc, 32 bits
        mov     $0x604, %dx
        mov     $0x2000, %ax
        outw    %ax, %dx
1:      hlt
        jmp     1b
        .balign 8
gdt:    .quad   0, 0x00cf9a080000ffff, 0x00cf92100000ffff, 0x00cf92400000ffff
gdtr:   .word   gdtr - gdt - 1
        .long   gdt
image_end:
"""


def test_segments_that_do_not_begin_at_0(tmp_path: Path) -> None:
    assert run(SEGMENTS, tmp_path).stale == 0
    explained(tmp_path)
    seen = records(tmp_path)
    first = seen.index((f.K_ACCESS, 0x400000, 0x300000, f.K_WRITE))
    flushed = seen.index((f.K_INVLPG, 0x400010))
    moved = seen.index((f.K_ACCESS, 0x400000, 0x302000, f.K_WRITE))
    assert first < flushed < moved
    fetches = [entry for entry in seen if entry[0] == f.K_ACCESS and entry[3] & f.K_FETCH]
    assert all(0x10_0000 <= gva == gpa < 0x10_1000 for _, gva, gpa, _ in fetches)


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
