import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from aent.data.question import Question
from aent.data.response import Response
from aent.recipe.schema import TaskSection
from aent.tasks.judge import JudgePool
from processes import command_line
from wording import assert_names, naming

SEVEN = Question(0, "What is 3 + 4?", "7")
POWER_TOWER = "9**9**9**9"  # hangs in integer arithmetic, where no Python signal handler runs


def section(*graders, processes=1, timeout_s=60, **changes):
    return TaskSection.model_validate(
        {
            "graders": graders,
            "judge_processes": processes,
            "judge_timeout_s": timeout_s,
            **changes,
        }
    )


def pool(kind="math_verify", **changes):
    return JudgePool(section({"kind": kind}, **changes))


def said(*texts):
    return [Response(text) for text in texts]


def rewards(judge, *texts):
    return [verdict.reward for verdict in judge.judge([SEVEN] * len(texts), said(*texts))]


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
    responses = [Response(f"it is {i if i % 3 else i + 1}") for i in range(50)]
    with pool("last_number", processes=3) as judge:
        verdicts = judge.judge(questions, responses)
        assert [v.reward for v in verdicts] == [float(i % 3 > 0) for i in range(50)]
        assert judge.judge([], []) == []
    assert workers() == []


def test_references_that_nobody_can_match_are_found():
    questions = [Question(i, "?", a) for i, a in enumerate(["7", "3/4", "1e3", "seven"])]
    with pool("last_number") as judge:
        assert [q.index for q in judge.unreadable(questions, "last_number")] == [1, 3]
        assert rewards(judge, "7") == [1.0]


def test_what_a_function_says_of_an_answer_can_be_written_anywhere(function):
    """A function's own words have what the model wrote: NUL, and commands to a terminal."""
    with JudgePool(section(function("shouts"))) as judge:
        (verdict,) = judge.judge([SEVEN], said("\ud800 \0\n\x1b[2J \u20ac"))
    assert verdict.reward == 0
    assert_names(verdict.error, r"ValueError: \ud800 \x00 \x1b[2J", "€")
    assert verdict.error.isprintable()


@pytest.mark.slow  # seconds that a loaded machine may need for the answers that do not hang
def test_an_answer_that_hangs_costs_itself_only():
    responses = ["7", POWER_TOWER, "$\\frac{14}{2}$", "8", "7"]
    with pool(timeout_s=10) as judge:  # which the answer that hangs takes of a processor
        verdicts = judge.judge([SEVEN] * 5, said(*responses))
        assert [v.reward for v in verdicts] == [1, 0, 1, 0, 1]
        assert [v.error for v in verdicts] == ["", "timeout", "", "", ""]
        assert len(workers()) == 1
    assert workers() == []


@pytest.mark.slow
def test_answers_that_hang_in_two_processes_at_once_cost_themselves_only(function):
    responses = ["7", "sleeps", "7", "sleeps", "8", "7"]
    with JudgePool(section(function("sleeps"), processes=2, timeout_s=10)) as judge:
        verdicts = judge.judge([SEVEN] * 6, said(*responses))
        assert [v.reward for v in verdicts] == [1, 0, 1, 0, 0, 1]
        assert [v.error for v in verdicts] == ["", "timeout", "", "timeout", "", ""]
        assert len(workers()) == 2
    assert workers() == []


def test_an_answer_that_throws_costs_itself_only():
    unreadable = Question(1, "?", "")
    with pool() as judge:
        good, thrown, wrong = judge.judge([SEVEN, unreadable, SEVEN], said("7", "7", "8"))
    assert (good.reward, good.error, wrong.reward, wrong.error) == (1, "", 0, "")
    assert thrown.reward == 0
    assert_names(thrown.error, "ValueError", "math-verify")


def test_an_idle_worker_killed_from_outside_is_replaced():
    with pool("last_number") as judge:
        assert rewards(judge, "7") == [1.0]
        (before,) = workers()
        before.kill()
        before.wait(300)
        assert rewards(judge, "7", "8") == [1.0, 0.0]
        (after,) = workers()
        assert after.pid != before.pid


def test_a_worker_killed_while_it_judges_costs_that_answer_only():
    with pool() as judge:
        assert rewards(judge, "7") == [1.0]
        (worker,) = workers()

        def kill():  # while this process waits in judge()
            wait_until_busy(worker)
            worker.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        hung, good = judge.judge([SEVEN] * 2, said(POWER_TOWER, "7"))
        killer.join(120)
    assert hung.reward == 0
    assert_names(hung.error, -9)
    assert (good.reward, good.error) == (1, "")


def test_memory_is_limited():
    with pool() as judge:
        (worker,) = workers()
        judge.judge([SEVEN], said("7"))
        soft, _ = worker.rlimit(psutil.RLIMIT_AS)
    assert soft == 4 << 30


def test_a_verifier_that_cannot_start_is_an_error():
    unknown = pool("reasoning_gym", name="no_such_data_set")
    with unknown as judge, pytest.raises(ValueError, match="no_such_data_set"):
        judge.judge([SEVEN], said("7"))
    assert workers() == []


def test_closed_pool_and_uneven_input_are_errors():
    judge = pool("last_number")
    with pytest.raises(ValueError, match=naming(1, 2)):
        judge.judge([SEVEN], said("7", "8"))
    judge.close()
    with pytest.raises(RuntimeError, match="closed"):
        judge.judge([SEVEN], said("7"))


