"""torchvision, also where it does not match torch: import it from here, and timm only after this module.

The torchvision wheel that belongs to a CPU build of torch is built for CUDA and brings no operators for it.
Its import then fails at the first use of `torchvision::nms`, an operator of detection models, which we never call:
declaring the two schemas is enough. Declaring them first would break an install that does match.
"""

import importlib
import sys
from types import ModuleType

import torch

_MISSING = "operator torchvision::nms does not exist"
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# A library's operators live as long as the object does.
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """torchvision, with the missing operators declared when, and only when, its import asks for them."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if _MISSING not in str(error):
            raise
    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(operator + _SCHEMA)  # type: ignore[no-untyped-call]
    _declared.append(library)
    return importlib.import_module("torchvision")


torchvision = import_torchvision()
