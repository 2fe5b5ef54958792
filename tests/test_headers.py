# SPDX-License-Identifier: GPL-2.0-only
"""The header is the struct: each ``.pxd`` says what its ``.py`` holds; the compiled rooms are those with a header."""

from __future__ import annotations

import ast
import functools
import pathlib
import re

import pytest

import header_use
import house


def slots_of(source: str) -> dict[str, list[str] | None]:
    """The ``__slots__`` of each class of a room; None for a class without."""
    found: dict[str, list[str] | None] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            found[node.name] = None
            for statement in node.body:
                if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__slots__":
                    value = ast.literal_eval(statement.value)
                    found[node.name] = [value] if isinstance(value, str) else list(value)
    return found


def disagreements(source: str, header: str) -> list[str]:
    """How ``__slots__`` and declared fields differ, one line for each class."""
    slots = slots_of(source)
    wrong = []
    for name, declared in house.header_classes(header).items():
        if name not in slots:
            wrong.append(f"{name}: declared, not defined")
        elif slots[name] is None:
            wrong.append(f"{name}: no __slots__")
        elif sorted(slots[name] or []) != sorted(declared.fields):
            difference = set(slots[name] or []) ^ set(declared.fields)
            wrong.append(f"{name}: slots and fields differ in {sorted(difference) or 'count'}")
    return wrong


@pytest.mark.parametrize("room", list(house.headers()))
def test_slots_are_the_declared_fields(room: str) -> None:
    source = (house.PACKAGE / f"{room}.py").read_text(encoding="utf-8")
    assert disagreements(source, house.headers()[room].read_text(encoding="utf-8")) == []


def c_only_functions(header: str) -> set[str]:
    """Functions that a header declares for C alone (``cdef``), and that another room can therefore not import."""
    return set(re.findall(r"^cdef\s(?!class\b)[^(=:#\n]*?(\w+)\(", header, re.MULTILINE))


@functools.cache
def imported_names(source: str) -> set[tuple[str, str]]:
    """Each name that a room imports from its own package: the last part of the module's name, and the name."""
    return {
        (node.module.split(".")[-1], alias.name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.level and node.module
        for alias in node.names
    }


@pytest.mark.parametrize("room", list(house.headers()))
def test_a_function_that_other_rooms_import_is_cpdef(room: str) -> None:
    only_c = c_only_functions(house.headers()[room].read_text(encoding="utf-8"))
    stem = pathlib.PurePath(room).name
    users = {}
    for module, path in house.modules().items():
        names = {name for of, name in imported_names(path.read_text(encoding="utf-8")) if of == stem}
        if names & only_c:
            users[module] = sorted(names & only_c)
    assert users == {}


def test_a_function_for_c_alone_is_told_from_others() -> None:
    header = "cdef u64 walk(Vm vm) except? 1\ncpdef int look(int a)\ncdef u64 _ONE\ncdef class Page(Base):\n    pass\n"
    assert c_only_functions(header) == {"walk"}
    assert imported_names("from ..hw.paging import walk, look\nimport os\n") == {("paging", "walk"), ("paging", "look")}


def test_the_compiled_rooms_are_those_with_a_header() -> None:
    rooms = house.compiled_rooms()
    assert sorted(rooms) == sorted(house.headers())
    assert len(rooms) == len(set(rooms))


def test_every_header_has_its_room() -> None:
    assert [room for room in house.headers() if not (house.PACKAGE / f"{room}.py").is_file()] == []


HEADER = """
cdef class Page(Base):
    # A comment: cdef int nothing
    cdef readonly u64 gfn, pfn      # two of them
    cdef public object slot
    cdef u64 pdptrs[4]
    cdef u64[::1] words
    cdef const u8[:, ::1] bytes_
    cdef Page next
    @cython.locals(index=u64,
                   end=u64)
    cpdef u64 read(self, u64 index,
                   bint quick) except? 1
    cdef int look(self) except -1

cdef u64 _ONE
"""


def test_fields_of_every_form_are_read_from_a_header() -> None:
    fields = house.header_classes(HEADER)["Page"].fields
    assert fields == ["gfn", "pfn", "slot", "pdptrs", "words", "bytes_", "next"]


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ('class Page:\n    __slots__ = ("gfn", "pfn", "slot", "pdptrs", "words", "bytes_")\n', "['next']"),
        ("class Page:\n    pass\n", "no __slots__"),
        ("class Other:\n    pass\n", "not defined"),
    ],
)
def test_a_disagreement_is_found(source: str, wrong: str) -> None:
    assert [line for line in disagreements(source, HEADER) if wrong in line]


