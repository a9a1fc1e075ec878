"""manifest.json: what a model version is, what it was made from, and how to tell that it is whole."""

from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.common.errors import DamagedArtefact

MODEL_FILE = "model.onnx"
HEAD_FILE = "head.onnx"
MANIFEST_FILE = "manifest.json"

# Faster graphs of a version, beside model.onnx: the same contract at less precision.
VariantKind = Literal["fp16", "int8"]
VARIANT_FILES: dict[VariantKind, str] = {"fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BackboneInfo(_Frozen):
    name: str
    # Where the weights came from ("default", "none" or a path's file name) and what they were.
    weights: str
    weights_sha256: str
    # Pixels of the network's own square input, after the upscaling inside the graph.
    network_size: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    taps: str
    pooling: str
    flip: bool
    precision: str
    # Of several backbones side by side: each of them. What is above is then of the whole: names joined, pixels as they
    # are, the largest network.
    members: tuple["BackboneInfo", ...] = ()


class Parity(_Frozen):
    """How far the exported graph is from the torch module, on real images."""

    images: int
    top1_disagreements: int
    max_probability_error: float
    max_logit_error: float
    # Largest error of an embedding, as a share of the largest value in the embeddings.
    max_embedding_error: float = 0.0


class TensorSpec(_Frozen):
    name: str
    # As the Open Inference Protocol names it: FP32, UINT8, ...
    datatype: str
    # Without the batch dimension, which comes first.
    shape: tuple[int, ...]


class Signature(_Frozen):
    """What goes into a network and what comes out of it."""

    input: TensorSpec
    outputs: tuple[TensorSpec, ...]


class VariantCheck(_Frozen):
    """How far a faster graph is from the fp32 one, and why it was not published if it was not."""

    # "": published.
    refused: str = ""
    # Unlabelled images compared, and the share of them with the same most probable class.
    images: int = 0
    agreement: float | None = None
    # Randomly drawn labelled samples, and of how many each graph was right.
    random_slice: int = 0
    random_slice_correct: int = 0
    random_slice_correct_fp32: int = 0
    # None where a value was not finite, or where nothing was compared.
    max_probability_error: float | None = None
    # Largest absolute value between the layers of the fp32 graph; float16 ends at 65,504.
    largest_activation: float | None = None


class Manifest(_Frozen):
    schema_version: int = 1
    campaign: str
    version: int = Field(ge=1)
    round: int = Field(ge=0)
    classes: tuple[str, ...]
    input_height: int
    input_width: int
    embedding_id: str
    embedding_size: int
    # False when the backbone was trained in this round, so that the embeddings belong to this version alone.
    embedding_shared: bool
    backbone: BackboneInfo
    # "zero" (nothing learned yet), "logistic", "linear", or "none" for a plain model.
    head: str
    members: int = Field(ge=1)
    temperature: float = Field(gt=0)
    labels_used: int = Field(ge=0)
    # split -> metric -> value; "test" only reports, "random_slice" decides.
    metrics: dict[str, dict[str, float]]
    parity: Parity
    # Every variant that the campaign asked for; manifests from before there were any have none.
    variants: dict[VariantKind, VariantCheck] = {}
    # file name -> sha256 in hex
    files: dict[str, str]
    created_at: datetime
    software: dict[str, str]
    # Only of a plain model, any network with one batched input: it answers ModelInfer and knows nothing of images,
    # so that what is said of them above is empty.
    plain: Signature | None = None

    @property
    def signature(self) -> Signature:
        return self.plain or Signature(
            input=TensorSpec(name="image", datatype="UINT8", shape=(self.input_height, self.input_width, 3)),
            outputs=(
                TensorSpec(name="probabilities", datatype="FP32", shape=(len(self.classes),)),
                TensorSpec(name="logits", datatype="FP32", shape=(self.members, len(self.classes))),
                TensorSpec(name="embedding", datatype="FP32", shape=(self.embedding_size,)),
            ),
        )

    @property
    def published_variants(self) -> frozenset[VariantKind]:
        return frozenset(
            kind for kind, check in self.variants.items() if not check.refused and VARIANT_FILES[kind] in self.files
        )


def read_manifest(version_dir: Path) -> Manifest:
    """Raises DamagedArtefact when the file is missing, is not valid or names another version."""
    path = version_dir / MANIFEST_FILE
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DamagedArtefact(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DamagedArtefact(f"{path}: {where}: {first['msg']}") from error
    if (manifest.campaign, str(manifest.version)) != (version_dir.parent.name, version_dir.name):
        raise DamagedArtefact(
            f"{path} describes {manifest.campaign}/{manifest.version}; it lies in another version's folder"
        )
    missing = ({MODEL_FILE} if manifest.plain else {MODEL_FILE, HEAD_FILE}) - set(manifest.files)
    if missing:
        raise DamagedArtefact(f"{path} has no checksum of {', '.join(sorted(missing))}")
    return manifest
