# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu tables``: what the page tables of a recorded machine map at a record."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, UserError
from .output import Interrupted, complain, json_text
from .status import Status

if TYPE_CHECKING:
    from ..guest.ranges import Mapping
    from ..kvm.mmu.mappings import SpteRange
    from ..replay.player import Player
    from ..replay.tables import Tables


def command(
    recording: Annotated[
        str, typer.Argument(metavar="RECORDING", help="A recording (.kmr), or the name of a bundled one.")
    ],
    at: Annotated[
        int | None, typer.Option("--at", metavar="N", min=0, help="Look before record N is played; none: at the end.")
    ] = None,
    mmu: Annotated[
        str,
        typer.Option(
            metavar="none|shadow|tdp|tdp-legacy",
            help="none: no kvm; shadow: shadow paging; tdp: nested paging with the TDP MMU; tdp-legacy: with the "
            "legacy direct MMU.",
        ),
    ] = "shadow",
    of: Annotated[
        str, typer.Option(metavar="guest|kvm", help="Whose tables: the guest's own, or those that kvm built.")
    ] = "guest",
    cr3: Annotated[
        str | None,
        typer.Option(
            metavar="X", help="The tables of this CR3, a hex number; none: those that the CPUs use, each root once."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> Status:
    """List all that page tables map, as ranges of pages that are alike.

    Of the guest's tables a range has its gva, gpa, page size and rights (wux: write, user, execute; what any level
    forbids is missing). Of kvm's it has the address (a gva under shadow paging, else a gpa), gpa, hpa, page size,
    rights, flags such as accessed, dirty and host-writable, and the role of the tables that hold it.

    Ends with status 1 if model and machine disagreed about a translation on the way there.
    """
    from ..record.bundled import find_recording
    from ..record.reader import Reader
    from ..replay.replay import naming
    from ..replay.tables import guest_tables, kvm_tables, play_to

    if of not in ("guest", "kvm"):
        raise ConfigError(f"--of {of}: whose tables? take guest or kvm")
    if of == "kvm" and mmu == "none":
        raise ConfigError("--of kvm: --mmu none has no kvm; take --mmu shadow or --mmu tdp")
    wanted = None if cr3 is None else _parse_cr3(cr3)
    path = find_recording(recording)
    place = [0, at]
    try:
        with naming(path), Reader(str(path)) as reader:
            if loss := reader.loss():
                complain(f"warning: {loss}")
            place[1] = reader.total if at is None else at
            try:
                player = play_to(reader, mmu, at)
                found = kvm_tables(player, wanted) if of == "kvm" else guest_tables(player, wanted)
                _print(str(path), player, of, mmu, found, as_json)
            finally:
                place[0] = reader.position
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted at record {place[0]} of {place[1] or 'all'}") from None
    if player.mismatches:
        print(
            f"kvmmu: warning: {player.mismatches} mismatches on the way there (kvmmu run shows them)", file=sys.stderr
        )
        return Status.MISMATCH
    return Status.OK


def _parse_cr3(text: str) -> int:
    from ..decode.number import parse_number

    try:
        return parse_number(text).value
    except UserError as error:
        raise ConfigError(f"--cr3 {text}: {error}") from None


def _print(path: str, player: Player, of: str, mmu: str, found: list[Tables], as_json: bool) -> None:
    if as_json:
        tables = [_facts(of, one) for one in found]
        facts = {"recording": path, "at": player.reader.position, "mmu": mmu, "of": of, "tables": tables}
        print(json_text("tables", facts))
        return
    for number, one in enumerate(found):
        if number:
            print()
        for line in _lines(of, mmu, one):
            sys.stdout.write(line + "\n")


def _facts(of: str, one: Tables) -> dict[str, Any]:
    ranges = [_spte_facts(part) if of == "kvm" else _guest_facts(part) for part in one.ranges]  # type: ignore[arg-type]  # of says which kind the parts are
    return {
        "cpus": list(one.cpus),
        "cr3": one.cr3,
        "mode": one.mode,
        "root": one.root,
        "level": one.level,
        "ranges": ranges,
    }


def _guest_facts(part: Mapping) -> dict[str, Any]:
    return {
        "gva": part.gva,
        "gpa": None if part.reserved else part.gpa,
        "bytes": part.nr_bytes,
        "page_size": part.page_size,
        "rights": part.rights,
        "reserved": part.reserved,
    }


def _spte_facts(part: SpteRange) -> dict[str, Any]:
    from ..kvm.mmu.role import describe_role

    return {
        "start": part.start,
        "gpa": part.gpa,
        "hpa": part.hpa,
        "bytes": part.nr_bytes,
        "page_size": part.page_size,
        "rights": part.rights,
        "flags": list(part.flags),
        "role": part.role,
        "role_text": describe_role(part.role),
    }


def _lines(of: str, mmu: str, one: Tables) -> Iterator[str]:
    who = f"cpu {' '.join(map(str, one.cpus))}" if one.cpus else "no cpu now"
    if of == "guest":
        if one.root is None:
            yield f"{who}: paging is off"
            return
        yield f"{who}, cr3 {one.cr3:#x}, {one.mode}: the guest's tables below gpa {one.root:#x}"
        for part in one.ranges:
            yield _guest_line(part)  # type: ignore[arg-type]  # of says which kind the parts are
        return
    about = f"cr3 {one.cr3:#x}, " if mmu == "shadow" and one.mode != "none" else ""
    if one.root is None:
        yield f"{who}, {about}{one.mode}: kvm has no root"
        return
    yield f"{who}, {about}{one.mode}: kvm's tables below hpa {one.root:#x}, level {one.level}"
    for part in one.ranges:
        yield _spte_line(part)  # type: ignore[arg-type]  # of says which kind the parts are


def _guest_line(part: Mapping) -> str:
    from ..guest.ranges import size_name

    where = f"reserved {part.reserved:#x}" if part.reserved else f"gpa {part.gpa:#014x}"
    pages = part.nr_bytes // part.page_size
    end = part.gva + part.nr_bytes - 1
    return f"{part.gva:#018x}-{end:#018x}  {where}  {pages:>7} x {size_name(part.page_size):<3} {part.rights}"


def _spte_line(part: SpteRange) -> str:
    from ..guest.ranges import size_name
    from ..kvm.mmu.role import describe_role

    end = part.start + part.nr_bytes - 1
    hpa = "-" if part.hpa is None else f"{part.hpa:#014x}"
    pages = part.nr_bytes // part.page_size
    size, flags = size_name(part.page_size), " ".join(part.flags) or "no flags"
    return (
        f"{part.start:#018x}-{end:#018x}  gpa {part.gpa:#014x}  hpa {hpa:<14}  {pages:>7} x {size:<3} {part.rights}"
        f"  {flags}; {describe_role(part.role)}"
    )
