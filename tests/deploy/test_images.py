"""The Dockerfiles: by the linter, by rules of our own, and by doing what images do as far as that needs no engine."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.manifests import ROOT, SETTINGS, dockerfile, image_environment, variables
from tests.tiny_models import Folders, TinyModel, png, publish

SERVICES = ("inference", "trainer")
REQUIREMENTS = ROOT / "requirements"


def pinned(name: str) -> dict[str, str]:
    lines = (REQUIREMENTS / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("service", SERVICES)
def test_the_linter_has_nothing_to_say(service: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    answer = subprocess.run([hadolint, ROOT / "services" / service / "Dockerfile"], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (0, "")


@pytest.mark.parametrize("service", SERVICES)
def test_a_build_asks_no_registry_but_for_its_base(service: str) -> None:
    text = dockerfile(service)
    assert not re.search(r"^#\s*syntax=", text, re.MULTILINE)
    assert "@sha256" not in text
    assert "<<" not in text
    stages = set(re.findall(r"^FROM \S+ AS (\w+)", text, re.MULTILINE))
    assert set(re.findall(r"--from=(\S+)", text)) <= stages
    bases = set(re.findall(r"^FROM (\S+)", text, re.MULTILINE))
    assert bases - stages == {"${PYTHON_IMAGE}"}
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.11-slim-\w+$", text, re.MULTILINE)


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_runs_as_nobody_in_particular_and_hears_sigterm(service: str) -> None:
    last = dockerfile(service).rsplit("\nFROM ", 1)[1]
    assert "\nUSER 10001:10001\n" in last
    assert "\nSTOPSIGNAL SIGTERM\n" in last
    assert re.search(r'^CMD \["al-\w+", "\w+"\]$', last, re.MULTILINE)
    assert re.search(r'^    CMD \["python", "-m", "services\.\w+\.\w+"', last, re.MULTILINE)


@pytest.mark.parametrize("service", SERVICES)
def test_every_variable_of_an_image_is_read(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = image_environment(service)
    own = {name for name in given if name.startswith(("INFERENCE_", "TRAINER_", "QUERENT_"))}
    assert own <= variables(service)
    for name in own:
        monkeypatch.setenv(name, given[name])
    settings = SETTINGS[service]()
    for folder in ("registry_dir", "sources_dir", "embeddings_dir", "data_dir"):
        mount = getattr(settings, folder)
        made = dockerfile(service).split("install -d", 1)[1].split("COPY", 1)[0]
        assert str(mount) in made or str(mount.parent) in made, folder
    # Staging lies beside the registry: on the volume itself.
    assert str(settings.registry_dir.parent) == "/var/lib/querent/registry"


def test_the_trainer_s_check_looks_at_the_file_that_its_worker_touches() -> None:
    assert f'"{image_environment("trainer")["TRAINER_HEARTBEAT_FILE"]}", "--max-age"' in dockerfile("trainer")


# ---- what is in them ----------------------------------------------------------------------------------


def test_the_pins_of_the_images_are_up_to_date() -> None:
    answer = subprocess.run(
        [sys.executable, ROOT / "scripts" / "requirements.py", "--check"], capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("runtime", ["cpu", "gpu"])
def test_the_inference_image_has_one_onnxruntime_and_no_torch(runtime: str) -> None:
    names = pinned(f"inference-{runtime}.txt").keys() | pinned(f"inference-{runtime}-libraries.txt").keys()
    assert not names & {"torch", "torchvision", "timm", "celery", "sqlalchemy", "redis"}
    assert names & {"onnxruntime", "onnxruntime-gpu"} == {"onnxruntime" if runtime == "cpu" else "onnxruntime-gpu"}
    # cuBLAS comes through cuDNN alone; without it the provider does not load.
    wanted = {"nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cuda-runtime", "nvidia-cufft", "nvidia-curand"}
    assert {n for n in names if n.startswith("nvidia-")} >= (wanted if runtime == "gpu" else set())


def test_the_trainer_image_has_what_containers_miss_and_test_environments_hide() -> None:
    names = pinned("trainer.txt").keys() | pinned("torch.txt").keys()
    # packaging: kombu's Redis transport; psycopg-binary: no libpq in a slim image; onnxruntime: the parity check.
    assert names >= {"celery", "redis", "packaging", "psycopg", "psycopg-binary", "onnxruntime", "torch"}
    assert "onnxruntime-gpu" not in names


_ONLY_PINNED = """
import importlib.abc, importlib.metadata, re, sys

