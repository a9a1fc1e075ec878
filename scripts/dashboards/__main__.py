"""Write the Grafana dashboards: python -m scripts.dashboards [--check]

--check writes nothing and ends with 1 when what is committed is not what would be written.
"""

import json
import sys
from pathlib import Path

from scripts.dashboards.board import Dashboard
from scripts.dashboards.campaign import CAMPAIGN
from scripts.dashboards.fleet import FLEET
from scripts.dashboards.serving import SERVING

FOLDER = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards"
DASHBOARDS = {"campaign": CAMPAIGN, "serving": SERVING, "fleet": FLEET}


def text(dashboard: Dashboard) -> str:
    return json.dumps(dashboard.json(), indent=2, ensure_ascii=False) + "\n"


def outdated() -> list[Path]:
    """Files that are not what would be written."""
    paths = {FOLDER / f"{name}.json": text(dashboard) for name, dashboard in DASHBOARDS.items()}
    return [path for path, wanted in paths.items() if not path.exists() or path.read_text() != wanted]


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        for path in outdated():
            print(f"{path.name} is outdated; run: python -m scripts.dashboards", file=sys.stderr)
        return bool(outdated())
    if arguments:
        print(__doc__)
        return arguments not in (["--help"], ["-h"])
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, dashboard in DASHBOARDS.items():
        (FOLDER / f"{name}.json").write_text(text(dashboard))
        print(f"written: {name}.json, {len(dashboard.json()['panels'])} panels and rows")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
