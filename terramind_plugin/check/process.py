"""The process in which `terramind check` tries a step: limited in time and memory, and removed with all its files."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from terramind_plugin.check.step import not_tried, try_steps
from terramind_plugin.samples.checks.findings import Finding
from terramind_plugin.system.process import available, read_status

SECONDS = 60.0
"""Time limit of a step in seconds, without imports: check should be quicker than fit."""
SECONDS_TIMED = 600.0
"""Time limit of several measured steps in seconds."""
IMPORTS = 300.0
"""Time limit of the imports of a new process in seconds, generous for slow machines."""
GRACE = 60
"""Seconds beyond its limit after which the process ends itself, in case its parent has gone."""
PAUSE = 0.05
"""Seconds between two polls of the process."""
JOB, GO, READY, STAGE, RESULT, LOG = "job.json", "go", "ready", "stage", "result.json", "log"
"""Files of the scratch folder."""


class Attempt:
    """A step in a process of its own, which starts at once and waits for `finish`.

    On Linux without a GPU the process is a fork, which has all imports already. A fork keeps only one thread of its
    parent, so it computes with one thread if the parent has computed before. A fork cannot use its parent's GPU;
    with a GPU, and on other systems, a new process starts and imports while the parent goes on.

    Args:
        config: The YAML file.
        overrides: Further options, as for terramind fit, e.g. ["--trainer.max_epochs=3"].
        timed: See `try_steps`.
        fresh: Whether this process has imported torch for this check alone and has not computed yet.
        seconds: Time limit in seconds; None for the default.
        memory: Limit in bytes of the memory that the process may add; None for the free memory.
    """

    def __init__(
        self,
        config: Path,
        overrides: Sequence[str],
        *,
        timed: bool = False,
        fresh: bool = False,
        seconds: float | None = None,
        memory: int | None = None,
    ) -> None:
        self.seconds = (SECONDS_TIMED if timed else SECONDS) if seconds is None else seconds
        self.folder = Path(tempfile.mkdtemp(prefix="terramind-check-"))
        job = {
            "config": str(config), "overrides": list(overrides), "timed": timed, "memory": memory, "threads": fresh,
            "parent": os.getpid(), "seconds": self.seconds,
        }  # fmt: skip
        (self.folder / JOB).write_text(json.dumps(job), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None
        self._status: int | None = None
        if sys.platform == "linux" and not torch.cuda.device_count():
            self.pid = self._fork()
        else:
            command = [sys.executable, "-m", __name__, str(self.folder)]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, env=environment)
            self.pid = self._process.pid

    def finish(self) -> list[Finding]:
        """Start the step, wait for it and return its findings, or one finding on why there are none."""
        (self.folder / GO).touch()
        try:
            reason = self._wait()
            if (self.folder / RESULT).exists():
                return [Finding(*row) for row in json.loads((self.folder / RESULT).read_text(encoding="utf-8"))]
            return [not_tried(reason)]
        finally:
            self.stop()

    def _fork(self) -> int:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        with warnings.catch_warnings():
            # Python 3.12 warns of forks with threads; the docstring of the class says why they do no harm here.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                work(self.folder, forked=True)
            finally:
                os._exit(1)
        return pid

    def _wait(self) -> str:
        """Wait for the end of the process and return the reason, in case there is no result."""
        begun, ready = time.monotonic(), None
        while not self._ended():
            now = time.monotonic()
            ready = now if ready is None and (self.folder / READY).exists() else ready
            if now - begun > IMPORTS and ready is None:
                return f"a new process had not started after {IMPORTS:.0f} s."
            if ready is not None and now - ready > self.seconds:
                return f"it takes more than {self.seconds:g} s, {self._stage()}."
            time.sleep(PAUSE)
        code = self._status or 0
        if code == -signal.SIGKILL:
            return f"the system ended it because memory ran out, {self._stage()}."
        return f"its process ended with status {code}, {self._stage()}: {self._last_line()}"

    def _stage(self) -> str:
        stage = self.folder / STAGE
        return f"during {stage.read_text(encoding='utf-8')}" if stage.exists() else "while it started"

    def _last_line(self) -> str:
        log = self.folder / LOG
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing.")

    def _ended(self) -> bool:
        if self._status is None and self._process is not None:
            self._status = self._process.poll()
        elif self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status is not None

    def stop(self) -> None:
        """End the process and all processes that it started, and remove its folder."""
        if self.folder.exists():
            with suppress(ProcessLookupError):  # it has ended, or has no process group of its own yet
                os.killpg(self.pid, signal.SIGKILL)
            while not self._ended():
                os.kill(self.pid, signal.SIGKILL)
                time.sleep(PAUSE)
        shutil.rmtree(self.folder, ignore_errors=True)


def work(folder: Path, *, forked: bool) -> None:
    """Try a step, write the findings into the folder and end the process.

    Args:
        folder: The scratch folder, which holds the job.
        forked: Whether this process is a fork.
    """
    job: dict[str, Any] = json.loads((folder / JOB).read_text(encoding="utf-8"))
    if forked:
        os.setsid()
    log = os.open(folder / LOG, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(log, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    try:
        if forked and not job["threads"]:
            torch.set_num_threads(1)
        while not (folder / GO).exists():
            time.sleep(PAUSE)
            if os.getppid() != job["parent"]:
                os._exit(0)
        signal.alarm(math.ceil(job["seconds"]) + GRACE)
        _limit_memory(job["memory"])
        (folder / READY).touch()
        stage = folder / STAGE
        found = try_steps(
            Path(job["config"]), job["overrides"], folder, timed=job["timed"], say=lambda text: _write(stage, text)
        )
        rows = [(finding.check, finding.verdict, finding.seen, finding.advice) for finding in found]
        _write(folder / RESULT, json.dumps(rows))
    except BaseException:  # the parent reads the log
        traceback.print_exc()
        code = 1
    else:
        code = 0
    sys.stdout.flush()
    os._exit(code)


def _write(path: Path, text: str) -> None:
    """Write a file that appears under its name only when it is complete."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _limit_memory(limit: int | None) -> None:
    """Limit the memory of this process to the free memory, and let the system end it first if memory runs out."""
    if sys.platform != "linux":
        return
    import resource

    Path("/proc/self/oom_score_adj").write_text("1000")
    limit = available() if limit is None else limit
    if limit and not torch.cuda.is_available():  # CUDA reserves addresses for all memory of the machine
        resource.setrlimit(resource.RLIMIT_DATA, (read_status("VmData") + limit,) * 2)


if __name__ == "__main__":
    work(Path(sys.argv[1]), forked=False)
