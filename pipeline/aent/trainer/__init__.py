from aent.trainer import lean_imports  # before any module here imports Megatron

__all__ = ["lean_imports"]
