# SPDX-License-Identifier: GPL-2.0-only
"""What is compiled, and how: the one list of compiled rooms and their compiler settings.

Used by ``setup.py`` alone. A room is compiled from its ``.py`` with the ``.pxd`` beside it as header. Either all
rooms are compiled or none: a mixture would be a third build that nobody tests. Without a C compiler, the Python
headers or Cython, the package is built interpreted and says so; an error in a room itself is always fatal.

Environment:

``KVMMU_PURE=1``              build interpreted
``KVMMU_REQUIRE_COMPILED=1``  fail rather than fall back
``KVMMU_CFLAGS``              replaces ``-O2`` and its like, for a fast build while developing (``-O0``)

A build goes on where the last one ended, in the same ``build/``: a room is translated and compiled again when it, a
header that it uses, or a setting has changed, or when the last build was interrupted in it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import importlib.machinery
import importlib.util
import multiprocessing
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

#: Every compiled room, party by party. ``tests/test_headers.py`` holds it equal to the set of ``.pxd`` files.
COMPILED = [
    "access",
    "addr",
    "door",
    "intervaltree",
    "sync",
    "tracepoint",
    "hw/cpu",
    "hw/floors",
    "hw/kept",
    "hw/memory",
    "hw/paging",
    "hw/regs",
    "hw/runner",
    "hw/stage2",
    "hw/tdp",
    "hw/tlb",
    "host/frames",
    "host/mm",
    "host/mmfault",
    "host/notifier",
    "host/pagetable",
    "host/ranges",
    "host/vma",
    "kvm/dirtylog",
    "kvm/emulate",
    "kvm/exception",
    "kvm/guestmem",
    "kvm/insn",
    "kvm/invalidation",
    "kvm/kvmtrace",
    "kvm/memslots",
    "kvm/mode",
    "kvm/policy",
    "kvm/requests",
    "kvm/run",
    "kvm/sregs",
    "kvm/stats",
    "kvm/svm",
    "kvm/vcpu",
    "kvm/vendor",
    "kvm/vm",
    "kvm/mmu/change",
    "kvm/mmu/context",
    "kvm/mmu/direct",
    "kvm/mmu/gfnrange",
    "kvm/mmu/gpte",
    "kvm/mmu/fastpf",
    "kvm/mmu/fault",
    "kvm/mmu/faultin",
    "kvm/mmu/gptewrite",
    "kvm/mmu/hugepage",
    "kvm/mmu/leaf",
    "kvm/mmu/mmio",
    "kvm/mmu/mmutrace",
    "kvm/mmu/nxpage",
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
    "kvm/mmu/tdpchange",
    "kvm/mmu/tdpiter",
    "kvm/mmu/tdpmap",
    "kvm/mmu/tdppass",
    "kvm/mmu/tdproots",
    "kvm/mmu/tdpsplit",
    "kvm/mmu/track",
    "kvm/mmu/unsync",
    "kvm/mmu/walker",
    "kvm/mmu/zap",
    "record/columns",
    "record/cursors",
    "record/encoder",
    "record/known",
    "record/reader",
    "replay/player",
    "replay/referee",
    "replay/registers",
]

#: Cython's own helpers (memoryviews above all), compiled once for all rooms. An extension, but not a room.
SHARED = "kvmmu._cyutility"

#: How far the compiler optimises; ``docs/performance.md`` has what each step costs and brings.
OPTIMISE = "-O2"

#: Rooms that every record of a replay runs through: they get more.
OFTEN = [
    "hw/cpu",
    "hw/memory",
    "hw/paging",
    "hw/tdp",
    "hw/tlb",
    "record/cursors",
    "record/known",
    "record/reader",
    "replay/player",
]

#: Rooms that run once per register change, guest, exception or event that somebody watches: they get less.
SELDOM = [
    "door",
    "tracepoint",
    "hw/stage2",
    "host/notifier",
    "kvm/exception",
    "kvm/insn",
    "kvm/kvmtrace",
    "kvm/sregs",
    "kvm/stats",
    "kvm/svm",
    "kvm/vendor",
    "kvm/vm",
    "kvm/mmu/context",
    "kvm/policy",
    "kvm/mmu/mmutrace",
    "kvm/mmu/nxpage",
    "kvm/mmu/roots",
    "kvm/mmu/setup",
    "kvm/mmu/tdproots",
    "record/columns",
    "record/encoder",
    "replay/referee",
]

#: STYLE section 3: types come from the header, and the checks that Python makes are made by the tests instead. What a
#: pickle of an object would hold is code that nobody calls, an eighth of a small room.
DIRECTIVES = {
    "annotation_typing": False,
    "auto_pickle": False,
    "boundscheck": False,
    "cdivision": True,
    "initializedcheck": False,
    "language_level": 3,
    "wraparound": False,
}

#: Rooms whose classes hold no circle, however many of them there are: the garbage collector need not look at them.
#: Cython takes ``no_gc`` in a header without a word, and without effect.
UNCOLLECTED = ["intervaltree", "host/vma"]

#: Signed overflow wraps, as the words of the modelled machine do. Cython compares sizes of either sign on purpose.
FLAGS = ["-fwrapv", "-fno-strict-overflow", "-g0", "-fno-asynchronous-unwind-tables", "-Wno-sign-compare"]

#: Small files: no names of local functions, no gaps between sections. Not with ``KVMMU_CFLAGS``: profilers need names.
LINKS = ["-Wl,-s", "-Wl,-z,noseparate-code"]

#: Says why a build is interpreted; read by ``kvmmu --version``.
NOTE = "_build_note.txt"

_TRANSLATED = "build/cython"
_SAY_EVERY = 10.0  # seconds between two lines of progress where nobody watches a terminal
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
    """:data:`SHARED` and one extension for each room of :data:`COMPILED`; none where rooms cannot be compiled.

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
    # The largest comes first, so that no CPU waits for it in the end.
    shared = Extension(SHARED, [f"src/{SHARED.replace('.', '/')}.c"], **_compiler_settings("-O1"))
    return [shared, *(_extension(room) for room in COMPILED)]


