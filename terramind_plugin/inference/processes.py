"""The processes of a run, and how they wait for and stop one another."""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from terramind_plugin.errors import DataError
from terramind_plugin.inference.options import Options
from terramind_plugin.system.process import Stopped, StopSignals

LONGEST_WAIT = timedelta(days=7)
"""Maximum time that a process waits for another one."""
AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16}


class Processes:
    """The processes of a run: this one alone, or several that Lightning starts and connects.

    Args:
        options: Checked options of the run.
    """

    def __init__(self, options: Options) -> None:
        self.device = torch.device(options.device_type())
        self.rank, self.count = 0, 1
        self._dtype = AUTOCAST.get(options.precision)
        self._fabric: Any = None
        if options.devices * options.nodes == 1:
            return
        # Imported here, because the import takes seconds and a single process does not need it.
        from lightning.fabric import Fabric
        from lightning.fabric.strategies.ddp import DDPStrategy

        with quiet():
            self._fabric = Fabric(
                accelerator=self.device.type,
                devices=options.devices,
                num_nodes=options.nodes,
                strategy=DDPStrategy(timeout=LONGEST_WAIT),
            )
            self._fabric.launch()
        self.device, self.rank, self.count = self._fabric.device, self._fabric.global_rank, self._fabric.world_size

    def share(self, value: Any) -> Any:
        """Return the value of the first process in all."""
        return value if self._fabric is None else self._fabric.broadcast(value)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which a model computes at the precision of the run."""
        return nullcontext() if self._dtype is None else torch.autocast(self.device.type, self._dtype)

    def meet(self, signals: StopSignals) -> None:
        """Wait for all processes, and stop if one of them was asked to stop.

        Raises:
            DataError: Another process has ended.
            Stopped: A process was asked to stop.
        """
        if self.count == 1:
            return
        number = torch.tensor([signals.number or 0], device=self.device)
        try:
            # A barrier would delay signals until it is over.
            meeting: Any = distributed.all_reduce(number, distributed.ReduceOp.MAX, async_op=True)
            while not meeting.is_completed():
                time.sleep(0.02)
            meeting.wait()
        except RuntimeError as error:
            signals.check()
            raise DataError(
                "Another process of this run has ended. See its message, and run the same command again: finished "
                "parts are kept."
            ) from error
        if number.item():
            raise Stopped(signals.number or int(number))

    def stop_others(self, number: int) -> None:
        """Ask the processes that this one has started to stop."""
        launcher = None if self._fabric is None else self._fabric.strategy.launcher
        for process in getattr(launcher, "procs", ()):
            process.send_signal(signal.SIGTERM)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide Lightning's advice on loaders, loggers and devices that the user has not chosen."""
    names = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "lightning.fabric")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)
