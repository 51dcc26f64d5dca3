"""The `terramind` command, and commands made from functions: arguments, configuration files, help."""

from terramind_plugin.cli.dispatch import main as main
