import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from aent.data.question import Question
from aent.data.rollout import Verdict
from aent.recipe.schema import TaskSection
from aent.tasks.judge import JudgePool
from processes import command_line
from wording import assert_names, naming

SEVEN = Question(0, "What is 3 + 4?", "7")
POWER_TOWER = "9**9**9**9"  # hangs in integer arithmetic, where no Python signal handler runs


def pool(verifier="math_verify", processes=1, timeout_s=60):
    return JudgePool(
        TaskSection(verifier=verifier, judge_processes=processes, judge_timeout_s=timeout_s)
    )


def workers():
    return [p for p in psutil.Process().children() if "aent.tasks.judge_worker" in command_line(p)]


def wait_until_busy(worker):
    """Return when it hangs in an answer."""
    used = worker.cpu_times().user
    deadline = time.monotonic() + 120
    while worker.cpu_times().user < used + 0.2:
        assert time.monotonic() < deadline, "the worker does not judge"
        time.sleep(0.05)


def test_verdicts_come_in_the_order_of_the_responses():
    questions = [Question(i, "?", str(i)) for i in range(50)]
    responses = [f"it is {i if i % 3 else i + 1}" for i in range(50)]
    with pool("last_number", processes=3) as judge:
        verdicts = judge.judge(questions, responses)
        assert [v.reward for v in verdicts] == [float(i % 3 > 0) for i in range(50)]
        assert judge.judge([], []) == []
    assert workers() == []


def test_references_that_nobody_can_match_are_found():
    questions = [Question(i, "?", a) for i, a in enumerate(["7", "3/4", "1e3", "seven"])]
    with pool("last_number") as judge:
        assert [q.index for q in judge.unreadable(questions)] == [1, 3]
        assert judge.judge([SEVEN], ["7"]) == [Verdict(1.0)]


@pytest.mark.slow  # seconds that a loaded machine may need for the answers that do not hang
@pytest.mark.parametrize("processes", [1, 2])
def test_an_answer_that_hangs_costs_itself_only(processes):
    responses = ["7", POWER_TOWER, "$\\frac{14}{2}$", "$9^{9^{9^{9}}}$", "8", "7"]
    with pool(processes=processes, timeout_s=10) as judge:
        verdicts = judge.judge([SEVEN] * 6, responses)
        assert [v.reward for v in verdicts] == [1, 0, 1, 0, 0, 1]
        assert [v.error for v in verdicts] == ["", "timeout", "", "timeout", "", ""]
        assert len(workers()) == processes
    assert workers() == []


def test_an_answer_that_throws_costs_itself_only():
    unreadable = Question(1, "?", "")
    with pool() as judge:
        good, thrown, wrong = judge.judge([SEVEN, unreadable, SEVEN], ["7", "7", "8"])
    assert (good, wrong) == (Verdict(1.0), Verdict(0.0))
    assert thrown.reward == 0
    assert_names(thrown.error, "ValueError", "math-verify")


def test_an_idle_worker_killed_from_outside_is_replaced():
    with pool("last_number") as judge:
        assert judge.judge([SEVEN], ["7"]) == [Verdict(1.0)]
        (before,) = workers()
        before.kill()
        before.wait(10)
        assert judge.judge([SEVEN] * 2, ["7", "8"]) == [Verdict(1.0), Verdict(0.0)]
        (after,) = workers()
        assert after.pid != before.pid


def test_a_worker_killed_while_it_judges_costs_that_answer_only():
    with pool() as judge:
        assert judge.judge([SEVEN], ["7"]) == [Verdict(1.0)]
        (worker,) = workers()

        def kill():  # while this process waits in judge()
            wait_until_busy(worker)
            worker.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        hung, good = judge.judge([SEVEN] * 2, [POWER_TOWER, "7"])
        killer.join(120)
    assert hung.reward == 0
    assert_names(hung.error, -9)
    assert good == Verdict(1.0)


def test_memory_is_limited():
    with pool() as judge:
        (worker,) = workers()
        judge.judge([SEVEN], ["7"])
        soft, _ = worker.rlimit(psutil.RLIMIT_AS)
    assert soft == 4 << 30


def test_a_verifier_that_cannot_start_is_an_error():
    section = TaskSection(name="no_such_data_set", verifier="reasoning_gym")
    with JudgePool(section) as judge, pytest.raises(RuntimeError, match="no_such_data_set"):
        judge.judge([SEVEN], ["7"])
    assert workers() == []


def test_closed_pool_and_uneven_input_are_errors():
    judge = pool("last_number")
    with pytest.raises(ValueError, match=naming(1, 2)):
        judge.judge([SEVEN], ["7", "8"])
    judge.close()
    with pytest.raises(RuntimeError, match="closed"):
        judge.judge([SEVEN], ["7"])


PARENT = f"""
import signal
from aent.recipe.schema import TaskSection
from aent.data.question import Question
from aent.tasks.judge import JudgePool
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
judge = JudgePool(TaskSection(verifier="math_verify", judge_timeout_s=600))
question = Question(0, "?", "7")
judge.judge([question], ["7"])
print(judge._workers[0].process.pid, flush=True)
judge.judge([question], ["{POWER_TOWER}"])
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_workers_do_not_outlive_their_parent(sign):
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        try:
            worker = psutil.Process(int(parent.stdout.readline()))
            wait_until_busy(worker)
            os.kill(parent.pid, sign)
            assert parent.wait(60) != 0
            assert psutil.wait_procs([worker], timeout=60)[1] == []
        finally:
            parent.kill()
