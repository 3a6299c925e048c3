"""The last word of a run whose rank 0 is dead by now."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from aent.recipe.redact import redacted
from aent.runtime.log import log
from aent.tracking import journal
from aent.tracking.journal import JOURNAL_FILE
from aent.tracking.journal import Status as StatusEntry
from aent.tracking.sender import everything_sent, points_sent

Status = Literal["FINISHED", "FAILED", "KILLED"]
ANSWER_S = 10  # for one answer


def mark_ended(run_dir: Path, status: Status, timeout_s: float = 60.0) -> bool:
    """Give the run this status unless it has a final one; for another process than rank 0's, which
    is dead by now.

    Also sends what the dead process had not sent; a run that ended before MLflow heard of it is
    made there now. MLflow is spoken to by a process of its own, killed after ``timeout_s``: the
    import alone takes seconds, on a loaded machine many. A silent server is waited for no longer
    than ``ANSWER_S``. Returns whether it went well; a failure (a full disk too) is one line on
    stderr, and ``aent mlflow-sync`` is left to do.
    """
    path = run_dir / JOURNAL_FILE
    try:
        journal.drop_torn_line(path)
        if journal.last_status(path) in (None, "RUNNING"):
            journal.append(path, [StatusEntry(journal.now(), status)])
        elif everything_sent(run_dir):
            return True
    except OSError as error:
        log.warning(f"aent: {path} does not say that the run is {status}: {error}")
        return False
    command = [sys.executable, "-m", "aent.tracking.sender", str(run_dir)]
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            env={"MLFLOW_HTTP_REQUEST_TIMEOUT": str(ANSWER_S), **os.environ},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            start_new_session=True,
        )
        why = "" if done.returncode == 0 else (done.stderr.strip() or "no reason given")
    except subprocess.TimeoutExpired:
        why = f"no answer within {time.monotonic() - started:.0f} s"
    except OSError as error:  # no memory for another process
        why = str(error)
    if why:
        last = redacted(why.splitlines()[-1])
        lacks = f"does not have every file, trace or model of {run_dir}"
        if not points_sent(run_dir):
            lacks = f"does not know that {run_dir} is {status}"
        log.warning(f"aent: MLflow {lacks}: {last}; when it answers: aent mlflow-sync {run_dir}")
    return not why
