"""Entry point of `python -m terramind_plugin.cli`, which runs the `terramind` command."""

import sys

from terramind_plugin.cli import main

if __name__ == "__main__":
    sys.exit(main())
