# SPDX-License-Identifier: GPL-2.0-only
"""Tiny guests under an installed QEMU >= 10: what happened is what was recorded."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmmu.errors import RecorderError
from kvmmu.record import format as f
from kvmmu.record.piece import cut
from kvmmu.record.qemu import find_qemu
from kvmmu.record.reader import Reader
from kvmmu.record.recorder import Order, Start, record
from kvmmu.replay.replay import Options, replay
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


POWER_OFF = "mov     $0x604, %dx"


def wait_for(done: Callable[[], object]) -> None:
    """Wait up to 30 seconds."""
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_recorder_that_is_killed_leaves_what_a_halted_guest_did(tmp_path: Path) -> None:
    """No callback runs while the guest halts: a thread of the plugin writes out what waits, and ends QEMU."""
    image = build(SMOKE.read_text().replace(POWER_OFF, f"mov 0x300, %rbx; 2: cli; hlt; jmp 2b; {POWER_OFF}"), tmp_path)
    output = tmp_path / "x.kmr"
    arguments = ["-m", "kvmmu", "record", "-o", str(output), "--", QEMU, "-cpu", "max,la57=off", "-m", "16"]
    arguments += ["-nodefaults", "-display", "none", "-pidfile", str(tmp_path / "pid"), "-kernel", str(image)]
    recorder = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.DEVNULL)
    wait_for(lambda: output.exists() and b"RECS" in output.read_bytes())
    time.sleep(1.5)
    pid = int((tmp_path / "pid").read_text())
    recorder.kill()
    recorder.wait()
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text())
    with Reader(str(output)) as reader:
        assert (reader.cut, reader.trailer) == (True, None)
    assert (f.K_ACCESS, 0x300, 0x300, 0) in records(tmp_path)
    explained(tmp_path)


def test_qemu_that_is_killed_leaves_what_a_halted_guest_did(tmp_path: Path) -> None:
    def kill() -> None:
        wait_for(lambda: b"RECS" in (tmp_path / "x.kmr").read_bytes() if (tmp_path / "x.kmr").exists() else False)
        time.sleep(1)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

    source = SMOKE.read_text().replace(POWER_OFF, f"mov 0x300, %rbx; 2: cli; hlt; jmp 2b; {POWER_OFF}")
    thread = threading.Thread(target=kill)
    thread.start()
    trailer = run(source, tmp_path, "-pidfile", str(tmp_path / "pid"))
    thread.join()
    assert (trailer.cut, trailer.reason) == (True, "QEMU ended by signal 9")
    assert trailer.seen > 10
    assert (f.K_ACCESS, 0x300, 0x300, 0) in records(tmp_path)


@pytest.mark.parametrize("size", ["64G", "512G"])
def test_a_machine_of_any_size(tmp_path: Path, size: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    trailer = run(SMOKE.read_text(), tmp_path, "-m", size)
    assert (trailer.cut, trailer.stale) == (False, 0)
    assert max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) < 400 << 10
    explained(tmp_path)


def test_a_store_to_the_entry_that_translates_it(tmp_path: Path) -> None:
    """The entry as it was before explains the store: the table maps itself, and takes itself away."""
    source = SMOKE.read_text().replace(
        POWER_OFF, f"movl $0x203003, 0x203010; movl $0x303003, 0x402010; mov %cr3, %rax; mov %rax, %cr3; {POWER_OFF}"
    )
    trailer = run(source, tmp_path)
    assert trailer.left_out == {}
    explained(tmp_path)
    assert (f.K_STORE, 0x402010, 0x203010, f.K_WRITE) in records(tmp_path)


# A page of the second node's memory, which begins at 16 MiB: made a table, whose page is in the first node's.
SECOND_NODE = f"""movl $0x1301003, 0x203008; movl $0, 0x20300c; invlpg 0x401000
        movq $0x300003, 0x401000
        movq $0x1302003, 0x401008
        movq $0x1301003, 0x202018
        mov 0x600000, %rbx
        movq $0x5a5a, 0x601000
        {POWER_OFF}"""


def test_memory_of_numa_nodes(tmp_path: Path) -> None:
    """Each node's backend is a memory of the recording; that of the first node, whatever its place, the RAM."""
    nodes = ["-object", "memory-backend-ram,id=far,size=16M", "-object", "memory-backend-memfd,id=near,size=16M"]
    nodes += ["-numa", "node,nodeid=1,memdev=far", "-numa", "node,nodeid=0,memdev=near", "-m", "32"]
    trailer = run(SMOKE.read_text().replace(POWER_OFF, SECOND_NODE), tmp_path, *nodes)
    assert (trailer.cut, trailer.left_out) == (False, {})
    explained(tmp_path)
    with Reader(str(tmp_path / "x.kmr")) as reader:
        assert reader.header.memories[0] == "ram"
        places = {(region.memory, region.gpa, region.size, region.offset) for region in reader.header.memory}
    assert ("far", 16 << 20, 16 << 20, 0) in places
    assert ("ram", 1 << 20, 15 << 20, 1 << 20) in places
    seen = records(tmp_path)
    assert (f.K_PAGE, 0x130_1000) in seen
    assert (f.K_ACCESS, 0x60_0000, 0x30_0000, 0) in seen
    assert (f.K_ACCESS, 0x60_1000, 0x130_2000, f.K_WRITE) in seen
    for mmu in ("none", "shadow", "tdp", "tdp-legacy"):
        result = replay(tmp_path / "x.kmr", Options(mmu))
        assert (result.mismatches, result.stopped) == (0, "end")


