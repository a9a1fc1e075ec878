"""Write constraints.txt: what pip resolves pyproject.toml to today, as pins.

torch and torchvision belong together and are large, so they keep their pins unless named:
    make lock TORCH="torch==2.14.0 torchvision==0.29.0"
"""

import json
import re
import subprocess
import sys
from pathlib import Path

HEADER = """\
# Pins for Python 3.11 and 3.12, made by `make lock`. pyproject.toml holds the ranges.
# A pin such as torch==2.13.0 accepts a build of it too (2.13.0+cpu). What only CUDA builds of torch need
# (nvidia-*, triton) is not listed: torch pins it itself.
"""
EXTRAS = "trainer,inference-cpu,postgres,s3,demo,dev"
CONSTRAINTS = Path("constraints.txt")
_BUILD_ONLY = re.compile(r"(nvidia|cuda)-.*|triton|querent")


def main() -> None:
    kept = sys.argv[1:] or _current_torch()
    print(f"Resolving .[{EXTRAS}] with {' '.join(kept) or 'the newest torch'}")
    pins = sorted(_resolve(kept).items())
    CONSTRAINTS.write_text(HEADER + "".join(f"{name}=={version}\n" for name, version in pins))
    print(f"{CONSTRAINTS}: {len(pins)} pins. Try them: make clean test")


def _current_torch() -> list[str]:
    if not CONSTRAINTS.is_file():
        return []
    return re.findall(r"^(?:torch|torchvision)==.*$", CONSTRAINTS.read_text(), flags=re.MULTILINE)


def _resolve(kept: list[str]) -> dict[str, str]:
    """Package -> version without a build's local suffix."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    answer = subprocess.run(
        [*command, "--report", "-", *kept, "-e", f".[{EXTRAS}]"], stdout=subprocess.PIPE, text=True, check=True
    )
    found = [item["metadata"] for item in json.loads(answer.stdout)["install"]]
    named = {re.sub(r"[-_.]+", "-", f["name"]).lower(): f["version"].split("+")[0] for f in found}
    return {name: version for name, version in named.items() if not _BUILD_ONLY.fullmatch(name)}


if __name__ == "__main__":
    main()
