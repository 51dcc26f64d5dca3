"""The `terramind` command, and functions as commands: words, configuration files, help."""

from terramind_plugin.cli.dispatch import main as main