# A page of the memory that is plugged in at 4 GiB: waited for, and made a table.
PLUGGED = f"""movl $0x301003, 0x203008; movl $1, 0x20300c; invlpg 0x401000
6:      mov $4000000, %ecx
7:      loop 7b
        movq $0x5a5a, 0x401000
        cmpq $0x5a5a, 0x401000
        jne 6b
        movq $0x300003, 0x401000
        movabs $0x100301003, %rax
        mov %rax, 0x202018
        mov 0x600000, %rbx
        {POWER_OFF}"""


@pytest.mark.parametrize("named", [True, False])
def test_memory_that_is_plugged_in(tmp_path: Path, named: bool) -> None:
    """What the command line named is looked at; what was made later is left out, and that is said."""
    backend = {"qom-type": "memory-backend-ram", "id": "m1", "size": 128 << 20}

    def plug() -> None:
        wait_for(lambda: b"RECS" in (tmp_path / "x.kmr").read_bytes() if (tmp_path / "x.kmr").exists() else False)
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(tmp_path / "m"))
            lines = monitor.makefile("rw")
            commands: list[tuple[str, dict[str, object]]] = [("qmp_capabilities", {})]
            commands += [] if named else [("object-add", dict(backend))]
            commands += [("device_add", {"driver": "pc-dimm", "id": "d", "memdev": "m1"})]
            lines.readline()
            for name, arguments in commands:
                lines.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
                lines.flush()
                answer = lines.readline()
                assert "error" not in answer, answer

    more = ["-m", "16,slots=2,maxmem=1G", "-qmp", f"unix:{tmp_path}/m,server=on,wait=off"]
    more += ["-object", "memory-backend-ram,id=m1,size=128M"] if named else []
    thread = threading.Thread(target=plug)
    thread.start()
    trailer = run(SMOKE.read_text().replace(POWER_OFF, PLUGGED), tmp_path, *more)
    thread.join()
    assert not trailer.cut
    explained(tmp_path)
    seen = records(tmp_path)
    through = (f.K_ACCESS, 0x600000, 0x300000, 0)
    assert (f.K_MAP, 0x1_0000_0000) in seen
    if named:
        assert trailer.left_out == {}
        assert (f.K_PAGE, 0x1_0030_1000) in seen
        assert through in seen
    else:
        assert trailer.left_out == {"table-in-unknown-memory": 1}
        assert through not in seen
    for mmu in ("none", "shadow", "tdp-legacy"):
        assert replay(tmp_path / "x.kmr", Options(mmu)).mismatches == 0


def test_smm_is_marked_and_left_out_of_a_replay(tmp_path: Path) -> None:
    """SeaBIOS takes the SMI that a write to port 0xb2 raises; the program goes on with what it had."""
    source = SMOKE.read_text().replace(POWER_OFF, f"mov $0x55, %al; out %al, $0xb2; movq $7, (%rdi); {POWER_OFF}")
    trailer = run(source, tmp_path)
    assert trailer.smm > 0
    assert trailer.left_out == {}
    explained(tmp_path)
    marks: list[bool] = []
    kinds: list[tuple[int, int]] = []
    with Reader(str(tmp_path / "x.kmr")) as reader:
        while kind := reader.next():
            marks.append(bool(reader.smm))
            kinds.append((kind, reader.cr0))
    first, last = marks.index(True), len(marks) - 1 - marks[::-1].index(True)
    assert all(marks[first : last + 1])
    assert (kinds[first][0], kinds[first][1] & 0x8000_0001) == (f.K_REGS, 0)  # an SMI clears PE and PG
    assert kinds[last + 1][0] == f.K_REGS
    assert kinds[last + 1][1] >> 31 == 1
    assert any(kind == f.K_ACCESS for kind, _ in kinds[first:last])
    assert any(kind == f.K_ACCESS for kind, _ in kinds[last + 1 :])
    for mmu in ("none", "shadow", "tdp-legacy"):
        result = replay(tmp_path / "x.kmr", Options(mmu))
        assert (result.mismatches, result.smm_records) == (0, sum(marks))
    # A piece keeps the marks.
    cut(str(tmp_path / "x.kmr"), str(tmp_path / "p.kmr"), first + 1, len(marks))
    with Reader(str(tmp_path / "p.kmr")) as reader:
        inside = 0
        while reader.next():
            inside += reader.smm
    assert inside == sum(marks) - 1
    assert replay(tmp_path / "p.kmr", Options("shadow")).mismatches == 0


def test_a_64_bit_kernel_on_a_cpu_without_long_mode(tmp_path: Path) -> None:
    """It turns on PAE paging with entries of a level-4 table, whose W is reserved there; QEMU lets it pass."""
    source = SMOKE.read_text().replace("movl    $0x202003, 0x201000", "movl $0x000083, 0x201000")
    trailer = run(source, tmp_path, "-cpu", "qemu32")
    assert trailer.reason == "the guest crashed (reset without asking for it)"
    explained(tmp_path)
    seen = records(tmp_path)
    paged = seen.index((f.K_PAGE, 0x201000))
    assert any(entry[0] == f.K_ACCESS and entry[3] & f.K_FETCH for entry in seen[paged:])
    for mmu in ("none", "shadow", "tdp-legacy"):
        assert replay(tmp_path / "x.kmr", Options(mmu)).mismatches == 0


def test_ctrl_c(tmp_path: Path) -> None:
    source = SMOKE.read_text().replace("mov     $0x604, %dx", "2: invlpg (%rdi); jmp 2b; mov $0x604, %dx")

    def press() -> None:
        wait_for(lambda: b"RECS" in (tmp_path / "x.kmr").read_bytes() if (tmp_path / "x.kmr").exists() else False)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)
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
