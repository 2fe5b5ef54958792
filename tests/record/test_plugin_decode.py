# SPDX-License-Identifier: GPL-2.0-only
"""The plugin reads the operand of an instruction as the assembler wrote it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from kvmmu.record.build_plugin import SOURCE

pytestmark = pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("objcopy")), reason="needs gcc and binutils")

# Prints the decoded operand of the INVLPG in a file of raw bytes: base index scale displacement segment size
# rip-relative.
PROGRAM = """
#include <stdio.h>
#include <stdlib.h>
#include "plugin_decode.h"
int main(int argc, char **argv)
{
    static const char *names[] = {"ax", "cx", "dx", "bx", "sp", "bp", "si", "di",
                                  "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
                                  "ip", "fl", "cs", "ss", "ds", "es", "fs", "gs"};
    unsigned char b[16] = {0};
    int bits = atoi(argv[1]);
    FILE *in = fopen(argv[2], "rb");
    size_t length = fread(b, 1, 16, in);
    struct prefixes p;
    size_t at = skip_prefixes(b, length, bits, &p);
    int size = bits == 64 ? (p.address ? 32 : 64) : (bits == 32) != p.address ? 32 : 16;
    struct operand o = {.segment = p.segment};
    int rex = p.rex | (bits == 64 ? 256 : 0);
    if (b[at] != 0x0f || b[at + 1] != 1 || !decode_operand(b + at + 2, length - at - 2, size, rex, &o))
        return 1;
    printf("%s %s %d %d %s %d %d", o.base < 0 ? "-" : names[o.base], o.index < 0 ? "-" : names[o.index],
           o.index < 0 ? 0 : o.scale, o.displacement, names[o.segment], o.size, o.rip_relative);
    return 0;
}
"""

CASES = [
    (64, "invlpg (%rdi)", "di - 0 0 ds 64 0"),
    (64, "invlpg 0x12(%rax)", "ax - 0 18 ds 64 0"),
    (64, "invlpg -8(%rbp)", "bp - 0 -8 ss 64 0"),
    (64, "invlpg (%rsp)", "sp - 0 0 ss 64 0"),
    (64, "invlpg 0x12345678(%r13,%r12,8)", "r13 r12 3 305419896 ds 64 0"),
    (64, "invlpg (%r12)", "r12 - 0 0 ds 64 0"),
    (64, "invlpg (,%rcx,4)", "- cx 2 0 ds 64 0"),
    (64, "invlpg 0x100(%rip)", "- - 0 256 ds 64 1"),
    (64, "invlpg -0x1000", "- - 0 -4096 ds 64 0"),
    (64, "invlpg %gs:0x40(%rdx)", "dx - 0 64 gs 64 0"),
    (64, "invlpg %fs:(%r9,%r15,2)", "r9 r15 1 0 fs 64 0"),
    (64, "invlpg (%eax)", "ax - 0 0 ds 32 0"),
    (32, "invlpg (%eax)", "ax - 0 0 ds 32 0"),
    (32, "invlpg 0x12345678", "- - 0 305419896 ds 32 0"),
    (32, "invlpg 4(%ebp,%edi,2)", "bp di 1 4 ss 32 0"),
    (32, "invlpg %ss:(%ebx)", "bx - 0 0 ss 32 0"),
    (32, "invlpg %cs:4(%esp)", "sp - 0 4 cs 32 0"),
    (32, "invlpg (%bx,%si)", "bx si 0 0 ds 16 0"),
    (16, "invlpg (%bp,%di)", "bp di 0 0 ss 16 0"),
    (16, "invlpg 0x1234", "- - 0 4660 ds 16 0"),
    (16, "invlpg -2(%bp)", "bp - 0 -2 ss 16 0"),
    (16, "invlpg 0x1234(%bx)", "bx - 0 4660 ds 16 0"),
    (16, "invlpg %es:(%si)", "si - 0 0 es 16 0"),
    (16, "invlpg (%ecx,%edx,8)", "cx dx 3 0 ds 32 0"),
]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("decode")
    (work / "p.c").write_text(PROGRAM)
    command = ["gcc", "-Wall", "-Werror", f"-I{SOURCE.parent}", "-o", str(work / "p"), str(work / "p.c")]
    subprocess.run(command, check=True)
    return work / "p"


@pytest.mark.parametrize(("bits", "text", "expected"), CASES, ids=[f"{bits}: {text}" for bits, text, _ in CASES])
def test_an_operand(reader: Path, tmp_path: Path, bits: int, text: str, expected: str) -> None:
    (tmp_path / "a.s").write_text(f".code{bits}\n{text}\n")
    wide = "--64" if bits == 64 else "--32"
    subprocess.run(["as", wide, "-o", str(tmp_path / "a.o"), str(tmp_path / "a.s")], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", str(tmp_path / "a.o"), str(tmp_path / "a")], check=True)
    done = subprocess.run([str(reader), str(bits), str(tmp_path / "a")], capture_output=True, text=True, check=True)
    assert done.stdout == expected