def _extension(room: str) -> Extension:
    optimise = "-O3" if room in OFTEN else "-O1" if room in SELDOM else OPTIMISE
    return Extension("kvmmu." + room.replace("/", "."), [f"src/kvmmu/{room}.py"], **_compiler_settings(optimise))


def _compiler_settings(optimise: str) -> dict[str, list[str]]:
    own = os.environ.get("KVMMU_CFLAGS")
    if own is not None:
        return {"extra_compile_args": [*shlex.split(own), *FLAGS]}
    return {"extra_compile_args": [optimise, *FLAGS], "extra_link_args": LINKS}


def _builds() -> bool:
    # Asking for metadata or packing an sdist compiles nothing, so it has nothing to say about compilers either.
    return not {"egg_info", "dist_info", "sdist", "clean"} & set(sys.argv[1:])


class BuildRooms(build_ext):
    """``build_ext`` that translates each room to C first, says how far it is, and can be interrupted."""

    def finalize_options(self) -> None:
        """Compile as many rooms at a time as there are CPUs unless told otherwise."""
        super().finalize_options()
        self.parallel: int = int(vars(self)["parallel"] or len(os.sched_getaffinity(0)))

    def run(self) -> None:
        """Compile every room, or none."""
        _settle(_SOURCES if self.inplace else pathlib.Path(self.build_lib, "kvmmu"), self.extensions)
        if self.extensions:
            super().run()

    def build_extensions(self) -> None:
        """Translate and compile what changed, each room in a process of its own."""
        progress = _Progress(sum(extension.name != SHARED for extension in self.extensions))
        # Forked, so that each process finds this command as it is.
        workers = concurrent.futures.ProcessPoolExecutor(
            self.parallel, multiprocessing.get_context("fork"), _become_worker, (self,)
        )
        try:
            pending = {
                workers.submit(_build_extension, number): extension.name
                for number, extension in enumerate(self.extensions)
            }
            for done in concurrent.futures.as_completed(pending):
                was_compiled = done.result()
                if pending[done] != SHARED:
                    progress.note(was_compiled)
            progress.end()
        except concurrent.futures.BrokenExecutor:
            raise CompileError(
                "a process that compiled rooms was killed (too little memory?); go on with make"
            ) from None
        finally:
            progress.leave_line()
            workers.shutdown(cancel_futures=True)

    def build_extension(self, ext: Extension) -> bool:
        """Bring one extension up to date; whether it had to be compiled. Runs in a worker."""
        ext.sources = _translate(ext, bool(self.force))
        built = pathlib.Path(self.get_ext_fullpath(ext.name))
        before = built.stat().st_mtime_ns if built.exists() else 0
        settings = repr((ext.extra_compile_args, ext.extra_link_args))
        with _step(pathlib.Path(self.build_temp, ext.name + ".made"), settings) as is_stale:
            if is_stale:
                built.unlink(missing_ok=True)
            super().build_extension(ext)
        return built.stat().st_mtime_ns != before


_command: BuildRooms