# Nothing too much.


@pytest.mark.parametrize("room", list(house.headers()))
def test_every_typed_local_is_one_of_the_function(room: str) -> None:
    source = (house.PACKAGE / f"{room}.py").read_text(encoding="utf-8")
    assert header_use.unknown_locals(source, house.headers()[room].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("room", list(house.headers()))
def test_every_cimported_name_is_used(room: str) -> None:
    source = (house.PACKAGE / f"{room}.py").read_text(encoding="utf-8")
    header = house.headers()[room].read_text(encoding="utf-8")
    assert header_use.unused_cimports(source, header) == []
    assert header_use.needs_cython(header)


def test_every_locals_line_of_every_header_is_read() -> None:
    headers = [path.read_text(encoding="utf-8") for path in house.headers().values()]
    lines = sum(header.count("@cython.locals(") for header in headers)
    assert lines > 200
    assert sum(len(header_use.typed_locals(header)) for header in headers) == lines
    cimported = sum(len(re.findall(r"^from .* cimport ", header, re.MULTILINE)) for header in headers)
    assert cimported > 300
    assert sum(len(header_use.CIMPORT.findall(header)) for header in headers) == cimported


ROOM = """
from .other import look, Page, Word, find
from .pages import Leaf


def walk(vm, table: Page, hpa: Word):
    for place in vm:
        step: Leaf = look(place)
    return [entry for entry in step]


class Walker:
    def walk(self, first):
        with self.lock as held:
            last = (found := first)
        return find
"""

ROOM_HEADER = """
cimport cython
from ..addr cimport u32, u64, gfn_t, hpa_t as hpa, pfn_t
from .other cimport look, find, Page, Word    # and, in a comment, Nothing
from .pages cimport (Leaf,
                     Table, Walk)

cdef u64 ONE

@cython.locals(place=hpa, step=u64, table=Table,
               entry=u64, depth=int)
cpdef u64 walk(object vm, Page table, u64 hpa) except? 1

cdef class Walker:
    cdef Walk one
    @cython.locals(held=object, last=u64, found=u64, first=u64, place=u64)
    @cython.final
    cpdef walk(self, u64 first)
"""


def test_typed_locals_that_a_function_does_not_have_are_found() -> None:
    """``entry`` is a comprehension's own; a method's names are not those of a function with its name."""
    assert header_use.unknown_locals(ROOM, ROOM_HEADER) == [
        ("", "walk", "entry"),
        ("", "walk", "depth"),
        ("Walker", "walk", "place"),
    ]
    assert header_use.unknown_locals(ROOM.replace("def walk(vm", "def go(vm"), ROOM_HEADER)[0] == ("", "walk", "place")


def test_cimported_names_that_nothing_uses_are_found() -> None:
    """A name in an annotation is not used; one in a comment is not either."""
    assert header_use.unused_cimports(ROOM, ROOM_HEADER) == [
        ("..addr", "u32"),
        ("..addr", "gfn_t"),
        ("..addr", "pfn_t"),
        (".other", "Word"),
        (".pages", "Leaf"),
    ]


@pytest.mark.parametrize(
    ("header", "needs"), [(ROOM_HEADER, True), ("cimport cython\ncdef u64 ONE\n", False), ("", True)]
)
def test_a_header_that_cimports_cython_for_nothing_is_found(header: str, needs: bool) -> None:
    assert header_use.needs_cython(header) == needs
