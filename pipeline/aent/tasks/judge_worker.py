"""The worker process of ``aent.tasks.judge``: ``python -m aent.tasks.judge_worker FD PARENT``.

Reads its verifier, then one (response, question) after the other, from a pipe, and answers
each with (reward, error). With a response of None only the question's reference is read: (1, "") if
it can be. Verifiers run in its main thread.
"""

from __future__ import annotations

import logging
import resource
import signal
import sys
from multiprocessing.connection import Connection

from aent.runtime.children import die_with_parent

MEMORY_LIMIT = 4 << 30  # bytes of address space: a power tower must not take the machine's


def main(fd: int, parent: int) -> None:
    """Judge until the parent closes the pipe or dies."""
    die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGUSR1):  # Ctrl-C, runtime.signals: the parent's
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    logging.disable(logging.WARNING)  # math-verify warns at every call without its own time limit
    pipe = Connection(fd)
    name, dataset, config = pipe.recv()
    try:
        from aent.tasks import verifiers

        verify = verifiers.make(name, dataset, config)
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send("")  # ready
    while True:
        try:
            response, question = pipe.recv()
        except EOFError:
            return
        try:
            if response is None:
                verifiers.check_reference(verify, question)
                reward = 1.0
            else:
                reward = verify(response, question)
            if not 0 <= reward <= 1:
                raise ValueError(f"the verifier's reward is {reward}, not within [0, 1]")
            pipe.send((reward, ""))
        except Exception as error:
            pipe.send((0.0, f"exception: {type(error).__name__}: {error}"[:500]))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
