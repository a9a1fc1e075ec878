#!/usr/bin/env python3
"""Print the Secrets that an overlay needs, with fresh random passwords and tokens. Needs nothing but Python.

    scripts/k8s_secrets.py local | kubectl create -f -
    scripts/k8s_secrets.py gpu --database-url postgresql+psycopg://querent:...@db:5432/querent | kubectl create -f -

`create`, so that nothing that is there already is changed. Secrets are in no repository; how to rotate them is in
docs/deployment.md.
"""

import argparse
import json
import secrets
import sys
from typing import Any

NAMESPACE = "querent"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overlay", choices=("local", "gpu"))
    parser.add_argument("--database-url", default="", help="gpu: postgresql+psycopg://user:password@host:5432/database")
    given = parser.parse_args()
    if given.overlay == "gpu" and not given.database_url.startswith("postgresql"):
        parser.error("the gpu overlay needs --database-url postgresql+psycopg://user:password@host:5432/database")
    print(json.dumps(objects(given.overlay, given.database_url), indent=2))
    return 0


def objects(overlay: str, database_url: str) -> dict[str, Any]:
    """A List of Secrets; the namespace is made first: kubectl create namespace querent."""
    password = secrets.token_urlsafe(24)
    wanted = {
        "querent-redis": {
            "password": password,
            "auth.conf": f"requirepass {password}\n",
            "url": f"redis://:{password}@querent-redis:6379/0",
        },
        "querent-tokens": {"predict": f"{secrets.token_urlsafe(32)}\n", "admin": f"{secrets.token_urlsafe(32)}\n"},
    }
    if overlay == "gpu":
        wanted["querent-database"] = {"url": database_url}
    return {"apiVersion": "v1", "kind": "List", "items": [_secret(name, data) for name, data in wanted.items()]}


def _secret(name: str, data: dict[str, str]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": NAMESPACE, "labels": {"app.kubernetes.io/part-of": "querent"}}
    return {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "stringData": data}


if __name__ == "__main__":
    sys.exit(main())
