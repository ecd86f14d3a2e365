"""Where this process stands among the others: what the launcher told it through the environment."""

import os
from dataclasses import dataclass
from typing import Final

AGENT_PID: Final = "EFFNET_AGENT_PID"
"""Environment variable: the process that started the ranks of this node, and ends them."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Ranks of this attempt, as torchrun sets them; one process alone without it."""

    global_rank: int
    local_rank: int
    world_size: int
    local_world_size: int

    @classmethod
    def from_environment(cls) -> "Processes":
        """Read RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE."""

        def number(name: str, default: int) -> int:
            return int(os.environ.get(name, default))

        return cls(
            global_rank=number("RANK", 0),
            local_rank=number("LOCAL_RANK", 0),
            world_size=number("WORLD_SIZE", 1),
            local_world_size=number("LOCAL_WORLD_SIZE", 1),
        )

    @property
    def num_nodes(self) -> int:
        """Machines."""
        return self.world_size // self.local_world_size

    @property
    def is_distributed(self) -> bool:
        """Whether a launcher set up ranks, be it only one."""
        return "RANK" in os.environ
