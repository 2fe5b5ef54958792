# SPDX-License-Identifier: GPL-2.0-only
"""What every access and every fault runs is C: no Python object arithmetic, calls or names in hot rooms.

Cython makes a local without a declared type a Python object where C might overflow, and a constant without a typed
alias a dictionary lookup; both are right, silent, and ten to a hundred times slower. Here the hot rooms are translated
and the C of their functions is searched for such operations, line by line. What raises, and what runs only while
somebody listens to a trace or a checker has armed the gate, may cost what it likes.
"""

from __future__ import annotations

import ast
import pathlib
import re
import shutil
from collections.abc import Iterator

import pytest

import house

#: Rooms that are hot as a whole, with the functions in them that are not: they run once per table, slot, register
#: change or invalidation, not per access or fault.
HOT = {
    "addr": (),
    # A node is made.
    "intervaltree": ("insert",),
    "host/frames": (
        *("alloc_block", "_alloc_slow", "_carve", "_break_down", "_free"),
        # Once per mapping, slot.
        *("take_words", "take_counts"),
    ),
    "host/mm": (),
    "host/ranges": (),
    "host/mmfault": ("_try_map_block", "_try_map_huge_zero", "_break_cow"),
    "host/pagetable": (
        *("announce", "has_pmd_table", "next_block", "may_map_block", "first_mapped", "map_pages", "split"),
    ),
    "host/vma": ("is_anonymous", "make_table", "piece"),
    "hw/cpu": ("_load_pdptrs_from", "invpcid", "is_canonical", "write_cr0", "write_cr4", "write_efer"),
    "hw/memory": ("read",),
    "hw/paging": (),
    "hw/tdp": (),
    "hw/floors": ("floor_of", "flush_space", "flush_non_global", "flush_pcid", "flush_current"),
    # The TLB without bounds, hw/kept, is a dictionary.
    "hw/tlb": (
        *("invlpg_space", "_sweep"),
        # Flushes by guest frame are a mode for tests.
        *("note_gfn", "flush_gfns"),
    ),
    "kvm/emulate": (),
    "kvm/guestmem": ("write_from_process",),
    "kvm/dirtylog": (),
    "kvm/invalidation": (),
    "kvm/memslots": ("_forbid_lpages", "alloc_lpage_info", "replace"),
    "kvm/mmu/change": (),
    "kvm/mmu/direct": (),
    "kvm/mmu/fastpf": (),
    "kvm/mmu/fault": (),
    "kvm/mmu/faultin": (),
    "kvm/mmu/gptewrite": (),
    # Of a sparse range a set of what is mapped is made.
    "kvm/mmu/gfnrange": ("unmap_rmaps", "mapped_rmaps", "zap_gfn_range"),
    "kvm/mmu/gpte": (),
    "kvm/mmu/hugepage": (),
    "kvm/mmu/leaf": (),
    "kvm/mmu/mmio": (),
    "kvm/mmu/page": (),
    "kvm/mmu/pagefault": (),
    "kvm/mmu/pages": (),
    "kvm/mmu/resync": ("sync_children",),
    "kvm/mmu/rmap": (),
    "kvm/mmu/role": (),
    "kvm/mmu/shadow": (),
    "kvm/mmu/shadowwalk": (),
    "kvm/mmu/spte": (),
    "kvm/mmu/track": (),
    "kvm/mmu/unsync": ("add", "next", "unsync_walk"),
    "kvm/mmu/walker": ("gva_to_gpa", "load_pdptrs"),
    "kvm/mmu/zap": ("zap_unsync_children",),
    "kvm/mode": (),
    "kvm/requests": (),
    "kvm/run": (),
    "kvm/vcpu": (),
    "record/cursors": ("load",),
    # The map and the set of tables are asked when the small caches before them do not know.
    "record/known": ("find_range", "change", "is_table", "add_table"),
    "record/reader": ("payload", "_load_block", "_read_map"),
    # Map changes, snapshots of tables, and what kvm emulates are played through Python.
    "replay/player": (
        *("fast_forward", "change_map", "settle", "play_page", "store_data", "fail", "fail_exception"),
        *("is_break", "play_access", "play_store", "play_mmio", "emulate_until_done", "verify_unfetchable"),
    ),
    "replay/registers": ("clean_pdptes", "_refuse", "check_features", "load_registers"),
    # A checker is told, asked and waited for through calls from Python to Python; so is who frees what RCU kept.
    "sync": ("announce", "must_yield", "wait", "call", "_end_of"),
}

