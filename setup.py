# SPDX-License-Identifier: GPL-2.0-only
import pathlib
import sys

from setuptools import setup

# A build backend does not put the project's directory on the path.
sys.path.insert(0, str(pathlib.Path(__file__).parent))

from build_ext import BuildRooms, BuildSources, extensions

setup(ext_modules=extensions(), cmdclass={"build_ext": BuildRooms, "build_py": BuildSources})
