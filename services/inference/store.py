"""Which model version answers: follows the registry by polling it, and finds what a request asks for.

A promoted version is loaded and warmed beside the old one and then takes over in one step; any other
published version is loaded when somebody asks for it.
"""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import structlog

from services.common.errors import (
    BadRequest,
    DamagedArtefact,
    ModelNotReady,
    NotFound,
    QuerentError,
    Unavailable,
    did_you_mean,
    shown,
)
from services.common.manifest import Manifest
from services.common.registry import Registry
from services.inference.changes import Changes
from services.inference.loading import Key, Loader
from services.inference.memory import Held, LoadedModels
from services.inference.model import Model

log = structlog.get_logger()


@dataclass(frozen=True)
class Description:
    """What the registry and this replica know of one version."""

    manifest: Manifest
    current: int | None
    published: tuple[int, ...]
    # "": not in memory. The precision stands behind it where it is not fp32.
    provider: str


class Lease:
    """`async with` gives the model. A class, since every call passes here: half the cost of a generator."""

    __slots__ = ("_held", "_name", "_store", "_version")

    def __init__(self, store: "ModelStore", name: str, version: int) -> None:
        self._store = store
        self._name = name
        self._version = version

    async def __aenter__(self) -> Model:
        self._held = await self._store.hold(self._name, self._version)
        return self._held.model

    async def __aexit__(self, *_: object) -> None:
        self._held.let_go()