allowed = {canonical for line in open(sys.argv[1]) if (canonical := line.split("==")[0].strip()) and line[0] != "#"}
allowed |= {"pip", "setuptools", "querent"}
owners = importlib.metadata.packages_distributions()

class OnlyPinned(importlib.abc.MetaPathFinder):
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        by = {re.sub(r"[-_.]+", "-", d).lower() for d in owners.get(name.partition(".")[0], ())}
        return None if by and not by & allowed else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [OnlyPinned(finder) for finder in sys.meta_path]
sys.argv = sys.argv[:1] + sys.argv[2:]
"""


def test_the_service_answers_with_nothing_but_what_its_image_has(tmp_path: Path) -> None:
    """A real replica, where every package that is not pinned for the image cannot be imported."""
    folders = Folders(tmp_path)
    publish(folders.registry, TinyModel(), promote=True)
    program = _ONLY_PINNED + (
        "import asyncio\n"
        "from services.client.aio import AsyncQuerentClient\n"
        "from services.inference.probe import trouble\n"
        "from services.inference.service import InferenceServer\n"
        "from services.inference.settings import Settings\n"
        "async def main():\n"
        "    server = InferenceServer(Settings())\n"
        "    await server.start()\n"
        "    assert await asyncio.to_thread(trouble, server.health_port, 'readiness') == ''\n"
        "    async with AsyncQuerentClient(f'127.0.0.1:{server.grpc_port}') as client:\n"
        "        print((await client.predict([open(sys.argv[1], 'rb').read()])).model)\n"
        "    await server.stop()\n"
        "asyncio.run(main())\n"
        "assert not {'torch', 'celery', 'sqlalchemy'} & set(sys.modules)\n"
    )
    (tmp_path / "red.png").write_bytes(png())
    given = {
        "INFERENCE_GRPC_PORT": "0",
        "INFERENCE_METRICS_PORT": "0",
        "INFERENCE_HEALTH_PORT": "0",
        "INFERENCE_REGISTRY_DIR": str(folders.registry.root),
        "INFERENCE_SOURCES_DIR": str(folders.sources_dir),
        "INFERENCE_EMBEDDINGS_DIR": str(folders.embeddings_dir),
        "INFERENCE_FEEDBACK_DIR": str(folders.feedback_dir),
        "QUERENT_DATA_DIR": str(folders.data_dir),
    }
    command = [sys.executable, "-c", program, str(REQUIREMENTS / "inference-cpu.txt"), str(tmp_path / "red.png")]
    answer = subprocess.run(command, env={**os.environ, **given}, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert "tiny" in answer.stdout.splitlines()


def test_every_module_of_the_trainer_can_be_imported_with_what_its_image_has(tmp_path: Path) -> None:
    both = tmp_path / "requirements.txt"
    both.write_text((REQUIREMENTS / "trainer.txt").read_text() + (REQUIREMENTS / "torch.txt").read_text())
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "services" / "trainer").rglob("*.py"))
        # Alembic runs its own.
        if path.name != "__init__.py" and "migrations" not in path.parts
    ]
    program = _ONLY_PINNED + "import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    command = [sys.executable, "-c", program, str(both), *modules]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(
    ("service", "others"), [("inference", ("trainer", "demo")), ("trainer", ("inference", "demo"))]
)
def test_a_service_s_image_leaves_the_others_out(service: str, others: tuple[str, ...]) -> None:
    removed = re.search(r"rm -r ((?:services/\w+ ?)+)", dockerfile(service))
    assert removed
    assert set(removed[1].split()) == {f"services/{it}" for it in others}
    for module in (ROOT / "services" / service).rglob("*.py"):
        for other in others:
            assert f"services.{other}" not in _imports(module.read_text()), module


def _imports(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if re.match(r"\s*(from|import) ", line))


def test_nothing_that_a_build_copies_is_kept_from_it() -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for service in SERVICES:
        for sources in re.findall(
            r"^COPY (?!--link --from|--from)(?:--link )?(.+) \S+$", dockerfile(service), re.MULTILINE
        ):
            for source in sources.split():
                assert source.split("/")[0] in kept, source
                assert "$" in source or (ROOT / source).exists(), source


def test_the_script_that_pins_reads_markers_for_the_images_interpreter() -> None:
    spec = importlib.util.spec_from_file_location("requirements", ROOT / "scripts" / "requirements.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.IMAGE["python_version"] in dockerfile("trainer")
