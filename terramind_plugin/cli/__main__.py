"""Runs the `terramind` command: python -m terramind_plugin.cli."""

import sys

from terramind_plugin.cli import main

if __name__ == "__main__":
    sys.exit(main())