class ModelStore:
    """Hands out models by name and version. `scope` names the campaigns to serve; all when it is empty."""

    def __init__(self, registry: Registry, loader: Loader, loaded: LoadedModels, scope: Collection[str] = ()) -> None:
        self._registry = registry
        self._loader = loader
        self._loaded = loaded
        self._scope = frozenset(scope)
        # Campaign -> the version that answers, and the one that its file `current` names.
        self._active: dict[str, int] = {}
        self._promoted: dict[str, int] = {}
        # Every campaign that is served, and the version that answers: 0 while none does.
        self.answering: Mapping[str, int] = {}
        # Promoted and not loaded, for a reason that may pass. What is refused for good is not in it: every other
        # replica would refuse it too, and leaving their other campaigns without an answer helps nobody.
        self.missing: frozenset[str] = frozenset()
        # Told after each change of `answering`.
        self.changes = Changes()
        self._look = asyncio.Lock()

    # ---- handing out ---------------------------------------------------------------------------------

    def lease(self, name: str = "", version: int = 0) -> "Lease":
        """A model that stays in memory until the block ends. Name "": the only one; version 0: the promoted.

        Raises NotFound, ModelNotReady, BadRequest or DamagedArtefact.
        """
        return Lease(self, name, version)

    async def hold(self, name: str, version: int) -> Held:
        """Raises as `lease` does."""
        # What most calls ask for needs no look at the registry: a version that is in memory.
        wanted = version or self._active.get(name)
        if wanted and name in self.answering and (held := self._loaded.hold((name, wanted))):
            return held
        return await self._loaded.hold_loaded(await self._resolve(name, version))

    async def describe(self, name: str = "", version: int = 0) -> Description:
        """Raises as `lease` does, except that a campaign without a promoted version gives its newest."""
        try:
            key = await self._resolve(name, version)
        except ModelNotReady:
            key = await asyncio.to_thread(self._newest, name)
        return await asyncio.to_thread(self._describe, key)

    async def describe_all(self) -> list[Description]:
        """One for each campaign with at least one published version that can be read."""
        described = []
        for name in await asyncio.to_thread(self._campaigns):
            try:
                described.append(await self.describe(name))
            except (DamagedArtefact, NotFound, ModelNotReady) as error:
                log.warning("model_not_listed", model=name, error=str(error))
        return described

    async def _resolve(self, name: str, version: int) -> Key:
        if version < 0:
            raise BadRequest(f"version {version} is negative; versions begin at 1, and 0 means the promoted one")
        name = name or await self._only_name(version)
        if self._scope and name not in self._scope:
            raise NotFound(f"no model {shown(name)} is served here; {did_you_mean(name, self._scope)}")
        if version:
            return name, version
        if name not in self._active:
            await self.sync()
        # A promoted version that cannot be loaded stands here too, so that asking for it tells why.
        answering = self._active.get(name) or self._promoted.get(name)
        if answering is None:
            known = await asyncio.to_thread(self._campaigns)
            if name not in known:
                raise NotFound(f"no model {shown(name)}; {did_you_mean(name, known)}")
            raise ModelNotReady(f"no model promoted yet for {name!r}; name a published version to use it")
        return name, answering

    async def _only_name(self, version: int) -> str:
        """The name that a request may leave out."""
        if not self._promoted:
            await self.sync()
        names = await asyncio.to_thread(self._campaigns) if version else sorted(self._promoted)
        if not names:
            raise ModelNotReady("no model promoted yet")
        if len(names) > 1:
            raise BadRequest(f"name the model; served: {', '.join(names)}")
        return names[0]

    def _newest(self, name: str) -> Key:
        names = [name] if name else self._campaigns()
        if len(names) > 1:
            raise BadRequest(f"name the model; published: {', '.join(names)}")
        for only in names:
            if versions := self._registry.versions(only):
                return only, versions[-1]
        raise ModelNotReady("no model published yet")

    def _describe(self, key: Key) -> Description:
        model = self._loaded.get(key)
        return Description(
            model.manifest if model else self._registry.manifest(*key),
            self._registry.current(key[0]),
            tuple(self._registry.versions(key[0])),
            _provider(model) if model else "",
        )

    def _campaigns(self) -> list[str]:
        return [n for n in self._registry.campaigns() if not self._scope or n in self._scope]

    # ---- following the registry ----------------------------------------------------------------------

    async def sync(self) -> None:
        """Look at the registry once and follow it. What cannot be followed is logged, counted and left."""
        async with self._look:
            await self._loaded.tidy()
            await self._loaded.reload_replaced()
            try:
                campaigns, promoted = await asyncio.to_thread(self._read_promoted)
            except OSError as error:
                # A network file system that is away for a moment must not empty this replica.
                log.warning("registry_unreadable", error=str(error), consequence="what is loaded serves on")
                return
            self._promoted = promoted
            missing = set()
            for name, version in promoted.items():
                if self._active.get(name) != version:
                    if not await self._follow(name, version):
                        missing.add(name)
                    # Now, not after the others: loading those may take seconds.
                    self._tell(campaigns)
            self.missing = frozenset(missing - self._active.keys())
            for name in set(self._active) - set(promoted):
                self._loaded.retire((name, self._active.pop(name)))
            self._tell(campaigns)
            self._loader.looked()

    def _tell(self, campaigns: Collection[str]) -> None:
        answering = {name: self._active.get(name, 0) for name in campaigns}
        if answering != self.answering:
            self.answering = answering
            self.changes.tell()

    def _read_promoted(self) -> tuple[list[str], dict[str, int]]:
        """All campaigns; and campaign -> promoted version, the last promoted first. Raises OSError."""
        if not self._registry.root.is_dir():
            if self._active:
                raise FileNotFoundError(f"{self._registry.root} is gone")
            return [], {}
        campaigns = self._campaigns()
        promoted: dict[str, tuple[float, int]] = {}
        for name in campaigns:
            try:
                version = self._registry.current(name)
                when = (self._registry.root / name / "current").stat().st_mtime if version else 0.0
            except DamagedArtefact as error:
                self._loader.report((name, 0), error)
                version, when = self._active.get(name), 0.0
            except FileNotFoundError:
                continue  # deleted between the two looks
            except OSError as error:
                # One campaign's trouble is not the others'.
                self._loader.report((name, 0), Unavailable(f"{name}/current cannot be read: {error}"))
                version, when = self._active.get(name), 0.0
            if version:
                promoted[name] = when, version
        newest_first = sorted(promoted.items(), key=lambda item: -item[1][0])
        return campaigns, {name: version for name, (_, version) in newest_first}

    async def _follow(self, name: str, version: int) -> bool:
        """Let `version` answer. Loaded and warm before the old one goes: never a moment without a model.

        False where trying again may help.
        """
        previous = self._active.get(name)
        old = (name, previous) if previous else None
        # At start a registry may hold more campaigns than fit: those are loaded when somebody asks.
        if not old and self._loaded.full:
            self._answer(name, version)
            return True
        try:
            async with self._loaded.taking_over((name, version), old):
                self._answer(name, version)
        except QuerentError as error:
            self._loader.report((name, version), error)
            return not isinstance(error, Unavailable)
        return True

    def _answer(self, name: str, version: int) -> None:
        self._active[name] = version
        log.info("model_serving", model=name, version=version)


def _provider(model: Model) -> str:
    return model.provider if model.precision == "fp32" else f"{model.provider} {model.precision}"
