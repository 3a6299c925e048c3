"""Compile the CPU kernels into the wheel where there is a compiler; all else is in pyproject.toml.

Without one, they are compiled when they are first needed (aent/entropy/kernels/build.py).
"""

import platform
import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

KERNELS = Path("aent", "entropy", "kernels")
build = runpy.run_path(str(Path(__file__).parent / "pipeline" / KERNELS / "build.py"))


class BuildWithKernels(build_py):
    """The package's files, and the libraries of every processor kind of this architecture."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        x86 = platform.machine() in ("x86_64", "AMD64")
        for variant in build["VARIANTS"] if x86 else ("portable",):
            try:
                build["build"](variant, Path(self.build_lib) / KERNELS)
            except OSError as error:
                self.announce(f"no kernels for {variant} in the wheel: {error}", level=3)


class PlatformWheel(bdist_wheel):
    """Tagged with the platform, for the libraries in it, but with any Python 3."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel})
