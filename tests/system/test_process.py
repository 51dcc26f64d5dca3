"""Signals, locks, the date, and files that must not be overwritten."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from terramind_plugin.cli import main
from terramind_plugin.errors import ConfigError
from terramind_plugin.system.process import Stopped, StopSignals, locked, refuse_inputs, settle_status, today


def send(number: int, when: Callable[[], bool]) -> threading.Thread:
    """Send a signal to this process as soon as something holds."""

    def wait() -> None:
        while not when():
            time.sleep(0.002)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_ends_with_its_status(
    number: int, status: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    words = ["simulate", "--out", str(tmp_path / "data"), "--chips", "40", "--size", "64"]
    labels = tmp_path / "data" / "data" / "LabelHand"
    send(number, lambda: labels.is_dir() and any(labels.glob("*.tif")))
    assert main(words) == status
    assert capsys.readouterr().err == f"terramind: stopped by {signal.Signals(number).name}.\n"
    assert not list(tmp_path.rglob("*.tmp"))
    assert 0 < len(list(labels.glob("*.tif"))) < 40
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_signals_that_are_only_noted() -> None:
    with StopSignals() as signals:
        with signals.later():
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.number == signal.SIGINT
        with pytest.raises(Stopped) as stopped:
            signals.check()
        assert stopped.value.code == 130
        with signals.later(), pytest.raises(KeyboardInterrupt):  # twice: at once
            os.kill(os.getpid(), signal.SIGINT)


def test_signals_that_somebody_else_handles_as_lightning_does() -> None:
    def run() -> None:
        with StopSignals() as signals:
            ours = signal.getsignal(signal.SIGTERM)
            assert callable(ours)
            signal.signal(signal.SIGTERM, lambda number, frame: ours(number, frame))
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.number == signal.SIGTERM
            raise SystemExit  # as Lightning's SIGTERMException, which has no status

    with pytest.raises(Stopped) as stopped:
        run()
    assert stopped.value.code == 143


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.number is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_of_the_main_thread_nothing_changes() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with StopSignals():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


def test_status_of_further_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Stopped(signal.SIGTERM).code == 143
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Stopped(signal.SIGTERM).code == 0


@pytest.mark.parametrize(
    ("error", "stopped", "code"), [(SystemExit(), True, 143), (SystemExit(), False, None), (SystemExit(3), True, 3)]
)
def test_exceptions_of_lightning_get_a_status(error: SystemExit, stopped: bool, code: int | None) -> None:
    settle_status(error, stopped=stopped)
    assert error.code == code
    settle_status(ValueError(), stopped=True)


CHILD = """
import subprocess, sys
print(subprocess.Popen([sys.executable, "-m", "terramind_plugin.system.process", str(__import__("os").getpid()),
      "timeit", "-n", "1", "-r", "1", "import time; print(1, flush=True); time.sleep(60)"]).pid, flush=True)
sys.stdin.read()
"""


def test_a_process_ends_with_its_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "1\n"
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not _runs(child):
            return
        time.sleep(0.05)
    pytest.fail("the child goes on")


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_lock_is_held_once_and_keeps_what_its_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("kept")
    with locked(path, "busy"), pytest.raises(ConfigError, match="busy"), locked(path, "busy"):
        pytest.fail("held twice")
    with locked(path, "busy"):
        assert path.read_text() == "kept"
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(OSError, match="link"), locked(link, "busy"):
        pytest.fail("a link was followed")


@pytest.mark.parametrize("kind", ["itself", "link", "hard link", "another spelling"])
def test_inputs_are_not_overwritten_under_any_name(kind: str, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("x")
    names = {
        "itself": one,
        "link": other,
        "hard link": other,
        "another spelling": tmp_path / ".." / tmp_path.name / "one",
    }
    if kind == "link":
        other.symlink_to(one)
    if kind == "hard link":
        other.hardlink_to(one)
    with pytest.raises(ConfigError, match="is an input and would be overwritten"):
        refuse_inputs([tmp_path / "new", names[kind]], [None, one])
    refuse_inputs([tmp_path / "new"], [one, tmp_path / "not there", None])


@pytest.mark.parametrize("text", ["abc", "1e9", "9" * 30, "-" + "9" * 30])
def test_dates_that_are_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    with pytest.raises(ConfigError, match="SOURCE_DATE_EPOCH must be a number of seconds since 1970"):
        today()


def test_the_date_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")
    assert today() == "2026-01-01"
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    assert today() == time.strftime("%Y-%m-%d", time.gmtime())


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    """A process that is killed frees its lock a moment later."""
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); time.sleep(1)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "lock"], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "\n"
        with pytest.raises(ConfigError, match="busy"), locked(tmp_path / "lock", "busy"):
            pass
        with locked(tmp_path / "lock", "busy", patience=20.0):
            pass
