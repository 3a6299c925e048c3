"""Data whose fields have a kind: code that cuts them handles every field."""

from dataclasses import dataclass

import pytest
import torch

from aent.algorithm.losses import InTraining
from aent.algorithm.terms import EntropyGate, LossTerms, ReferenceKl, Smoothing
from aent.data.batch import Batch
from aent.data.flat import Flat, PerBatch, PerSequence, PerToken, kinds
from aent.data.scores import Scores


def every_class() -> list[type[Flat]]:
    """All of the package's that are per token."""
    ours = (cls for cls in Flat.__subclasses__() if cls.__module__.startswith("aent."))
    return [cls for cls in ours if cls is not Batch]


def filled(cls: type[Flat], start: int = 0) -> Flat:
    """Every field filled, each with values of its own."""
    values = {}
    for place, (name, kind) in enumerate(kinds(cls).items()):
        begin = start + 100 * place
        values[name] = torch.arange(6) + begin if kind == "token" else filled(kind, begin + 10_000)
    return cls(**values)


@pytest.mark.parametrize("cls", every_class())
def test_every_field_is_cut(cls):
    places = torch.tensor([5, 0, 3])

    def compare(whole: Flat, part: Flat) -> None:
        assert type(part) is type(whole)
        for name, kind in kinds(type(whole)).items():
            before, after = getattr(whole, name), getattr(part, name)
            if kind == "token":
                assert torch.equal(after, before[places]), name
            else:
                compare(before, after)

    compare(filled(cls), filled(cls).at(places))


def test_these_are_all_there_are():
    assert set(every_class()) >= {
        Scores,
        InTraining,
        LossTerms,
        EntropyGate,
        ReferenceKl,
        Smoothing,
    }


def test_what_is_not_there_stays_away():
    zero = torch.zeros(3)
    part = LossTerms(zero, zero, zero).at(torch.tensor([0]))
    assert part.reference is None
    assert part.token_weight is None


def test_a_field_that_does_not_say_what_it_is_of_is_refused():
    @dataclass
    class Unsaid(Flat):
        weight: torch.Tensor

    @dataclass
    class Either(Flat):
        weight: PerToken | PerSequence

    for cls in (Unsaid, Either):
        with pytest.raises(TypeError, match=rf"{cls.__name__}\.weight"):
            kinds(cls)


def test_a_kind_that_nothing_is_said_for_is_not_passed_over():
    @dataclass
    class Mixed(Flat):
        weight: PerToken
        reward: PerSequence
        temperature: PerBatch

    mixed = Mixed(torch.zeros(3), torch.zeros(2), 1.0)
    with pytest.raises(KeyError, match="sequence"):
        mixed.at(torch.tensor([0]))
