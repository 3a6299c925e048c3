"""Check that the trainer's image has what a run on GPUs needs. Runs when the image is built,
without a GPU. ``check_trainer.py NCCL``: the version in the engines' image."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterator

from packaging.requirements import Requirement

# apex's extensions that Megatron and the chunked head call
EXTENSIONS = ("amp_C", "fused_weight_gradient_mlp_cuda")


def transformer_engine_fault(version: str, wanted: list[str]) -> str | None:
    """Whether megatron-core supports this version of Transformer Engine. ``wanted``: the
    requirements in its metadata."""
    for requirement in map(Requirement, wanted):
        if requirement.name == "transformer-engine" and not requirement.specifier.contains(
            version, prereleases=True
        ):
            return (
                f"Transformer Engine {version} is here, megatron-core is for "
                f"{requirement.specifier}: choose another BASE_IMAGE"
            )
    return None


def nccl_fault(version: tuple[int, ...], wanted: str) -> str | None:
    """Whether torch uses the NCCL version of the engines' image, including the patch level."""
    loaded = ".".join(map(str, version))
    if loaded == wanted:
        return None
    return (
        f"torch calls NCCL {loaded}, the engines' image has {wanted}, and weights travel by NCCL "
        "of one version: give the engines' by --build-arg NCCL=, or choose another BASE_IMAGE"
    )


def faults(wanted_nccl: str) -> Iterator[str]:
    """The faults, one sentence each."""
    import torch  # the extensions are linked with it

    from aent.weights import nccl

    for name in EXTENSIONS:
        try:
            importlib.import_module(name)
        except ImportError as error:
            yield f"apex's extension {name} does not import: {error}"
    wanted = importlib.metadata.requires("megatron-core") or []
    version = importlib.metadata.version("transformer-engine")
    if (fault := transformer_engine_fault(version, wanted)) is not None:
        yield fault
    try:
        if (fault := nccl_fault(nccl.loaded_version(), wanted_nccl)) is not None:
            yield fault
    except RuntimeError as error:  # torch has it built in
        yield f"{error}: which NCCL torch has is not known here; choose a BASE_IMAGE that loads it"
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, NCCL {wanted_nccl}")


if __name__ == "__main__":
    found = list(faults(sys.argv[1]))
    print("\n".join(found), file=sys.stderr)
    sys.exit(bool(found))
