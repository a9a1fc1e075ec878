"""Any ONNX network as a registry version of its own: it answers ModelInfer beside the campaigns' models.

For networks that Querent did not train. They know nothing of images, classes or rounds: tensors in, tensors out.
"""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnxruntime as ort

from services.common.datatypes import DATATYPES
from services.common.errors import BadConfig, Conflict
from services.common.manifest import (
    MANIFEST_FILE,
    MODEL_FILE,
    BackboneInfo,
    Manifest,
    Parity,
    Signature,
    TensorSpec,
)
from services.common.registry import Registry, is_campaign_name
from services.trainer.parity import session


def import_plain(registry: Registry, name: str, graph: Path) -> int:
    """Publish `graph` as the next version of the plain model `name`; gives the version.

    Raises BadConfig for a graph that cannot be served, Conflict for a name that a campaign has.
    """
    if not is_campaign_name(name):
        raise BadConfig(f"{name!r} is not a model name (a-z, 0-9 and -, at most 63)")
    versions = registry.versions(name)
    if versions and registry.manifest(name, versions[-1]).plain is None:
        raise Conflict(f"{name!r} is a campaign's; choose another name")
    signature, content = _read(graph)
    version = versions[-1] + 1 if versions else 1
    manifest = _manifest(name, version, signature, content)
    registry.create_campaign(name, ())
    staged = registry.staging_dir()
    (staged / MODEL_FILE).write_bytes(content)
    (staged / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2))
    registry.publish(staged, name, version)
    return version


def _read(graph: Path) -> tuple[Signature, bytes]:
    try:
        content = graph.read_bytes()
        # From its bytes, as inference will: weights in a file beside it would be found here and missing there.
        network = session(content)
    except OSError as error:
        raise BadConfig(f"{graph} cannot be read: {error.strerror}") from error
    # onnxruntime raises a dozen unrelated types for a graph that it cannot run.
    except Exception as error:
        raise BadConfig(f"{graph}: onnxruntime refuses it (weights must be inside the file): {error}") from error
    inputs = network.get_inputs()
    if len(inputs) != 1:
        raise BadConfig(f"{graph} has {len(inputs)} inputs; a model that is served has one")
    return Signature(
        input=_spec(graph, inputs[0]), outputs=tuple(_spec(graph, o) for o in network.get_outputs())
    ), content


def _spec(graph: Path, tensor: Any) -> TensorSpec:
    """Of onnxruntime's NodeArg."""
    shape = list(tensor.shape)
    if tensor.type not in DATATYPES:
        raise BadConfig(f"{graph}: {tensor.name!r} is {tensor.type}; known: {', '.join(DATATYPES)}")
    if not shape or isinstance(shape[0], int) or not all(isinstance(size, int) for size in shape[1:]):
        raise BadConfig(
            f"{graph}: {tensor.name!r} has shape {shape}; the first dimension must be free, for the batch, "
            "and all others must be numbers"
        )
    return TensorSpec(name=tensor.name, datatype=DATATYPES[tensor.type], shape=tuple(shape[1:]))


def _manifest(name: str, version: int, signature: Signature, content: bytes) -> Manifest:
    return Manifest(
        campaign=name,
        version=version,
        round=0,
        classes=(),
        input_height=0,
        input_width=0,
        embedding_id="",
        embedding_size=0,
        embedding_shared=False,
        backbone=BackboneInfo(
            name="plain",
            weights="none",
            weights_sha256="",
            network_size=0,
            interpolation="none",
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            taps="none",
            pooling="none",
            flip=False,
            precision="",
        ),
        head="none",
        members=1,
        temperature=1.0,
        labels_used=0,
        metrics={},
        parity=Parity(images=0, top1_disagreements=0, max_probability_error=0.0, max_logit_error=0.0),
        files={MODEL_FILE: hashlib.sha256(content).hexdigest()},
        created_at=datetime.now(UTC),
        software={"onnxruntime": ort.__version__},
        plain=signature,
    )
