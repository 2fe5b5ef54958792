# SPDX-License-Identifier: GPL-2.0-only
"""What is shipped: sdist and wheel hold everything, and an installation from them works without the source tree."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

import house
import kvmmu

# Compiles the whole package once more, so one worker makes its archives for all tests.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("packaging")]


def run(*command: str | pathlib.Path, cwd: pathlib.Path, **environment: str) -> str:
    """Standard output of a command that must succeed, in an environment without this checkout."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("KVMMU_", "PYTHON"))}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=keep | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The source archive, made from a copy of what is (or would be) committed."""
    where = tmp_path_factory.mktemp("sdist")
    tree = where / "tree"
    for path in house.project_files():
        copy = tree / path.relative_to(house.ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    run(sys.executable, "-m", "build", "-q", "--no-isolation", "--sdist", "-o", where, tree, cwd=where)
    (archive,) = where.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def unpacked(sdist: pathlib.Path) -> pathlib.Path:
    """The source archive's tree: all that the wheels are built from."""
    run("tar", "-xzf", sdist, cwd=sdist.parent)
    return sdist.parent / f"kvmmu-{kvmmu.__version__}"


@pytest.fixture(scope="module")
def wheel(unpacked: pathlib.Path) -> pathlib.Path:
    """The compiled wheel, built quickly rather than well."""
    where = unpacked.parent / "wheel"
    how = {"KVMMU_REQUIRE_COMPILED": "1", "KVMMU_CFLAGS": "-O0"}
    run(
        sys.executable, "-m", "build", "-q", "--no-isolation", "--wheel", "-o", where, unpacked, cwd=where.parent, **how
    )
    (built,) = where.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: pathlib.Path) -> pathlib.Path:
    """Directory of programs of a clean environment that holds the wheel and what it asks for."""
    environment = wheel.parent / "environment"
    run(sys.executable, "-m", "venv", environment, cwd=wheel.parent)
    constraints = house.ROOT / "constraints.txt"
    pip = (environment / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check")
    run(*pip, "-c", constraints, wheel, cwd=wheel.parent)
    return environment / "bin"


def shipped() -> set[str]:
    """Everything of the package that belongs into both archives, relative to ``src``."""
    wanted = {path for path in house.project_files() if path.is_relative_to(house.PACKAGE)}
    return {str(path.relative_to(house.PACKAGE.parent)) for path in wanted}


def test_the_source_archive_holds_the_whole_package_and_its_tests(unpacked: pathlib.Path) -> None:
    packed = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert {f"src/{name}" for name in shipped()} - packed == set()
    others = {"LICENSE", "Makefile", "constraints.txt", "build_ext.py", "setup.py", "tests/house.py", ".ci/run"}
    assert others - packed == set()
    assert not [name for name in packed if name.endswith((".so", ".pyc"))]


def test_the_wheel_holds_the_whole_package_and_every_compiled_room(wheel: pathlib.Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    assert shipped() - packed == set()
    assert "kvmmu/py.typed" in packed
    for room in [*house.compiled_rooms(), "_cyutility"]:
        assert [name for name in packed if name.startswith(f"kvmmu/{room}.") and name.endswith(".so")], room
    generated = {name for name in packed if name.endswith(".c")} - shipped()
    assert generated == set()


def test_a_wheel_of_a_built_tree_compiles_nothing_again(
    unpacked: pathlib.Path, wheel: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    compiler = tmp_path / "cc"
    real = sysconfig.get_config_var("CC") or "gcc"
    compiler.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/log\nexec {real} "$@"\n', encoding="utf-8")
    compiler.chmod(0o755)
    command = (
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-build-isolation",
        "--no-deps",
        "-w",
        tmp_path,
        unpacked,
    )
    how = {"KVMMU_REQUIRE_COMPILED": "1", "KVMMU_CFLAGS": "-O0", "CC": str(compiler)}
    run(*command, cwd=tmp_path, PIP_DISABLE_PIP_VERSION_CHECK="1", **how)
    called = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert called, "not even looked whether there is a compiler"
    assert [line for line in called if "/probe.c" not in line] == []
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert set(first.namelist()) == set(second.namelist())


def test_the_installed_program_says_that_it_is_compiled(installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    said = run(installed / "kvmmu", "--version", cwd=tmp_path)
    assert said == f"kvmmu {kvmmu.__version__}, compiled: all {len(house.compiled_rooms())} rooms\n"


def test_the_installed_program_runs(installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert "flush_on" in run(installed / "kvmmu", "params", cwd=tmp_path)
    if (house.PACKAGE / "cli" / "run.py").exists():
        assert '"mismatches": 0' in run(installed / "kvmmu", "run", "--until", "2000", "--json", cwd=tmp_path)


def test_a_wheel_built_interpreted_is_pure_and_says_so(unpacked: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = (sys.executable, "-m", "build", "-q", "--no-isolation", "--wheel", "-o", tmp_path, unpacked)
    run(*command, cwd=tmp_path, KVMMU_PURE="1")
    (built,) = tmp_path.glob("*.whl")
    assert built.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(built) as archive:
        assert [name for name in archive.namelist() if name.endswith(".so")] == []
        archive.extractall(tmp_path / "site")
    said = run(sys.executable, "-m", "kvmmu", "--version", cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert said == f"kvmmu {kvmmu.__version__}, interpreted: built with KVMMU_PURE\n"
