"""A row's rates of the loaders of all ranks: network, disk, cache. Units: docs/metrics.md."""

import time
from collections.abc import Sequence

from pytorch_lightning import Trainer

from datamodules.imagenet import ImageNetDataModule
from datamodules.storage.traffic import Counts


class LoaderRates:
    """What the loaders' workers have done since the last row, validations included: their work does not pause then."""

    def start(self, trainer: Trainer) -> None:
        """Count from here on."""
        self._last, self._began = _datamodule(trainer).traffic, time.monotonic()

    def values(self, trainer: Trainer) -> list[float]:
        """This rank's counts, and the seconds of its workers in which they came about."""
        now, before = _datamodule(trainer).traffic, self._last
        self._last = now
        ended, began = time.monotonic(), self._began
        self._elapsed_s, self._began = ended - began, ended
        workers = max(_datamodule(trainer).data.num_workers, 1)
        return [*(new - old for new, old in zip(now, before, strict=True)), workers * self._elapsed_s]

    def row(self, trainer: Trainer, sums: Sequence[float]) -> dict[str, float]:
        """Of all ranks; of the network and its cache only where shards are remote."""
        (*counts, workers_s), elapsed_s = sums, self._elapsed_s
        total = Counts(*counts)
        rates = {"data/disk_mb_per_second": total.disk_bytes / 1e6 / elapsed_s}
        if not _datamodule(trainer).is_remote:
            return rates
        openings = total.hits + total.misses
        return {
            **rates,
            "data/network_mb_per_second": total.network_bytes / 1e6 / elapsed_s,
            **({"data/cache_hit_share": total.hits / openings} if openings else {}),
            "data/cache_misses": total.misses,
            "data/cache_evictions": total.evictions,
            # Of a wait the whole counts when it ends, and a part may lie before the last row.
            "data/download_wait_share": min(total.waited_s / workers_s, 1.0),
        }


def _datamodule(trainer: Trainer) -> ImageNetDataModule:
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(datamodule, ImageNetDataModule)
    return datamodule
