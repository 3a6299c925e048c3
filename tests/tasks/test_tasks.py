import pytest

from aent import tasks
from aent.recipe.schema import TaskSection
from aent.tasks.choice import choose
from wording import naming

LAST_NUMBER = {"kind": "last_number"}
DIGITS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def section(**changes):
    return TaskSection.model_validate({"config": DIGITS, "size": 1000, "heldout": 64} | changes)


@pytest.fixture(scope="module")
def task():
    return tasks.load(section(), seed=0)


def test_every_distinct_question_is_found_once(task):
    # a + b and a - b for digits a and b
    prompts = {q.prompt for q in task.train + task.heldout}
    assert len(task.heldout) == 64
    assert len(task.train) == 136
    assert len(prompts) == 200
    for question in task.train + task.heldout:
        expression = question.prompt.split(":")[1].split("=")[0]
        left, sign, right = expression.split()
        value = int(left) + int(right) if sign == "+" else int(left) - int(right)
        assert question.answer == str(value)


def test_same_seed_same_questions_other_seed_others(task):
    assert tasks.load(section(), seed=0) == task
    assert [q.prompt for q in tasks.load(section(), seed=1).heldout] != [
        q.prompt for q in task.heldout
    ]


def test_size_does_not_change_the_held_out_questions(task):
    small = tasks.load(section(size=16), seed=0)
    assert small.heldout == task.heldout
    assert small.train == task.train[:16]


def test_too_few_questions():
    with pytest.raises(ValueError, match=naming("task.heldout", "chain_sum", 200)):
        tasks.load(section(heldout=200), seed=0)
    assert len(tasks.load(section(heldout=199), seed=0).train) == 1


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"name": "chain_sums"}, "task.name 'chain_sums' 'chain_sum'"),
        ({"config": {"min_term": 2}}, "task.config chain_sum 'min_term' 'min_terms'"),
        ({"config": {"seed": 2}}, "task.config chain_sum 'seed'"),
        ({"config": {"min_terms": 5, "max_terms": 2}}, "task.config chain_sum max_terms"),
        ({"config": {"min_terms": "two"}}, "task.config chain_sum"),
        ({"name": "propositional_logic", "config": {}, "graders": [LAST_NUMBER]}, "last_number"),
    ],
)
def test_bad_task_is_one_clear_sentence(changes, names):
    with pytest.raises(ValueError, match=naming(*names.split())):
        tasks.load(section(**changes), seed=0)


def test_cursor_covers_each_epoch_once_and_shuffles_anew(task):
    epochs = [
        [q.index for step in steps for q in choose(task, step, 8, seed=3).questions]
        for steps in (range(17), range(17, 34))
    ]
    everything = sorted(q.index for q in task.train)
    assert sorted(epochs[0]) == sorted(epochs[1]) == everything
    assert epochs[0] != epochs[1]
    again = choose(task, 20, 8, seed=3).questions
    assert [q.index for q in again] == epochs[1][24:32]
    assert again != choose(task, 20, 8, seed=4).questions


def test_a_step_has_no_question_twice_when_the_epoch_does_not_divide():
    task = tasks.load(section(size=10), seed=0)
    for step in range(12):
        indices = [q.index for q in choose(task, step, 4, seed=0).questions]
        assert len(set(indices)) == 4
    with pytest.raises(ValueError, match=naming("rollout.prompts_per_step", 11, 10)):
        choose(task, 0, 11, seed=0)


def test_replacements_are_the_other_questions_in_an_order_of_the_steps_own(task):
    own = choose(task, 5, 8, seed=3).questions
    spare = choose(task, 5, 8, seed=3).spare[""]
    assert {q.index for q in own + spare} == {q.index for q in task.train}
    assert len(spare) == len(task.train) - 8
    assert spare == choose(task, 5, 8, seed=3).spare[""]
    assert spare[:8] != choose(task, 6, 8, seed=3).spare[""][:8]
