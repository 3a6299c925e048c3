"""Whether the trainer's image has what a run on GPUs needs; at its build, where there is no GPU."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterator

from packaging.requirements import Requirement

# apex's, which Megatron and the fused head call
EXTENSIONS = ("amp_C", "fused_weight_gradient_mlp_cuda")


def transformer_engine_fault(version: str, wanted: list[str]) -> str | None:
    """Whether a version of Transformer Engine is one that megatron-core was made for, of whose
    metadata ``wanted`` are the requirements."""
    for requirement in map(Requirement, wanted):
        if requirement.name == "transformer-engine" and not requirement.specifier.contains(
            version, prereleases=True
        ):
            return (
                f"Transformer Engine {version} is here, megatron-core is for "
                f"{requirement.specifier}: choose another BASE_IMAGE"
            )
    return None


def faults() -> Iterator[str]:
    """One sentence each."""
    import torch  # the extensions are linked with it

    for name in EXTENSIONS:
        try:
            importlib.import_module(name)
        except ImportError as error:
            yield f"apex's extension {name} does not import: {error}"
    wanted = importlib.metadata.requires("megatron-core") or []
    version = importlib.metadata.version("transformer-engine")
    if (fault := transformer_engine_fault(version, wanted)) is not None:
        yield fault
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, NCCL {nccl}: the engines' image")
    print("needs the same NCCL, to the patch (docs/engines.md)")


if __name__ == "__main__":
    found = list(faults())
    print("\n".join(found), file=sys.stderr)
    sys.exit(bool(found))
