"""Python imports this at its start where the folder is on PYTHONPATH (tests/faults/test_faults.py).

In a job's rank 0 it makes the launcher die (SIGKILL) as a given phase of a given step begins. Of a
checkpoint that is written beside the training, every rank's files are written by the end of the
step, or with AENT_TEST_HOLD_WRITES never: when is not left to chance.
"""

import os

target = os.environ.get("AENT_TEST_KILL_AT")  # STEP:PHASE
if target and "RANK" in os.environ:
    import signal
    import sys
    import threading
    import time

    from aent.runtime.phases import Phases

    begin = Phases.begin

    def begin_or_die(self: Phases, name: str) -> None:
        begin(self, name)
        if name == "checkpoint" and os.environ.get("AENT_TEST_HOLD_WRITES"):
            hold_writes()
        elif name == "record":
            for thread in threading.enumerate():
                if thread.name == "checkpoint":
                    thread.join()
        if f"{self.step}:{name}" == target and os.environ["RANK"] == "0":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)  # the launcher's death is ours

    def hold_writes() -> None:
        writer = sys.modules["aent.trainer.state"].Writer
        write = writer.write
        writer.write = lambda self: time.sleep(600) if self._copied else write(self)

    Phases.begin = begin_or_die  # type: ignore[method-assign]
