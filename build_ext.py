# SPDX-License-Identifier: GPL-2.0-only
"""What is compiled, and how: the one list of compiled rooms and their compiler settings.

Used by ``setup.py`` alone. A room is compiled from its ``.py`` with the ``.pxd`` beside it as header. Either all
rooms are compiled or none: a mixture would be a third build that nobody tests. Without a C compiler, the Python
headers or Cython, the package is built interpreted and says so; an error in a room itself is always fatal.

Environment:

``KVMMU_PURE=1``              build interpreted
``KVMMU_REQUIRE_COMPILED=1``  fail rather than fall back
``KVMMU_CFLAGS``              replaces ``-O3``, for a fast build while developing (``-O0``)
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import pathlib
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from typing import Any

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

#: Every compiled room, party by party. ``tests/test_headers.py`` holds it equal to the set of ``.pxd`` files.
COMPILED = [
    "addr",
    "ranges",
    "sync",
    "tracepoint",
    "hw/cpu",
    "hw/memory",
    "hw/paging",
    "hw/regs",
    "hw/tdp",
    "hw/tlb",
    "host/frames",
    "host/mm",
    "host/mmfault",
    "host/notifier",
    "host/pagetable",
    "host/vma",
    "kvm/emulate",
    "kvm/exception",
    "kvm/guestmem",
    "kvm/insn",
    "kvm/kvmtrace",
    "kvm/memslots",
    "kvm/requests",
    "kvm/run",
    "kvm/sregs",
    "kvm/stats",
    "kvm/svm",
    "kvm/vcpu",
    "kvm/vm",
    "kvm/mmu/change",
    "kvm/mmu/context",
    "kvm/mmu/direct",
    "kvm/mmu/dirty",
    "kvm/mmu/fastpf",
    "kvm/mmu/fault",
    "kvm/mmu/faultin",
    "kvm/mmu/gptewrite",
    "kvm/mmu/hugepage",
    "kvm/mmu/leaf",
    "kvm/mmu/mmio",
    "kvm/mmu/mmutrace",
    "kvm/mmu/page",
    "kvm/mmu/pagefault",
    "kvm/mmu/pages",
    "kvm/mmu/resync",
    "kvm/mmu/rmap",
    "kvm/mmu/role",
    "kvm/mmu/roots",
    "kvm/mmu/setup",
    "kvm/mmu/shadow",
    "kvm/mmu/shadowwalk",
    "kvm/mmu/spte",
    "kvm/mmu/track",
    "kvm/mmu/unsync",
    "kvm/mmu/walker",
    "kvm/mmu/zap",
    "record/encoder",
    "record/reader",
    "replay/player",
]

#: STYLE section 3: types come from the header, and the checks that Python makes are made by the tests instead.
DIRECTIVES = {
    "annotation_typing": False,
    "boundscheck": False,
    "cdivision": True,
    "initializedcheck": False,
    "language_level": 3,
    "wraparound": False,
}

#: Signed overflow wraps, as the words of the modelled machine do. Cython compares sizes of either sign on purpose.
FLAGS = ["-fwrapv", "-fno-strict-overflow", "-g0", "-Wno-sign-compare"]

#: Says why a build is interpreted; read by ``kvmmu --version``.
NOTE = "_build_note.txt"

_JOBS = 2
_SOURCES = pathlib.Path(__file__).parent / "src" / "kvmmu"


def wanted(variable: str) -> bool:
    """Whether ``variable`` is set to something other than nothing or ``0``."""
    return os.environ.get(variable, "") not in ("", "0")


def obstacle() -> str | None:
    """Why rooms cannot be compiled here, naming what to install; None if they can."""
    if wanted("KVMMU_PURE"):
        return "built with KVMMU_PURE"
    if importlib.util.find_spec("Cython") is None:
        return "built without Cython"
    return _toolchain_obstacle()


def _toolchain_obstacle() -> str | None:
    # Compile the smallest extension there is: the only test that covers wrappers, cross compilers and headers alike.
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "gcc")
    includes = [f"-I{sysconfig.get_path(name)}" for name in ("include", "platinclude")]
    with tempfile.TemporaryDirectory() as where:
        for text, missing in (
            (
                "int main(void) { return 0; }\n",
                f"built without a working C compiler ({compiler[0]}; Debian: apt-get install gcc)",
            ),
            ("#include <Python.h>\n", "built without the Python headers (Debian: apt-get install python3-dev)"),
        ):
            source = pathlib.Path(where, "probe.c")
            source.write_text(text, encoding="utf-8")
            command = [*compiler, *includes, "-c", str(source), "-o", str(source.with_suffix(".o"))]
            try:
                probe = subprocess.run(command, capture_output=True, check=False)
            except OSError:
                return missing
            if probe.returncode:
                return missing
    return None


def extensions() -> list[Extension]:
    """One extension for each room of :data:`COMPILED`; none where rooms cannot be compiled.

    Raises :class:`SystemExit` where ``KVMMU_REQUIRE_COMPILED`` forbids to fall back.
    """
    if not _builds():
        return []
    why = obstacle()
    if why is not None:
        if wanted("KVMMU_REQUIRE_COMPILED"):
            raise SystemExit(f"kvmmu: KVMMU_REQUIRE_COMPILED is set, and the rooms cannot be compiled: {why}")
        print(f"kvmmu: building interpreted (about 100 times slower): {why}", file=sys.stderr)
        return []
    optimise = shlex.split(os.environ.get("KVMMU_CFLAGS", "-O3"))
    return [
        Extension("kvmmu." + room.replace("/", "."), [f"src/kvmmu/{room}.py"], extra_compile_args=[*optimise, *FLAGS])
        for room in COMPILED
    ]


def _builds() -> bool:
    # Asking for metadata or packing an sdist compiles nothing, so it has nothing to say about compilers either.
    return not {"egg_info", "dist_info", "sdist", "clean"} & set(sys.argv[1:])


class BuildRooms(build_ext):
    """``build_ext`` that translates the rooms to C first."""

    def finalize_options(self) -> None:
        """Compile two rooms at a time unless told otherwise."""
        super().finalize_options()
        self.parallel: int = vars(self)["parallel"] or _JOBS

    def run(self) -> None:
        """Compile every room, or none."""
        _settle(_SOURCES if self.inplace else pathlib.Path(self.build_lib, "kvmmu"), self.extensions)
        if self.extensions:
            self._translate()
            super().run()

    def _translate(self) -> None:
        from Cython.Build import cythonize

        translated: list[Any] = cythonize(
            [Extension(extension.name, list(extension.sources)) for extension in self.extensions],
            build_dir="build/cython",
            compiler_directives=DIRECTIVES,
            nthreads=_JOBS,
            quiet=True,
            force=bool(self.force),
        )
        sources = {extension.name: extension.sources for extension in translated}
        for extension in self.extensions:
            extension.sources = sources[extension.name]


class BuildSources(build_py):
    """``build_py`` that leaves a note in a package without compiled rooms; runs where there is nothing to compile."""

    def run(self) -> None:
        """Copy the sources, and note why no room is compiled."""
        super().run()
        package = _SOURCES if self.editable_mode else pathlib.Path(self.build_lib, "kvmmu")
        _settle(package, self.distribution.ext_modules or [])


def _settle(package: pathlib.Path, extensions_built: list[Extension]) -> None:
    # An extension whose room is gone, or not compiled this time, would shadow the source.
    rooms = {extension.name for extension in extensions_built}
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        for built in package.rglob(f"*{suffix}"):
            name = ".".join(("kvmmu", *built.relative_to(package).parts))[: -len(suffix)]
            if name not in rooms:
                built.unlink()
    note = package / NOTE
    why = None if rooms else obstacle()
    if why is None:
        note.unlink(missing_ok=True)
    else:
        note.write_text(why + "\n", encoding="utf-8")