# Boxing and unboxing of integers, lookups of names, arithmetic and comparisons of objects, calls from Python to Python.
_COSTLY = re.compile(
    r"\b(__Pyx_GetModuleGlobalName|__Pyx_GetBuiltinName|__Pyx_PyObject_(?:Fast|Vector)?[Cc]all\w*|__Pyx_PyObject_Compare\w+"
    r"|__Pyx_PyObject_GetAttr\w*|__Pyx_PyNumber_\w+|PyNumber_\w+|__Pyx_PyLong_(?:From|As)_\w+|__Pyx_PyLong_\w+ObjC"
    r"|__Pyx_PyLong_\w+CObj|__Pyx_PyInt_FromNumber|__Pyx_PyBool_\w+|PyLong_From\w+|PyObject_RichCompare\w*)\("
)
_FUNCTION = re.compile(r"^static [^;\n=]*?\b__pyx_f_\w+\([^;{}]*\) \{\n(.*?)^\}", re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


def costly_lines(c_code: str, source: str, file_name: str, cold: tuple[str, ...]) -> list[str]:
    """Each line of ``source`` whose translation does object operations, with one of them."""
    tree = ast.parse(source)
    allowed = set(_cold_lines(tree, cold))
    lines = source.splitlines()
    found = {}
    for body in _FUNCTION.findall(c_code):
        pieces = re.split(rf'/\* "(?:[^"]*/)?{re.escape(file_name)}":(\d+)\n', body)
        for number, piece in zip(map(int, pieces[1::2]), pieces[2::2], strict=True):
            operation = _COSTLY.search(_COMMENT.sub("", piece.partition("*/")[2]))
            if operation and number not in allowed:
                found[number] = f"{number}: {lines[number - 1].strip()} <- {operation[1]}"
    return [found[number] for number in sorted(found)]


def _cold_lines(tree: ast.Module, cold: tuple[str, ...]) -> Iterator[int]:
    # Lines that may cost: definitions, raising, tracing, announcing and waiting at the gate, and what is named as cold.
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) or _is_contradiction(node):
            yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)
        elif isinstance(node, ast.If) and re.search(
            r"\btrace\.on\b|\bgate\.armed\b|^self\.armed$|^event is not None$|^self\.on_record is not None$",
            ast.unparse(node.test),
        ):
            yield from range(node.body[0].lineno, (node.body[-1].end_lineno or 0) + 1)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("gate.wait"):
            yield node.lineno
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno
            if node.name in cold or node.name.startswith("__"):
                yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _is_contradiction(node: ast.AST) -> bool:
    # A method that raises, called as a statement.
    return isinstance(node, ast.Expr) and ast.unparse(node.value).startswith(("self.contradict(", "self._contradict("))


def _translate(package: pathlib.Path, room: str) -> str:
    main = pytest.importorskip("Cython.Compiler.Main", reason="translating a room needs Cython")
    source = package / f"{room}.py"
    options = main.CompilationOptions(
        compiler_directives=house.build_settings().DIRECTIVES, include_path=[str(package.parent)], language_level=3
    )
    result = main.compile_single(str(source), options, full_module_name="kvmmu." + room.replace("/", "."))
    assert result.c_file, f"{room} does not translate"
    return pathlib.Path(result.c_file).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    # A copy without extensions, so that the C files of the translation land outside of the tree.
    package = tmp_path_factory.mktemp("hot") / "kvmmu"
    shutil.copytree(house.PACKAGE, package, ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__", "recordings"))
    return package


def test_a_hot_room_is_not_compiled_as_one_that_runs_seldom() -> None:
    assert set(HOT) & set(house.build_settings().SELDOM) == set()


@pytest.mark.slow
@pytest.mark.xdist_group("hot_rooms")
@pytest.mark.parametrize("room", HOT)
def test_a_hot_room_does_no_object_operations(room: str, sources: pathlib.Path) -> None:
    source = sources / f"{room}.py"
    found = costly_lines(_translate(sources, room), source.read_text(encoding="utf-8"), source.name, HOT[room])
    assert not found, f"{room}.py: declare the locals in the header, give constants a typed alias:\n" + "\n".join(found)


def test_the_guard_finds_an_untyped_local_and_a_constant_without_an_alias(tmp_path: pathlib.Path) -> None:
    package = tmp_path / "kvmmu"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "planted.py").write_text(
        "BIT = 1 << 5\n_BIT = BIT\n\n\n"
        "def slow(word, level):\n    index = word >> (9 + 9 * level)\n    return index + 511\n\n\n"
        "def named(word):\n    return word & BIT\n\n\n"
        "def fast(word):\n    if word == 0:\n        raise ValueError(f'{word}: not 0')\n    return word & _BIT\n"
    )
    (package / "planted.pxd").write_text(
        "cdef unsigned long long _BIT\n"
        "cpdef unsigned long long slow(unsigned long long word, int level) except? 7\n"
        "cpdef unsigned long long named(unsigned long long word) except? 7\n"
        "cpdef unsigned long long fast(unsigned long long word) except? 7\n"
    )
    source = (package / "planted.py").read_text()
    c_code = _translate(package, "planted")
    assert [line.partition(":")[0] for line in costly_lines(c_code, source, "planted.py", ())] == ["6", "7", "11"]
    assert [line.partition(":")[0] for line in costly_lines(c_code, source, "planted.py", ("slow", "named"))] == []
