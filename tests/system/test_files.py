"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from terramind_plugin.errors import DataError
from terramind_plugin.system.files import completing, write_figure, write_lines, write_rows, write_text


@pytest.mark.parametrize("before", [None, "old"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(before: str | None, error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    if before is not None:
        path.write_text(before)

    def write() -> None:
        with completing(path) as partial:
            partial.write_text("half")
            assert not path.exists() or path.read_text() == before
            raise error

    with pytest.raises(error):
        write()
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == ({} if before is None else {"a.txt": before})


def test_what_is_complete_has_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    write_text(folder / "a.txt", "é\n")
    write_lines(folder / "b.txt", ["a", "b"])
    write_rows(folder / "c.csv", [["name", "value"], ["a, b", 0.5]])
    figure = Figure(figsize=(2, 1))
    write_figure(folder / "d.png", figure)
    assert (folder / "a.txt").read_text(encoding="utf-8") == "é\n"
    assert (folder / "b.txt").read_text() == "a\nb\n"
    with (folder / "c.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["name", "value"], ["a, b", "0.5"]]
    assert imread(folder / "d.png").shape == (110, 220, 4)
    assert len(list(folder.iterdir())) == 4
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1


def test_a_figure_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"d\.png cannot be written: .*choose another place"):
        write_figure(tmp_path / "file" / "d.png", Figure())


WRITER = """
import sys, time
from pathlib import Path
from terramind_plugin.system.files import completing

with completing(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    print(partial, flush=True)
    time.sleep(600)
"""


def _start_writer(path: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_goes_when_the_next_one_writes(tmp_path: Path) -> None:
    killed, _ = _start_writer(tmp_path / "a.txt")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    alive, used = _start_writer(tmp_path / "a.txt")  # removes what the first has left
    other = tmp_path / ".a.txt.tmp"
    other.write_text("mine")
    # Of another machine: only time tells.
    old, new = (tmp_path / f".b.txt.01234567-1-{end}.tmp" for end in ("aaaaaa", "bbbbbb"))
    for path in (old, new):
        path.write_text("half")
    os.utime(old, (time.time() - 10**5,) * 2)
    time.sleep(0.1)  # the folder is not listed at every write
    write_text(tmp_path / "a.txt", "whole")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a.txt", used, other, new])
    alive.kill()
    alive.communicate()


def test_long_names(tmp_path: Path) -> None:
    for name in ("n" * 255, "é" * 127):
        write_text(tmp_path / name, "whole")
        assert (tmp_path / name).read_text() == "whole"
    with pytest.raises(OSError, match="too long") as caught:
        write_text(tmp_path / ("n" * 256), "whole")
    assert caught.value.filename == str(tmp_path / ("n" * 256))
    assert len(list(tmp_path.iterdir())) == 2
