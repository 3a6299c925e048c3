"""The families of models that can be trained: one record per Hugging Face ``model_type``.

A record says what the trainer computes for that type. The checks, the dry run, the doctor, the
estimate and the trainer all read it here. Anything that no record covers is refused by name before
anything starts (``aent.models.config_json``), so a record must agree with transformers' own model
(tests/models/test_parity.py). Imports no torch.
"""

from aent.models.families.family import INERT, ROPES, Family
from aent.models.families.records import FAMILIES

__all__ = ["FAMILIES", "INERT", "ROPES", "Family"]
