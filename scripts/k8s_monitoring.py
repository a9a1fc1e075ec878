"""Write deploy/k8s/components/monitoring/generated/ from deploy/prometheus/rules and deploy/grafana/dashboards.

    .venv/bin/python scripts/k8s_monitoring.py            # write it
    .venv/bin/python scripts/k8s_monitoring.py --check    # exit with 1 when it is out of date

One PrometheusRule for each file of rules and one ConfigMap for each dashboard, so that promtool's tests of the files
that compose reads hold for the cluster too.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
GENERATED = Path("deploy/k8s/components/monitoring/generated")
NOTE = "# Made by scripts/k8s_monitoring.py from {source}; do not edit.\n"
# Larger objects cannot be applied: kubectl keeps a copy of each in an annotation, which may have 256 KiB.
MAX_BYTES = 250_000


def files(root: Path = ROOT) -> dict[str, str]:
    """File name -> what it should hold. Raises ValueError for a dashboard that is too large to apply."""
    made = {}
    for path in sorted((root / "deploy/prometheus/rules").glob("*.yml")):
        made[f"rules-{path.stem}.yaml"] = _yaml(path.relative_to(root), _rules(path))
    for path in sorted((root / "deploy/grafana/dashboards").glob("*.json")):
        made[f"dashboard-{path.stem}.yaml"] = _yaml(path.relative_to(root), _dashboard(path))
    listed = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": sorted(made)}
    return {**made, "kustomization.yaml": _yaml(Path("deploy/prometheus and deploy/grafana"), listed)}


def _rules(path: Path) -> dict[str, Any]:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": f"querent-{path.stem}", "labels": {"app.kubernetes.io/name": "querent"}},
        "spec": yaml.safe_load(path.read_text()),
    }


def _dashboard(path: Path) -> dict[str, Any]:
    content = json.dumps(json.loads(path.read_text()), separators=(",", ":"), ensure_ascii=False)
    if len(content.encode()) > MAX_BYTES:
        raise ValueError(f"{path} has {len(content.encode())} bytes; more than {MAX_BYTES} cannot be applied: split it")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        # The label that Grafana's sidecar looks for.
        "metadata": {"name": f"querent-dashboard-{path.stem}", "labels": {"grafana_dashboard": "1"}},
        "data": {path.name: content},
    }


def _yaml(source: Path, value: dict[str, Any]) -> str:
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)
    return NOTE.format(source=source) + text


def out_of_date(root: Path = ROOT) -> list[str]:
    """Names of files that are not what they should be, also those that should not be there."""
    wanted = files(root)
    there = {path.name: path.read_text() for path in (root / GENERATED).glob("*")}
    return sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))


def main() -> int:
    if "--check" in sys.argv[1:]:
        stale = out_of_date()
        if stale:
            print(f"{GENERATED} is out of date ({', '.join(stale)}); run scripts/k8s_monitoring.py", file=sys.stderr)
        return 1 if stale else 0
    folder = ROOT / GENERATED
    folder.mkdir(parents=True, exist_ok=True)
    wanted = files()
    for path in folder.glob("*"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
