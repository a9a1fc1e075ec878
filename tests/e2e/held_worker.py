"""A worker that waits at the steps of a round for which its folder holds a file, until the file is gone."""

import sys
import time
from pathlib import Path

from services.trainer import wiring
from services.trainer.serving import serve_worker


def hold_file(folder: Path, step: str, round_no: int) -> Path:
    return folder / f"{step}-{round_no}"


def main() -> None:
    folder = Path(sys.argv[1])

    def wait_here(step: str, round_no: int) -> None:
        file = hold_file(folder, step, round_no)
        while file.exists():
            file.write_text("held")
            time.sleep(0.05)

    serve_worker(wiring.settings(), wait_here)


if __name__ == "__main__":
    main()
