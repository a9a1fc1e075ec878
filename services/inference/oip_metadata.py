"""What the Open Inference Protocol tells of the server, its models and the repository."""

import asyncio
from collections.abc import Iterator
from importlib.metadata import version as package_version

from services.common.errors import Conflict, QuerentError
from services.common.manifest import TensorSpec
from services.common.pb import open_inference_pb2 as pb
from services.common.registry import LABELS_FILE, Registry
from services.inference.batcher import NORMAL, PRIORITIES, BatchRule
from services.inference.loading import Key
from services.inference.memory import LoadedModels
from services.inference.model import Model
from services.inference.statistics import Duration, Statistics
from services.inference.store import ModelStore

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"
# Of Triton's extensions those that are here, and no others: clients call what stands in this list.
EXTENSIONS = ("classification", "model_repository", "model_configuration", "statistics")
_Index = pb.RepositoryIndexResponse.ModelIndex
_Tensor = pb.ModelMetadataResponse.TensorMetadata


class Catalogue:
    """Answers from the store, the registry and the batchers' rule; loads and unloads when told to."""

    def __init__(self, store: ModelStore, registry: Registry, loaded: LoadedModels, rule: BatchRule) -> None:
        self._store = store
        self._registry = registry
        self._loaded = loaded
        self._rule = rule
        self._server = pb.ServerMetadataResponse(
            name="querent", version=package_version("querent"), extensions=EXTENSIONS
        )

    def server(self) -> pb.ServerMetadataResponse:
        return self._server

    async def model_metadata(self, name: str, version: int) -> pb.ModelMetadataResponse:
        """Without a version: of the one that answers, or of the newest, and all that are published."""
        described = await self._store.describe(name, version)
        facts = described.manifest
        return pb.ModelMetadataResponse(
            name=facts.campaign,
            versions=map(str, [version] if version else described.published),
            platform=PLATFORM,
            inputs=[_tensor(facts.signature.input)],
            outputs=map(_tensor, facts.signature.outputs),
        )

    async def model_config(self, name: str, version: int) -> pb.ModelConfig:
        facts = (await self._store.describe(name, version)).manifest
        return pb.ModelConfig(
            name=facts.campaign,
            platform=PLATFORM,
            backend=BACKEND,
            max_batch_size=self._rule.max_batch,
            input=[
                pb.ModelInput(
                    name=facts.signature.input.name,
                    data_type=_data_type(facts.signature.input.datatype),
                    dims=facts.signature.input.shape,
                )
            ],
            output=[
                pb.ModelOutput(
                    name=output.name,
                    data_type=_data_type(output.datatype),
                    dims=output.shape,
                    label_filename=LABELS_FILE if output.name == "probabilities" and not facts.plain else "",
                )
                for output in facts.signature.outputs
            ],
            dynamic_batching=pb.ModelDynamicBatching(
                max_queue_delay_microseconds=round(self._rule.max_delay_s * 1e6),
                priority_levels=len(PRIORITIES),
                default_priority_level=NORMAL,
            ),
        )

    async def statistics(self, name: str, version: int) -> Iterator[pb.ModelStatistics]:
        """Of the versions in memory; `name` "" and `version` 0 are all of them. Raises NotFound."""
        if name:
            await self._store.describe(name, version)
        keys = await asyncio.to_thread(self._published, name)
        models = [self._loaded.get(key) for key in keys if not version or key[1] == version]
        return (_statistics(model) for model in models if model)

    # ---- the repository ------------------------------------------------------------------------------

    async def index(self, only_ready: bool) -> list[_Index]:
        """Every published version of every campaign that is served."""
        entries = [await self._entry(key) for key in await asyncio.to_thread(self._published, "")]
        return [entry for entry in entries if entry.state == "READY" or not only_ready]

    async def _entry(self, key: Key) -> _Index:
        name, version = key
        if self._loaded.get(key):
            return _Index(name=name, version=str(version), state="READY")
        try:
            await self._store.describe(name, version)
            reason = "not in memory; a request that names this version loads it"
        except QuerentError as error:
            reason = str(error)
        return _Index(name=name, version=str(version), state="UNAVAILABLE", reason=reason)

    async def load(self, name: str) -> None:
        """Have the promoted version in memory now, not when the registry is looked at next. Raises as `lease` does."""
        await self._store.sync()
        # By its number: a promoted version that is damaged must not pass for loaded because an older one answers.
        promoted = await asyncio.to_thread(self._registry.current, name)
        async with self._store.lease(name, promoted or 0):
            pass

    async def unload(self, name: str) -> None:
        """Drop its versions that requests have loaded by naming them.

        Raises Conflict while a version answers from memory: which one does is the registry's to say.
        """
        described = await self._store.describe(name)
        campaign, version = described.manifest.campaign, described.manifest.version
        if described.provider and self._store.answering.get(campaign) == version:
            raise Conflict(
                f"version {version} of {campaign!r} answers, and replicas follow the registry; promote another "
                f"version (al-trainer models promote) or leave {campaign!r} out of INFERENCE_MODELS"
            )
        for other in described.published:
            self._loaded.retire((campaign, other))

    def _published(self, name: str) -> list[Key]:
        served = [name] if name else sorted(self._store.answering)
        return [(campaign, version) for campaign in served for version in self._registry.versions(campaign)]


def _tensor(spec: TensorSpec) -> _Tensor:
    return _Tensor(name=spec.name, datatype=spec.datatype, shape=(-1, *spec.shape))


def _data_type(datatype: str) -> "pb.DataType.ValueType":
    return pb.DataType.Value(f"TYPE_{datatype}")


def _statistics(model: Model) -> pb.ModelStatistics:
    known: Statistics = model.statistics
    return pb.ModelStatistics(
        name=model.name,
        version=str(model.version),
        last_inference=known.last_inference_ms,
        inference_count=known.inference_count,
        execution_count=known.execution_count,
        inference_stats=pb.InferStatistics(
            success=_duration(known.success),
            fail=_duration(known.fail),
            queue=_duration(known.queue),
            compute_input=_duration(known.compute_input),
            compute_infer=_duration(known.compute_infer),
            compute_output=_duration(known.compute_output),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=size,
                compute_input=_duration(parts[0]),
                compute_infer=_duration(parts[1]),
                compute_output=_duration(parts[2]),
            )
            for size, parts in sorted(known.batches.items())
        ],
    )


def _duration(total: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=total.count, ns=total.ns)
