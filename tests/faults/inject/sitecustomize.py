"""Python imports this at its start where the folder is on PYTHONPATH (tests/faults/test_faults.py).

In the job's rank 0 it makes the launcher die (SIGKILL) as a given phase of a given step begins.
"""

import os

target = os.environ.get("AENT_TEST_KILL_AT")  # STEP:PHASE
if target and os.environ.get("RANK") == "0":
    import signal
    import time

    from aent.phases import Phases

    begin = Phases.begin

    def begin_or_die(self: Phases, name: str) -> None:
        begin(self, name)
        if f"{self.step}:{name}" == target:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)  # the launcher's death is ours

    Phases.begin = begin_or_die  # type: ignore[method-assign]
