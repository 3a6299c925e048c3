"""Sets the status in MLflow of a run whose rank 0 is dead."""

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
from aent.tracking.refused import REFUSES
from aent.tracking.sender import everything_sent, points_sent

Status = Literal["FINISHED", "FAILED", "KILLED"]
ANSWER_S = 10  # for one answer


def mark_ended(run_dir: Path, status: Status, timeout_s: float = 60.0) -> bool:
    """Give the run this status unless it has a final one. For use when rank 0 is dead.

    Also sends what the dead process had not sent, and creates the run in MLflow if it ended before
    it was created there. A separate process talks to MLflow and is killed after ``timeout_s``:
    importing MLflow takes seconds, and many on a loaded machine. It waits ``ANSWER_S`` at most for
    a silent server. Returns whether it succeeded; a failure (a full disk too) is one line on
    stderr, which names ``aent mlflow-sync``.
    """
    path = run_dir / JOURNAL_FILE
    try:
        journal.drop_torn_line(path)
        if journal.last_status(path) in (None, "RUNNING"):
            journal.append(path, [StatusEntry(journal.now(), status)])
        elif everything_sent(run_dir):
            return True
    except OSError as error:
        log.warning(f"aent: the status {status} could not be written to {path}: {error}")
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
        for line in done.stderr.splitlines():
            if line.startswith(REFUSES):
                log.warning(line)
    except subprocess.TimeoutExpired:
        why = f"no answer within {time.monotonic() - started:.0f} s"
    except OSError as error:  # no memory for another process
        why = str(error)
    if why:
        last = redacted(why.splitlines()[-1])
        lacks = f"lacks a file, trace or model of {run_dir}"
        if not points_sent(run_dir):
            lacks = f"does not know that {run_dir} is {status}"
        log.warning(f"aent: MLflow {lacks}: {last}; when it answers: aent mlflow-sync {run_dir}")
    return not why
