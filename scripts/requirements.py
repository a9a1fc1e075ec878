"""Write requirements/: the pinned packages of each image, from constraints.txt.

    .venv/bin/python scripts/requirements.py            # write them
    .venv/bin/python scripts/requirements.py --check    # exit with 1 when they are out of date

What depends on what is read from the packages that are installed, so it runs in the development environment.
"""

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "requirements"
# Markers are read for the images' interpreter, whatever runs this script.
IMAGE = {
    "python_version": "3.11",
    "python_full_version": "3.11.14",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "sys_platform": "linux",
    "os_name": "posix",
}
HEADER = "# {what}. Made from constraints.txt by scripts/requirements.py; do not edit.\n"
# Not in constraints.txt, which pins what a checkout installs: onnxruntime-gpu with its extras `cuda` and `cudnn`.
# cuBLAS is in neither extra; it comes as cuDNN's own dependency.
ONNXRUNTIME_GPU = {
    "onnxruntime-gpu": "1.31.1",
    "nvidia-cublas": "13.10.0.20",
    "nvidia-cuda-nvrtc": "13.5.37",
    "nvidia-cuda-runtime": "13.5.37",
    "nvidia-cudnn-cu13": "9.28.1.4",
    "nvidia-cufft": "12.5.0.14",
    "nvidia-curand": "10.4.5.25",
    "nvidia-nvjitlink": "13.5.37",
}
# What packages need that a development environment does not have.
NOT_INSTALLED = {"psycopg": ["psycopg-binary", "typing-extensions"], "psycopg-binary": []}
TRAINER_EXTRAS = ("trainer", "inference-cpu", "postgres", "s3", "weights")


def main() -> int:
    wanted = files()
    if "--check" in sys.argv[1:]:
        stale = [name for name, text in wanted.items() if _content(FOLDER / name) != text]
        if stale:
            print(f"out of date: {', '.join(stale)}; write them with: make requirements", file=sys.stderr)
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for name, text in wanted.items():
        (FOLDER / name).write_text(text)
    return 0


def files() -> dict[str, str]:
    """File name -> what it should hold."""
    inference = closure(("inference-cpu", "s3"))
    on_gpu = {name: pin for name, pin in inference.items() if name != "onnxruntime"} | ONNXRUNTIME_GPU
    libraries = {name: on_gpu.pop(name) for name in list(on_gpu) if name.startswith("nvidia-")}
    trainer = closure(TRAINER_EXTRAS)
    torch = {name: trainer.pop(name) for name in ("torch", "torchvision")}
    return {
        "inference-cpu.txt": _text("The inference image on CPUs", inference),
        "inference-gpu.txt": _text("The inference image on GPUs, beside inference-gpu-libraries.txt", on_gpu),
        "inference-cpu-libraries.txt": _text("CPUs need no libraries of a device", {}),
        "inference-gpu-libraries.txt": _text("CUDA and cuDNN of the inference image: a layer of its own", libraries),
        "trainer.txt": _text("The trainer's image, beside torch.txt: on CPUs and GPUs", trainer),
        "torch.txt": _text("torch of the trainer's image: a layer of its own, from TORCH_INDEX where it is set", torch),
    }


def closure(extras: Iterable[str]) -> dict[str, str]:
    """Name -> pinned version of everything that the project needs with these extras."""
    pins = _pins()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(line) for line in project["dependencies"]]
    waiting += [Requirement(line) for extra in extras for line in project["optional-dependencies"][extra]]
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name, wanted = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        if name == "querent":
            waiting += [Requirement(line) for extra in wanted for line in project["optional-dependencies"][extra]]
            continue
        found[name] = pins[name]
        waiting += _needed_by(name, wanted)
    return found


def _needed_by(name: str, extras: frozenset[str]) -> list[Requirement]:
    try:
        lines = NOT_INSTALLED[name] if name in NOT_INSTALLED else requires(name) or []
    except PackageNotFoundError:
        sys.exit(f"{name} is not installed here; run `make test` once, which makes the development environment")
    parsed = [Requirement(line) for line in lines]
    return [r for r in parsed if _holds(r, extras) and canonicalize_name(r.name) in _pins()]


def _holds(requirement: Requirement, extras: frozenset[str]) -> bool:
    """Whether the images need it. What constraints.txt leaves out, torch's CUDA packages, torch pins itself."""
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({**IMAGE, "extra": extra}) for extra in ("", *extras))


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if re.match(r"^[a-z0-9]", line))


def _text(what: str, pins: dict[str, str]) -> str:
    return HEADER.format(what=what) + "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))


def _content(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


if __name__ == "__main__":
    sys.exit(main())
