"""Attacks on the sandbox, run in a process that has a limit of its own on processes.

``python red_team.py JSON``: {attacks: {name: [program, tests]}, spec, without_cgroup}. Prints
{name: reward or error}, and what is left afterwards.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import psutil

from aent.data.question import Question
from aent.data.response import Response
from aent.tasks.code import cgroup, local

SMALL = 200  # processes that this one could start if nothing limited it


def has_a_limit() -> bool:
    """Whether this process is refused another one before it has ``SMALL`` of them."""
    children: list[int] = []
    try:
        while len(children) < SMALL:
            pid = os.fork()
            if pid == 0:
                signal.pause()
            children.append(pid)
    except OSError:
        return True
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return False


def main(given: dict) -> None:
    if not has_a_limit():
        sys.exit("nothing limits this process: no attack is tried")
    if given["without_cgroup"]:
        cgroup.make = lambda *_: cgroup.Group({})
    call, lacks = local.call_of(given["spec"])
    found: dict[str, object] = {"lacks": lacks, "pid": os.getpid()}
    for name, (program, tests) in given["attacks"].items():
        try:
            text = program.replace("PARENT", str(os.getpid()))
            found[name] = call([Response(text)], Question(0, name, tests))
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
        # a killed namespace's processes may take a moment to be gone
        deadline = time.monotonic() + 300
        while psutil.Process().children(recursive=True) and time.monotonic() < deadline:
            time.sleep(0.01)
        left = psutil.Process().children(recursive=True)  # zombies too
        found[f"left by {name}"] = [p.status() for p in left]
    print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
