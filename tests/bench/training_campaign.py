"""A whole campaign of ten fine-tuning rounds, and where its time goes.

The product's own tasks, one after the other in this process, with a real inference process and no broker.
"""

import os
import tempfile
from collections import Counter
from pathlib import Path

from services.demo.ports import choose
from services.demo.processes import Supervisor
from services.demo.services import Ports, start_inference
from services.trainer.campaigns import start_campaign
from services.trainer.config import CampaignConfig
from services.trainer.settings import Settings
from services.trainer.task_runner import task_of
from services.trainer.wiring import open_stores
from services.trainer.worker_wiring import build_task_runner

ROUNDS = 10


def ten_rounds(config: CampaignConfig, settings: Settings, rounds: int = ROUNDS) -> tuple[dict[str, float], float]:
    """Phase -> seconds over all rounds, and test accuracy after the last one."""
    # Round 1 buys the initial labels.
    count = config.rounds.model_copy(update={"count": rounds - 1})
    with (
        tempfile.TemporaryDirectory() as folder,
        Supervisor(Path(folder) / "logs") as children,
    ):
        root, ports = Path(folder), Ports(*choose((8001, 8002, 8003)))
        mine = settings.model_copy(
            update={
                "database_url": f"sqlite:///{root}/bench.db",
                "registry_dir": root / "registry",
                "embeddings_dir": root / "embeddings",
                "reports_dir": root / "reports",
                "inference_address": ports.address,
            }
        )
        environment = {
            **os.environ,
            **ports.environment(),
            "INFERENCE_REGISTRY_DIR": str(mine.registry_dir),
            "INFERENCE_SOURCES_DIR": str(mine.sources_dir),
            "INFERENCE_EMBEDDINGS_DIR": str(mine.embeddings_dir),
            "QUERENT_DATA_DIR": str(mine.data_dir),
        }
        stores = open_stores(mine)
        mine.registry_dir.mkdir(parents=True, exist_ok=True)
        start_inference(children, environment, ports)
        wanted = config.model_copy(update={"rounds": count})
        campaign = start_campaign(wanted, stores.campaigns, mine.data_dir, mine.sources_dir, lambda *_: None)
        runner = build_task_runner(mine)
        due = [(task_of(stores.campaigns.newest_round(campaign.name)), campaign.name, 0)]
        while due:
            task, name, round_no = due.pop(0)
            getattr(runner, task)(name, round_no, lambda *following: due.append(following))
        ended = stores.campaigns.campaign(campaign.name)
        if ended.state != "finished":
            raise SystemExit(f"the campaign did not finish: {ended.state}, {ended.reason}")
        done = stores.campaigns.rounds(campaign.name)
    seconds: Counter[str] = Counter()
    for it in done:
        seconds.update(it.seconds)
    return dict(seconds), done[-1].report["metrics"]["test"]["accuracy"]
