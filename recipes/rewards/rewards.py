"""Rewards of one's own (docs/rewards.md). Nothing here knows aent."""

import ast
import re


def reward(response, question):
    """1 for the right number, and a little for saying numbers at all.

    response: text, tokens (how many), finished (the policy ended it itself).
    question: prompt, answer, metadata (the file's other columns).
    """
    numbers = re.findall(r"-?\d+", response.text)
    right = bool(numbers) and numbers[-1] == question.answer
    digits = sum(c.isdigit() for c in response.text)
    return {
        "right": float(right),
        "digits": 0.5 * digits / max(1, len(response.text)),
    }


def different(responses, question):
    """How many of the group's responses are unlike all others: it sees them all at once."""
    texts = [response.text for response in responses]
    return [float(texts.count(text) == 1) for text in texts]


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """As verl calls it: longer sums are worth more."""
    right = ground_truth in solution_str
    return {"score": extra_info["terms"] / 3 if right else 0.0, "right": right}


def syntax(response, question):
    """How much of the response is Python: the longest beginning of it that can be parsed."""
    text = response.text.strip()
    for end in range(len(text), 0, -1):
        try:
            ast.parse(text[:end])
            return end / len(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return 0.0
