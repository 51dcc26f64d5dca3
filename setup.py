"""Puts configs/ into the wheel as terramind_plugin/configs, where `terramind new` finds them."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py

CONFIGS = Path(__file__).with_name("configs")


class BuildWithConfigurations(build_py):
    """Copies the configurations beside the modules; an editable install reads them in the clone."""

    def run(self) -> None:
        """Copy modules and configurations."""
        super().run()
        if not self.editable_mode:
            copytree(CONFIGS, Path(self.build_lib, "terramind_plugin", "configs"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigurations})
