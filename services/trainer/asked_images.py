"""Small pictures of the samples that rounds asked for. A picture that cannot be had is left out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import structlog

from services.common.errors import QuerentError
from services.trainer.report.asked import AskedRound, gallery
from services.trainer.report.thumbnails import data_uri

log = structlog.get_logger()


def asked_images(rounds: Sequence[AskedRound], sources_dir: Path, data_dir: Path, source_id: str) -> dict[str, str]:
    """Sample id -> data URI, of what the gallery shows."""
    # pyarrow is not worth its import to commands that show no pictures.
    from services.common.samples import SampleStore

    wanted = [it.sample_id for shown in gallery(rounds) for it in shown.samples]
    if not wanted:
        return {}
    try:
        samples = SampleStore.open(sources_dir, data_dir, source_id)
        # In storage order, so that each row group of a parquet file is read once.
        in_order = [wanted[i] for i in np.argsort(samples.positions(wanted))]
    except (QuerentError, OSError) as error:
        log.warning("report_without_images", source=source_id, why=str(error))
        return {}
    pictures: dict[str, str] = {}
    for sample in in_order:
        try:
            pictures[sample] = data_uri(samples.images([sample])[0])
        # Moved, deleted or damaged since: the others are still worth a look.
        except (QuerentError, OSError) as error:
            log.warning("image_not_shown", sample=sample, why=str(error))
    return pictures
