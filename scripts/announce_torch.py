"""Say so before pip downloads gigabytes: does the torch that it would take bring CUDA along?

Runs inside .venv with nothing but pip there.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

from pip._vendor.packaging.requirements import Requirement

NOTICE = """\
+------------------------------------------------------------------------------------------------
| A LARGE DOWNLOAD FOLLOWS: about 3 GB, some 7 GB on disk.
| The torch {version} that your package index offers brings {count} CUDA packages along
| ({names}, ...).
| Querent's demo needs none of them. To take a CPU build (about 0.2 GB), press Ctrl-C now, run
|     make clean
|     make demo TORCH_INDEX=<address of an index with CPU builds of torch>
| PyTorch's own "Get Started" page shows that address when you choose "CPU" as the platform.
+------------------------------------------------------------------------------------------------"""


def main() -> None:
    if find_spec("torch"):
        return
    torch = _torch_that_pip_would_take()
    if torch is None:
        return
    cuda = _cuda_packages(torch.get("requires_dist", []))
    if cuda:
        names = ", ".join(cuda[:3])
        print(NOTICE.format(version=torch["version"], count=len(cuda), names=names), flush=True)


def _torch_that_pip_would_take() -> dict[str, Any] | None:
    """The metadata of the wheel; None when pip cannot tell, which the installation will explain better."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--report", "-"]
    answer = subprocess.run([*command, "-c", "constraints.txt", "torch"], capture_output=True, text=True)
    if answer.returncode != 0:
        return None
    found = json.loads(answer.stdout)["install"]
    return dict(found[0]["metadata"]) if found else None


def _cuda_packages(requirements: list[str]) -> list[str]:
    parsed = [Requirement(line) for line in requirements]
    wanted = [r.name for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return [name for name in wanted if name.startswith(("nvidia-", "cuda-", "triton"))]


if __name__ == "__main__":
    main()
