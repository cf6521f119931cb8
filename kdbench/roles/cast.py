"""The cast: the networks of a run and how they take part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from kdbench.errors import KDBenchError
from kdbench.needs import Role
from kdbench.roles.sources import Network, Source
from kdbench.task import Task


@dataclass
class Cast:
    """The networks of a run and how they take part.

    Attributes:
        task: The task.
        roles: How each role takes part.
        sources: Who answers for it.
        parts: Path of each part, by role and part name (from the pair's configuration).
        seed: Names the random streams of the forwards (dropout, stochastic depth).
        passes: Samples that each network has been run on in all processes, since it was last cleared.
        tokens: Likewise, tokens that each has written.
    """

    task: Task
    roles: Mapping[str, Role]
    sources: Mapping[str, Source]
    parts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    seed: int = 0
    passes: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    def models(self) -> dict[str, nn.Module]:
        """Returns the plain model of every role that has one."""
        return {name: source.model for name, source in self.sources.items() if isinstance(source, Network)}

    def model(self, role: str) -> nn.Module:
        """Returns the plain model of a role."""
        source = self.sources[role]
        if not isinstance(source, Network):
            raise KDBenchError(f"role {role!r} is a {type(source).__name__} without a network, where one is needed")
        return source.model
