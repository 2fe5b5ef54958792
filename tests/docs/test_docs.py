# SPDX-License-Identifier: GPL-2.0-only
"""What the documentation says, held to it: links lead somewhere, examples run, tables name what exists."""

from __future__ import annotations

import ast
import doctest
import os
import pathlib
import re
import shlex
import subprocess
import sys
from contextlib import closing

import pytest

import house
from kvmmu.cli import main
from kvmmu.kvm.mmu.verdict import CAUSES, LIMITS
from kvmmu.record.blocks import BlockFile

PAGES = sorted(
    path for path in house.project_files() if path.suffix == ".md" and "data" not in path.relative_to(house.ROOT).parts
)
NAMES = [str(path.relative_to(house.ROOT)) for path in PAGES]

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Commands that need nothing but the package, and print the same everywhere.
_PURE_COMMANDS = ("decode", "dump")


def text_of(path: pathlib.Path) -> str:
    return path.read_text(encoding="utf-8")


def outside_fences(text: str) -> str:
    return _FENCE.sub("", text)


def anchors_of(text: str) -> set[str]:
    """The anchors that a page's headings make: lower case, blanks become hyphens, other signs go."""
    headings = re.findall(r"^#+ (.+)$", outside_fences(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def broken_links(path: pathlib.Path, text: str) -> list[str]:
    """Links of a page to files or headings that are not there. Other hosts are not asked."""
    broken = []
    for link in _LINK.findall(outside_fences(text)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        is_page = target.suffix == ".md" and target.is_file()
        if not target.exists() or (anchor and not (is_page and anchor in anchors_of(text_of(target)))):
            broken.append(link)
    return broken


def sessions_of(text: str) -> list[str]:
    """The fenced blocks that are Python sessions."""
    return [body for language, body in _FENCE.findall(text) if language == "python" and ">>>" in body]


def run_sessions(name: str, sessions: list[str]) -> tuple[int, str]:
    """Run the sessions of a page, one after the other with the same names. Returns failures and their report."""
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    test = doctest.DocTestParser().get_doctest("\n\n".join(sessions), {}, name, name, 0)
    runner.run(test, out=report.append)
    return runner.failures, "".join(report)


def commands_of(text: str) -> list[tuple[str, list[str]]]:
    """Indented ``$ kvmmu ...`` lines with the indented lines that follow each."""
    found: list[tuple[str, list[str]]] = []
    is_open = False
    for line in outside_fences(text).splitlines():
        if line.startswith("    $ "):
            found.append((line[6:], []))
            is_open = True
        elif line.startswith("    ") and is_open:
            found[-1][1].append(line[4:].rstrip())
        else:
            is_open = False
    return found


PURE = [
    (f"{name}: {command}", command, output)
    for name, path in zip(NAMES, PAGES, strict=True)
    for command, output in commands_of(text_of(path))
    if command.split()[0] == "kvmmu"
    and command.split()[1] in _PURE_COMMANDS
    and "|" not in command
    and output[-1:] != ["..."]
]


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_links_lead_somewhere(path: pathlib.Path) -> None:
    assert broken_links(path, text_of(path)) == []


@pytest.mark.parametrize("path", [path for path in PAGES if sessions_of(text_of(path))], ids=str)
def test_examples_run(path: pathlib.Path) -> None:
    failures, report = run_sessions(path.name, sessions_of(text_of(path)))
    assert failures == 0, report


@pytest.mark.parametrize(("command", "output"), [case[1:] for case in PURE], ids=[case[0] for case in PURE])
def test_commands_print_what_the_page_shows(
    command: str, output: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(shlex.split(command)[1:]) == 0
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == output


def test_the_readme_has_an_example_and_commands() -> None:
    text = text_of(house.ROOT / "README.md")
    assert len(sessions_of(text)) == 1
    assert [
        name
        for name in ("run", "record", "recordings", "info", "dump", "tables", "cut", "params", "decode")
        if f"**{name}**" not in text
    ] == []


def recording_row(path: pathlib.Path) -> list[str]:
    """The numbers of the README's table for a recording: accesses of the guest, records, bytes."""
    with closing(BlockFile(str(path))) as file:
        assert file.trailer is not None
        return [f"{file.trailer.seen:,}", f"{file.trailer.records:,}", f"{path.stat().st_size:,}"]


def test_the_readme_tells_each_bundled_recording() -> None:
    text = text_of(house.ROOT / "README.md").partition("## Recordings")[2]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    told = {row[0].strip("`"): row[2:] for row in rows}
    recordings = {path.stem: recording_row(path) for path in (house.PACKAGE / "recordings").glob("*.kmr")}
    assert told == recordings


def test_the_debugger_session_of_the_page_is_what_the_debugger_says() -> None:
    """Of all sessions of the page together; numbers of lines may differ."""
    text = (house.ROOT / "docs/stepping.md").read_text(encoding="utf-8")
    page = "".join(body for language, body in _FENCE.findall(text) if language == "pdb")
    head, *blocks = page.split("(Pdb) ")
    command, first = head.split("\n", 1)
    assert command == "$ KVMMU_PURE=1 python -m pdb examples/first_fault.py"
    commands = [block.split("\n", 1)[0] for block in blocks]
    wanted = [first, *(block.partition("\n")[2] for block in blocks)]
    done = subprocess.run(
        [sys.executable, "-m", "pdb", "examples/first_fault.py"],
        input="".join(f"{line}\n" for line in commands),
        env={**os.environ, "KVMMU_PURE": "1", "KVMMU_REQUIRE_COMPILED": ""},
        cwd=house.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    got = done.stdout.split("(Pdb) ")
    assert len(got) == len(wanted)
    for text_wanted, text_got in zip(wanted, got, strict=True):
        told = re.sub(r"\S*/(kvmmu|examples)/", r".../\1/", text_got)
        pair = [re.sub(r"(\.py)[:(]\d+\)?", r"\1:N", one) for one in (text_wanted, told)]
        assert doctest.OutputChecker().check_output(*pair, doctest.ELLIPSIS), (text_wanted, text_got)


def test_every_page_is_in_the_index() -> None:
    index = text_of(house.ROOT / "docs" / "README.md")
    pages = [path.name for path in (house.ROOT / "docs").glob("*.md") if path.name != "README.md"]
    assert [page for page in pages if f"({page})" not in index] == []


def test_the_fault_path_explains_every_cause_once() -> None:
    text = text_of(house.ROOT / "docs" / "fault-path.md").partition("## Causes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)
    assert rows == list(CAUSES[1:])


def test_the_fault_path_explains_every_limit_once() -> None:
    text = text_of(house.ROOT / "docs" / "fault-path.md").partition("## Limits")[2]
    rows = re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)
    assert sorted([*rows, "mapping"]) == sorted(LIMITS)


def test_the_design_has_every_room_of_the_inside() -> None:
    table = text_of(house.ROOT / "DESIGN.md").partition("## Rooms")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    named = {name: " C" in rest for cell in cells for name, rest in re.findall(r"`([\w/]+)`( C)?", cell)}
    parties = {
        "access",
        "lockorder",
        "addr",
        "page_types",
        "errors",
        "intervaltree",
        "sync",
        "params",
        "tracepoint",
        "world",
        "adjacent",
        "arguments",
        "guard",
        "door",
        "emulationfailure",
        "instructions",
        "ioctls",
        "parts",
        "calls",
        "process",
        "look",
        "hw",
        "host",
        "kvm",
        "guest",
    }
    rooms = {
        module.replace(".", "/")
        for module, path in house.modules().items()
        if module.split(".")[0] in parties and path.name != "__init__.py"
    }
    inside = {name for name in named if not (house.PACKAGE / name).is_dir()}
    assert inside == rooms
    assert {name for name in inside if named[name]} == set(house.headers()) & rooms


def test_a_page_defines_a_term_once() -> None:
    text = text_of(house.ROOT / "docs" / "terms.md").partition("## Old names")[0]
    terms = re.findall(r"^\| ([^|]+?) \|", text, re.MULTILINE)
    names = [name.strip() for term in terms for name in term.split(",") if term != "term" and "---" not in term]
    assert len(names) > 80
    assert [name for name in set(names) if names.count(name) > 1] == []


def cited_sections(source: str) -> set[str]:
    """The reference's titles that the docstrings of a module name."""
    cited = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            _, found, rest = " ".join((ast.get_docstring(node) or "").split()).partition("eference")
            cited |= {title for title in re.findall(r'"([^"]+)"', rest) if found and not title.startswith("KVM: ")}
    return cited


def test_every_source_that_a_room_cites_is_explained() -> None:
    text = text_of(house.ROOT / "docs" / "sources.md")
    missing = {
        name: titles
        for name, path in house.modules().items()
        if (titles := {title for title in cited_sections(text_of(path)) if f'"{title}"' not in text})
    }
    assert missing == {}
    assert cited_sections('"""A room. Reference: "MMIO", then "No such section"."""') == {"MMIO", "No such section"}


@pytest.mark.parametrize("link", ["no-such-page.md", "terms.md#no-such-heading", "#no-such-heading"])
def test_a_broken_link_is_found(link: str) -> None:
    page = house.ROOT / "docs" / "limits.md"
    assert broken_links(page, f"[x]({link})") == [link]


def test_a_wrong_example_is_found() -> None:
    failures, report = run_sessions("page", [">>> 1 + 1\n3\n"])
    assert failures == 1
    assert "Expected" in report


def test_a_command_with_its_output_is_found() -> None:
    text = "text\n\n    $ kvmmu decode pferr 6\n    W|U\n\nafter\n    no command\n"
    assert commands_of(text) == [("kvmmu decode pferr 6", ["W|U"])]
