"""Check this machine's GPU: ``tools/gpu_check.sh --help``. Standard library only.

Each section is its own process with a deadline, so a section that crashes or hangs ends no other.
The report is written again after each. Exit codes: 0 everything passed, 1 a check failed or a
section did not end by itself, 2 there is no usable GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_check import report, wheels
from gpu_check.report import Row

ROOT = Path(__file__).resolve().parents[2]
GRACE = 8.0  # seconds between when a section should be done and when it is killed
PROBE = 90.0  # seconds for the first import of torch and its first kernel
LAST_LINES = 300  # characters of a section's own words in the report


@dataclass(frozen=True)
class Planned:
    """A section: its module, its arguments, how long it may take, and whether it may be left out if
    the time is used up."""

    name: str
    module: str
    words: tuple[str, ...]
    seconds: float
    optional: bool = False


def plan(rehearse: bool) -> list[Planned]:
    """Kernels first; then the trainer; then the section that may be left out."""
    tokens, vocabularies = ("2", ("2200",)) if rehearse else ("8192", ("131072", "151936"))
    dtypes = ("bf16",) if rehearse else ("bf16", "fp32")
    patience = 10 if rehearse else 1  # Triton's interpreter is slow
    cases = [(dtype, tokens, v) for v in vocabularies for dtype in dtypes]
    kernels = [
        Planned(f"kernels {d} {n} x {v}", "gpu_check.kernels", (d, n, v), 60 * patience)
        for d, n, v in cases
    ]
    # add your own section here: its module calls section.of_command_line
    return [
        *kernels,
        Planned("trainer", "gpu_check.training", (), 110 * patience),
        Planned("attention", "gpu_check.attention", (), 90 * patience, optional=True),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    end = time.monotonic() + args.seconds
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
        environment = environment_of(args.rehearse, scratch)
        facts = probe(args.rehearse, environment)
        if isinstance(facts, str):
            print(f"gpu-check: {facts}", file=sys.stderr)
            return 2
        facts["packages"] = carried(args.wheels, Path(scratch) / "site")
        environment["PYTHONPATH"] = f"{scratch}/site{os.pathsep}{environment['PYTHONPATH']}"
        rows: list[Row] = []
        with (args.out / "gpu-check.log").open("w") as log:
            for section in plan(args.rehearse):
                began = time.monotonic()
                seconds = min(section.seconds, end - began)
                rows += run(section, seconds, args.rehearse, environment, Path(scratch), log)
                facts[f"seconds of {section.name}"] = f"{time.monotonic() - began:.0f}"
                report.write(args.out, rows, facts)
    print(report.text_of(rows, facts))
    print(f"gpu-check: written to {args.out}")
    return 1 if any(row.passed is False for row in rows) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu-check", description="Kernels and trainer on this machine's GPU: numbers, speed."
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check"), help="report's folder")
    parser.add_argument("--seconds", type=float, default=450, help="for everything together")
    parser.add_argument("--wheels", type=Path, default=wheels.FOLDER, help="packages carried along")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="the same code on a CPU, at small sizes, kernels in Triton's interpreter",
    )
    args = parser.parse_args(arguments)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: {args.out} cannot be made: {error.strerror}")
    return args


def environment_of(rehearse: bool, scratch: str) -> dict[str, str]:
    """The sections' environment: this checkout's package, tests and checks; no network."""
    paths = [str(ROOT / part) for part in ("benchmarks", "pipeline", "tests")]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TMPDIR": scratch}
    environment["NVIDIA_TF32_OVERRIDE"] = "0"  # fp32 is fp32, despite the image
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    if rehearse:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    return environment


def probe(rehearse: bool, environment: dict[str, str]) -> dict[str, str] | str:
    """A description of this machine, or the reason why it cannot be used."""
    command = [sys.executable, "-m", "gpu_check.probe", *["--rehearse"] * rehearse]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PROBE
        )
    except subprocess.TimeoutExpired:
        return f"no usable GPU: nothing was computed on it in {PROBE:.0f} s"
    if done.returncode != 0:
        return f"no usable GPU: {last_line(done.stderr)}"
    return json.loads(done.stdout.splitlines()[-1])


def carried(folder: Path, site: Path) -> str:
    """Unpack the carried wheels; say which packages the sections get, and where from."""
    if not any(folder.glob("*.whl")):
        return f"those installed here ({folder} has no wheels)"
    problem = wheels.unpack(folder, site)
    if problem:
        return f"those installed here; the wheels in {folder} were not unpacked: {problem}"
    return f"carried in {folder}: " + ", ".join(
        "=".join(p.name.split("-")[:2]) for p in sorted(folder.glob("*.whl"))
    )


def run(
    section: Planned,
    seconds: float,
    rehearse: bool,
    environment: dict[str, str],
    scratch: Path,
    log: object,
) -> list[Row]:
    """The rows of a section, one more if it was not started, was killed or failed."""
    if seconds < 2 * GRACE:
        passed = None if section.optional else False
        note = "left out: the time is used up"
        return [Row(section.name, "all of it", passed=passed, note=note)]
    file = scratch / "rows"
    file.write_text("")
    command = [sys.executable, "-m", section.module, "--name", section.name, "--rows", str(file)]
    command += [f"--seconds={seconds - GRACE}", *["--rehearse"] * rehearse, *section.words]
    words = scratch / "output"
    with words.open("w") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # it ends with everything it started
        )
        try:
            code = process.wait(timeout=seconds)
            ending = f"ended with exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            ending = f"was killed after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = words.read_text(errors="replace")
    log.write(f"== {section.name}\n{said}\n")
    rows = [Row(**json.loads(line)) for line in file.read_text().splitlines()]
    if ending:
        rows.append(
            Row(section.name, "its process", passed=False, note=f"{ending}; {last_line(said)}")
        )
    return rows


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:LAST_LINES] if lines else "it said nothing"


if __name__ == "__main__":
    sys.exit(main())