FUNCTIONS = """
import asyncio, os, subprocess, sys, time

def length(response, question):
    return {"characters": len(response.text), "tokens": response.tokens / 2}

def distinct(responses, question):
    return [len({r.text for r in responses}) / len(responses) for r in responses]

def sleeps(response, question):
    if response.text == "sleeps":
        time.sleep(1000)
    return float(response.text == question.answer)

meeting = asyncio.Barrier(3)

async def waits(response, question):
    if response.text == "meets":
        await meeting.wait()
    if response.text == "waits for ever":
        await asyncio.sleep(1000)
    if response.text == "blocks the loop":
        time.sleep(1000)
    if response.text == "throws":
        return question.metadata["no such column"]
    return 1

def shouts(response, question):
    raise ValueError(response.text)

def leaves_a_child(response, question):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", __file__])
    time.sleep(1000)

def takes_memory(response, question):
    return len(bytearray(1 << 30))

def uses_asyncio(response, question):
    async def number():
        return 3
    return asyncio.run(number())

def leaves(response, question):
    os._exit(3)
"""


@pytest.fixture(scope="module")
def function(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "rewards.py"
    path.write_text(FUNCTIONS)
    return lambda name, **more: {
        "kind": "python", "name": name, "function": f"{path}:{name}", **more
    }  # fmt: skip


def test_a_verdict_is_the_weighted_sum_of_the_graders(function):
    graders = [
        {"kind": "last_number"},
        function("length", weight=-0.5),
        function("distinct", group=True, weight=2),
    ]
    other = Question(1, "What is 4 + 4?", "8")
    responses = [Response(text, tokens=4) for text in ("7", "17", "7", "8")]
    with JudgePool(section(*graders)) as judge:
        verdicts = judge.judge([SEVEN, SEVEN, SEVEN, other], responses)
    assert [[grade.name for grade in v.grades] for v in verdicts] == [
        ["last_number", "length", "distinct"]
    ] * 4
    assert [[grade.reward for grade in v.grades] for v in verdicts] == [
        [1, 3, 2 / 3],
        [0, 4, 2 / 3],
        [1, 3, 2 / 3],
        [1, 3, 1],
    ]
    assert verdicts[1].grades[1].parts == {"characters": 2, "tokens": 2}
    assert [v.reward for v in verdicts] == [1 - 1.5 + 4 / 3, 0 - 2 + 4 / 3, 1 - 1.5 + 4 / 3, 1.5]
    assert [v.score for v in verdicts] == [1, 0, 1, 1]


def test_a_question_is_judged_by_the_graders_of_its_data_source(function):
    graders = [
        {"kind": "last_number", "data_sources": ("sums",)},
        function("length", data_sources=("texts",)),
        function("uses_asyncio"),
    ]
    sums, texts = (
        Question(i, "?", "7", {"data_source": s}) for i, s in enumerate(("sums", "texts"))
    )
    with JudgePool(section(*graders)) as judge:
        first, second = judge.judge([sums, texts], said("7", "7"))
    assert [(g.name, g.reward) for g in first.grades] == [("last_number", 1), ("uses_asyncio", 3)]
    assert [(g.name, g.reward) for g in second.grades] == [("length", 1), ("uses_asyncio", 3)]
    assert (first.reward, second.reward) == (4, 4)


@pytest.mark.slow
def test_asynchronous_answers_are_judged_at_once_and_each_costs_itself_only(function):
    """Three can run together; those beside one that blocks the loop are graded again, alone."""
    waiting = ["meets", "throws", "meets", "waits for ever", "waits for ever", "meets"]
    blocked = ["good", "blocks the loop", "good"]
    progress = []
    with JudgePool(section(function("waits"), timeout_s=10)) as judge:
        first, thrown, second, *late, third = judge.judge(
            [SEVEN] * len(waiting), said(*waiting), lambda: progress.append(1)
        )
        after = judge.judge([SEVEN] * 3, said(*blocked))
    assert [v.reward for v in (first, second, third, thrown)] == [1, 1, 1, 0]
    assert_names(thrown.error, "KeyError", "rewards.py")
    assert {(v.reward, v.error) for v in late} == {(0, "timeout")}
    assert len(progress) == len(waiting)
    assert [(v.reward, v.error) for v in after] == [(1, ""), (0, "timeout"), (1, "")]


def test_what_a_function_does_to_its_process_costs_its_answer_only(function):
    names = ("leaves_a_child", "takes_memory", "leaves", "uses_asyncio")
    bounded = section(*map(function, names), timeout_s=10, judge_memory_gib=1)
    with JudgePool(bounded) as judge:
        (verdict,) = judge.judge([SEVEN], said("7"))
        mark = function("leaves_a_child")["function"].rpartition(":")[0]
        assert [p for p in psutil.process_iter() if mark in command_line(p)] == []
    child, memory, leaves, own_loop = verdict.grades
    assert (child.error, own_loop.error, own_loop.reward) == ("timeout", "", 3)
    assert_names(memory.error, "MemoryError")
    assert_names(leaves.error, 3)
    assert verdict.reward == 0
    assert_names(verdict.error, "leaves_a_child")


PARENT = f"""
import signal
from aent.recipe.schema import TaskSection
from aent.data.question import Question
from aent.data.response import Response
from aent.recipe.graders import MathVerify
from aent.tasks.judge import JudgePool
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
judge = JudgePool(TaskSection(graders=(MathVerify(kind="math_verify"),), judge_timeout_s=600))
question = Question(0, "?", "7")
judge.judge([question], [Response("7")])
print(judge._processes._workers[0].process.pid, flush=True)
judge.judge([question], [Response("{POWER_TOWER}")])
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
