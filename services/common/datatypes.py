"""Element types of tensors by their names in the Open Inference Protocol, in numpy and in onnxruntime."""

import numpy as np

NUMPY_TYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}
# onnxruntime's names.
DATATYPES: dict[str, str] = {
    f"tensor({name})": datatype
    for name, datatype in {
        "bool": "BOOL",
        **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
        **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
        "float16": "FP16",
        "float": "FP32",
        "double": "FP64",
    }.items()
}
