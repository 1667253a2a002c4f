"""JAX's coordination service in a process of its own, which the first process starts and which outlives that.

`jax.distributed.initialize` runs the service inside process 0. Once that is killed, JAX's client aborts each of the
others at once, with a stack trace. With the service beside it, as torchrun's agent keeps its store, they live on for
long enough to end by themselves. Relies on jaxlib's `get_distributed_runtime_service`, as JAX 0.10 to 0.12 call it.
"""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time

from jaxgpt.errors import BadInput

LINGERS = 40
"""Seconds for which the service stays after its first process was killed; `jaxgpt.peers` needs half of that."""


class Coordinator:
    """What `get_distributed_runtime_service` returns, as far as JAX uses it; the arguments are that function's.

    Raises:
      BadInput: another program listens where the service would.
    """

    def __init__(self, *words: object, **named: object):
        command = [sys.executable, "-m", "jaxgpt.coordinator", json.dumps([words, named])]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, text=True)
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise BadInput(f"--coordinator: another program has the port of {words[0]}: end it, or give another port")

    def shutdown(self) -> None:
        """End it, when all processes have taken leave of it."""
        self._process.communicate("end")


def wait_for(port: int) -> None:
    """Until the service of a run that was killed has let go of it: gRPC would share it with that one."""
    for _ in range(LINGERS):
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return
        time.sleep(1)
    sys.exit(1)


def main() -> None:
    """The service's process: until it is told to end, or for a while after the first process was killed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # of a terminal or a launcher, to all: the others have to agree yet
        signal.signal(number, signal.SIG_IGN)
    from jaxlib import _jax

    words, named = json.loads(sys.argv[1])
    wait_for(int(words[0].rsplit(":", 1)[1]))
    service = _jax.get_distributed_runtime_service(*words, **named)
    print("ready", flush=True)
    if not sys.stdin.read():
        time.sleep(LINGERS)
    del service


if __name__ == "__main__":
    main()