def _become_worker(command: BuildRooms) -> None:
    # An interrupt ends a worker without a word; the parent has the last one. Cython's trees are large and live
    # as long as a room's translation: looking for cycles in them at every turn is a fifth of its time.
    global _command  # noqa: PLW0603
    _command = command
    gc.set_threshold(200_000, 20, 20)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _build_extension(number: int) -> bool:
    return _command.build_extension(_command.extensions[number])


def _translate(extension: Extension, force: bool) -> list[str]:
    # Names of the C files of an extension, newer than all that they are made from.
    from Cython.Build import cythonize
    from Cython.Compiler.Errors import CompileError as TranslationError
    from Cython.Compiler.Options import get_directive_defaults

    # Cython knows the directive for one class, and so not by name here.
    get_directive_defaults().setdefault("no_gc", False)
    room = extension.name.removeprefix("kvmmu.").replace(".", "/")
    directives = DIRECTIVES | ({"no_gc": True} if room in UNCOLLECTED else {})
    settings = {"compiler_directives": directives, "shared_utility_qualified_name": SHARED}
    with _step(pathlib.Path(_TRANSLATED, extension.name + ".made"), repr(settings)) as is_stale:
        try:
            (translated,) = cythonize(
                [Extension(extension.name, list(extension.sources))],
                build_dir=_TRANSLATED,
                quiet=True,
                force=force or is_stale,
                **settings,
            )
        except TranslationError:
            raise CompileError(f"{extension.sources[0]}: Cython refuses it, for the reason above") from None
    return list(translated.sources)


@contextlib.contextmanager
def _step(stamp: pathlib.Path, settings: str) -> Iterator[bool]:
    # A step of the build, whose stamp holds the settings that it was last done with. Yields whether what the last time
    # left is of no use: it did not end, or had other settings. Cython and setuptools themselves go by age alone.
    is_stale = not stamp.is_file() or stamp.read_text(encoding="utf-8") != settings
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    yield is_stale
    stamp.write_text(settings, encoding="utf-8")


class _Progress:
    # How many rooms are compiled, on standard error: in place on a terminal, now and then a line elsewhere.

    def __init__(self, rooms: int) -> None:
        self.rooms = rooms
        self.current = 0
        self.compiled = 0
        self.start = self.said = time.monotonic()
        self.on_terminal = sys.stderr.isatty()
        self.is_within_line = False

    def note(self, was_compiled: bool) -> None:
        # One more room is up to date.
        self.current += 1
        self.compiled += was_compiled
        text = f"kvmmu: {self.current} of {self.rooms} rooms are compiled"
        if self.on_terminal:
            print(f"\r{text}", end="", file=sys.stderr, flush=True)
            self.is_within_line = True
        elif time.monotonic() - self.said >= _SAY_EVERY:
            print(text, file=sys.stderr, flush=True)
            self.said = time.monotonic()

    def leave_line(self) -> None:
        if self.is_within_line:
            print(file=sys.stderr, flush=True)
            self.is_within_line = False

    def end(self) -> None:
        # What was done, in place of the count.
        seconds = time.monotonic() - self.start
        text = f"kvmmu: compiled {self.compiled} of {self.rooms} rooms, {seconds:.0f} s"
        if not self.compiled:
            text = f"kvmmu: all {self.rooms} rooms were compiled already, {seconds:.0f} s"
        print(f"\r\x1b[K{text}" if self.is_within_line else text, file=sys.stderr, flush=True)
        self.is_within_line = False


class BuildSources(build_py):
    """``build_py`` that leaves a note in a package without compiled rooms; runs where there is nothing to compile."""

    def run(self) -> None:
        """Copy the sources, and note why no room is compiled."""
        super().run()
        package = _SOURCES if self.editable_mode else pathlib.Path(self.build_lib, "kvmmu")
        _settle(package, self.distribution.ext_modules or [])


def _settle(package: pathlib.Path, extensions_built: list[Extension]) -> None:
    # An extension whose room is gone, not compiled this time, or compiled for another Python, shadows a source.
    rooms = {extension.name for extension in extensions_built}
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    for built in [path for path in package.rglob("*") if path.name.endswith(suffixes)]:
        module, _, suffix = built.name.partition(".")
        name = ".".join(("kvmmu", *built.relative_to(package).parent.parts, module))
        if name not in rooms or f".{suffix}" != sysconfig.get_config_var("EXT_SUFFIX"):
            built.unlink()
    note = package / NOTE
    why = None if rooms else obstacle()
    if why is None:
        note.unlink(missing_ok=True)
    else:
        note.write_text(why + "\n", encoding="utf-8")
