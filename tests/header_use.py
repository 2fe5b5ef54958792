# SPDX-License-Identifier: GPL-2.0-only
"""What a header says and nobody uses: typed locals that a function does not have, cimported names.

A name is used if the header's own declarations have it, or if the room's code has it outside of annotations (which
Cython does not read here). That attributes of a typed object have a type of their own is no use of that type's name:
Cython finds it through the header that declares the object.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

CIMPORT = re.compile(r"^from\s+(\S+)\s+cimport\s+(\(.*?\)|[^\n(]*)", re.DOTALL | re.MULTILINE)
_LOCALS = re.compile(r"@cython\.locals\((.*?)\)\s*\n\s*((?:@.*\n\s*)*)(?:cp?def)\s[^\n(]*?(\w+)\(", re.DOTALL)
_SCOPES = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda, ast.FunctionDef)
_CLASS = re.compile(r"^cdef\s+class\s+(\w+)", re.MULTILINE)


def _without_comments(header: str) -> str:
    # Of equal length, so that places in it are places in the header.
    return re.sub(r"#.*", lambda found: " " * len(found[0]), header)


def cimports(header: str) -> list[tuple[str, str]]:
    """(module, name as it is known here) of each cimported name."""
    found = []
    for match in CIMPORT.finditer(_without_comments(header)):
        for name in match[2].strip("()").split(","):
            if name.strip():
                found.append((match[1], name.split()[-1]))
    return found


def typed_locals(header: str) -> list[tuple[str, str, list[str]]]:
    """(class or nothing, function, names) of each ``@cython.locals(...)``."""
    text = _without_comments(header)
    classes = [(match.start(), match[1]) for match in _CLASS.finditer(text)]
    found = []
    for match in _LOCALS.finditer(text):
        line_start = text.rfind("\n", 0, match.start()) + 1
        owner = ""
        if text[line_start : match.start()].startswith((" ", "\t")):
            owner = [name for start, name in classes if start < match.start()][-1]
        found.append((owner, match[3], re.findall(r"(\w+)\s*=", match[1])))
    return found


def functions(source: str) -> dict[tuple[str, str], set[str]]:
    """Parameters and locals of each function of a module and of its classes."""
    found = {}
    tree = ast.parse(source)
    for owner, body in [
        ("", tree.body),
        *((node.name, node.body) for node in tree.body if isinstance(node, ast.ClassDef)),
    ]:
        for node in body:
            if isinstance(node, ast.FunctionDef):
                found[owner, node.name] = _own_names(node)
    return found


def _own_names(function: ast.FunctionDef) -> set[str]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    names = {argument.arg for argument in every if argument}
    for node in _walk_own(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return names


def _walk_own(node: ast.AST) -> Iterator[ast.AST]:
    # What is inside a comprehension, a lambda or a function of its own has its own names.
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, _SCOPES):
            yield child
            yield from _walk_own(child)


def names_in_code(source: str) -> set[str]:
    """Names that a module's code reads, annotations left out."""
    found: set[str] = set()

    class Reader(ast.NodeVisitor):
        def visit_Name(self, node: ast.Name) -> None:
            found.add(node.id)

        def visit_arg(self, node: ast.arg) -> None:
            """A parameter: its annotation does not count."""

        def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
            self.visit(node.target)
            if node.value:
                self.visit(node.value)

        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            for part in (*node.decorator_list, node.args, *node.body):
                self.visit(part)

    Reader().visit(ast.parse(source))
    return found


def unknown_locals(source: str, header: str) -> list[tuple[str, str, str]]:
    """(class or nothing, function, name) of each typed local that the function does not have."""
    known = functions(source)
    return [
        (owner, function, name)
        for owner, function, names in typed_locals(header)
        for name in names
        if name not in known.get((owner, function), set())
    ]


def unused_cimports(source: str, header: str) -> list[tuple[str, str]]:
    """(module, name) of each cimported name that neither the header's declarations nor the room's code use."""
    declared = CIMPORT.sub("", _without_comments(header))
    # In "pfn=pfn_t" only the type is a use.
    words = set(re.findall(r"(?<![\w.])(\w+)(?!\s*=[^=])", declared))
    used = words | names_in_code(source)
    return [(module, name) for module, name in cimports(header) if name not in used]


def needs_cython(header: str) -> bool:
    """Whether a header that cimports ``cython`` says anything with it."""
    text = _without_comments(header)
    return "cimport cython" not in text or "cython." in text.replace("cimport cython", "")
