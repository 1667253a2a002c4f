"""Several processes of one run on this machine, which end with their test, whatever they wait for."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from parity_tests.programs import Ended

AT_MOST = 120
"""Seconds from the start of several processes to their end."""


class Group:
    """The processes of one run, by their index, and the launcher where there is one.

    Args:
      folder: where they run; what they print lies there.
      trainer: of which framework; JAX's are started one by one, PyTorch's by torchrun.
      count: how many.
      words: the flags.
      environment: of all of them.
      each: more environment, of each one that a cluster's launcher started.
    """

    def __init__(
        self,
        folder: Path,
        trainer: str,
        count: int,
        words: list[str],
        environment: dict[str, str],
        each: list[dict[str, str]] | None = None,
    ):
        self._folder, self._mark, self._until = folder, f"GROUP={id(self)}-{os.getpid()}", time.monotonic() + AT_MOST
        self._environment = environment | dict([self._mark.split("=")])
        if each:
            commands = [["-m", trainer, *words]] * count
        elif trainer == "jaxgpt.train":
            at = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(count)]
            commands = [["-m", trainer, *at, "--process", str(i), *words] for i in range(count)]
        else:
            commands = [["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", "--"]]
            commands[0] += [trainer, *words]
        own = each or [{}] * len(commands)
        self.started = [self._start(str(i), *both) for i, both in enumerate(zip(commands, own, strict=True))]

    def _start(self, name: str, command: list[str], own: dict[str, str]) -> subprocess.Popen:
        with open(self._folder / f"{name}.out", "w") as out, open(self._folder / f"{name}.err", "w") as err:
            return subprocess.Popen(
                [sys.executable, *command], cwd=self._folder, env=self._environment | own, stdout=out, stderr=err
            )

    def wait_for(self, what: Callable[[], bool]) -> None:
        """Until `what` is true; a failure where the processes end before that."""
        while not what():
            assert time.monotonic() < self._until, self.ends()
            assert all(each.poll() is None for each in self.started), self.ends()
            time.sleep(0.01)

    def send(self, number: signal.Signals, index: int) -> None:
        """A signal to one of them, not to its launcher."""
        launched = [pid for pid, environ in self._members() if f"RANK={index}" in environ]
        os.kill(launched[0] if launched else self.started[index].pid, number)

    def ends(self) -> list[Ended]:
        """How each of them, or their launcher, ended; a failure where one doesn't."""
        ended = []
        for i, each in enumerate(self.started):
            code = each.wait(max(self._until - time.monotonic(), 0.1))
            ended.append(Ended(code, *((self._folder / f"{i}.{kind}").read_text() for kind in ("out", "err"))))
        return ended

    def kill(self) -> None:
        """All that is left of them, with what they started."""
        for pid, _ in self._members():
            os.kill(pid, signal.SIGKILL)
        for each in self.started:
            each.wait()

    def _members(self) -> Iterator[tuple[int, list[str]]]:
        for file in Path("/proc").glob("[0-9]*/environ"):
            try:
                environ = file.read_bytes().decode(errors="replace").split("\0")
            except OSError:  # it has ended, or is another user's
                continue
            if self._mark in environ:
                yield int(file.parent.name), environ


@contextmanager
def group(*arguments) -> Iterator[Group]:
    """A `Group` that is gone after the block."""
    started = Group(*arguments)
    try:
        yield started
    finally:
        started.kill()


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]
