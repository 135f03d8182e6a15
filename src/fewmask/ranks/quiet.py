"""Fabric's strategy for several processes, without what the libraries say at every start."""

from __future__ import annotations

import logging

from lightning_fabric.strategies.ddp import DDPStrategy


class QuietDDP(DDPStrategy):
    """Distributed data parallel training whose processes don't each say that they are there."""

    def setup_environment(self) -> None:
        """In each process, before it meets the others."""
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        super().setup_environment()
