"""Users, items and times: made up, or MovieLens' ``u.data``; cut by time.

Each made-up user is a function of the seed and of its number, so that fewer are the first of more. A user has a taste
of genres and a style, an item has genres, a style and a popularity; and now and then a user goes on with the sequel of
what it had last, which no taste tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from lightning import LightningDataModule
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.utils.data import DataLoader

from kdbench.base import rng
from kdbench.base.digest import digest
from kdbench.base.instantiate import check
from kdbench.data import Key
from kdbench.errors import KDBenchError, nearest, printable, reading
from kdbench.task import Batch
from tasks.graph.data import Drawn, alone, hashed, looks

#: What is in the folder of a source; the embedded one has none.
HOLDS = {"interactions": "", "movielens": "u.data of MovieLens 100k: user, item, rating and time, between tabs"}
#: Of made-up items and users: genres, styles, share of items with a second genre, share of steps that take a sequel.
GENRES, STYLES, SECOND, SEQUEL = 12, 3, 0.3, 0.2
#: What speaks for an item: its popularity, a user's taste, the same style.
POPULARITY, TASTE, STYLE = 0.7, 4.0, 1.5
#: Fewest and most interactions of a user; least rating that counts; least training interactions of a user that is kept.
SHORTEST, LONGEST, LIKED, LEAST = 10, 80, 4, 3


@dataclass(frozen=True)
class Made:
    """Options of the made-up interactions.

    Attributes:
        users: How many.
        items: How many.
        seed: Of everything.
    """

    users: Annotated[int, Field(ge=20)] = 800
    items: Annotated[int, Field(ge=40)] = 600
    seed: NonNegativeInt = 0


@dataclass(frozen=True)
class Options:
    """Options of ``data``.

    Attributes:
        source: Which data set: a key of :data:`HOLDS`.
        root: Its folder; None for the embedded one.
        test: Share of the interactions of a user, the last ones, that is the test.
        val: Share of the others, the last ones, that is validation.
        steps: Times that an epoch sees all interactions.
        made: Of the embedded data, options of :class:`Made`.
    """

    source: str
    root: str | None = None
    test: Annotated[float, Field(gt=0, lt=0.9)] = 0.2
    val: Annotated[float, Field(gt=0, lt=0.9)] = 0.1
    steps: PositiveInt = 40
    made: dict[str, Any] = field(default_factory=dict)


class Triples(NamedTuple):
    """What users prefer.

    Attributes:
        user: ``(P,)``.
        liked: ``(P,)`` items; of supervised triples, which they had.
        other: ``(P,)`` items; of supervised triples, which they have not had in training.
    """

    user: Tensor
    liked: Tensor
    other: Tensor


class Wanted(NamedTuple):
    """What is to be found; of training nothing.

    Attributes:
        seen: ``(2, K)`` users and items that are known, and not asked for.
        next: ``(2, M)`` users and items that are asked for.
    """

    seen: Tensor
    next: Tensor


def make(options: Made) -> np.ndarray:
    """Writes interactions ``(K, 3)``: user, item, and how many of the user's come before it."""
    draw = np.random.default_rng([options.seed, 0])
    count = options.items
    genres = np.zeros((count, GENRES))
    genres[np.arange(count), draw.integers(GENRES, size=count)] = 1
    second = draw.random(count) < SECOND
    genres[np.flatnonzero(second), draw.integers(GENRES, size=second.sum())] = 1
    styles, popularity = draw.integers(STYLES, size=count), draw.lognormal(0, 0.6, size=count)
    order = draw.permutation(count)
    sequel = np.empty(count, np.int64)
    sequel[order] = np.roll(order, -1)
    rows = []
    for user in range(options.users):
        own = np.random.default_rng([options.seed, 1, user])
        taste, style = own.dirichlet([0.15] * GENRES), own.integers(STYLES)
        length = int(np.clip(own.lognormal(3.2, 0.5), SHORTEST, min(LONGEST, count // 2)))
        score = POPULARITY * np.log(popularity) + TASTE * genres @ taste + STYLE * (styles == style)
        ranked = iter(np.argsort(-(score + own.gumbel(size=count))).tolist())
        had: dict[int, None] = {}
        last = next(ranked)
        while len(had) < length:
            had[last] = None
            following = int(sequel[last])
            goes_on = own.random() < SEQUEL and following not in had
            last = following if goes_on else next(item for item in ranked if item not in had)
        rows += [(user, item, time) for time, item in enumerate(had)]
    return np.array(rows, np.int64)


def read(folder: Path) -> np.ndarray:
    """Reads ``u.data``: users, items and times ``(K, 3)`` of ratings of :data:`LIKED` at least, numbered from 0.

    Raises:
        KDBenchError: It is not there, or not as it should be.
    """
    path = folder / "u.data"
    with reading(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    try:
        table = np.array([[int(x) for x in line.split("\t")] for line in lines if line.strip()], np.int64)
    except ValueError as error:
        raise KDBenchError(f"{printable(path)}: expected four integers a line, between tabs: {error}") from None
    if table.ndim != 2 or table.shape[1] != 4:
        raise KDBenchError(f"{printable(path)}: expected user, item, rating and time in each line, between tabs")
    kept = table[table[:, 2] >= LIKED][:, [0, 1, 3]]
    for column in (0, 1):
        kept[:, column] = np.unique(kept[:, column], return_inverse=True)[1]
    return kept


class Interactions:
    """Interactions and their cuts, by time within each user.

    Attributes:
        name: Of the data set.
        users: How many.
        items: How many.
        train: ``(K, 2)`` users and items.
        val: ``(K, 2)``.
        test: ``(K, 2)``.
        digest: Of content and cuts.
        learned: Of what training and validation read.
    """

    def __init__(self, table: np.ndarray, options: Options) -> None:
        self.name, self.options = options.source, options
        table = table[np.lexsort((table[:, 1], table[:, 2], table[:, 0]))]
        _, first = np.unique(table[:, :2], axis=0, return_index=True)
        table = table[np.sort(first)]  # of one item that a user had twice, the first time
        if len(table) < 100:
            raise KDBenchError(f"{self.name}: found {len(table)} interactions, expected 100 at least")
        self.users, self.items = (int(table[:, column].max()) + 1 for column in (0, 1))
        cuts: dict[str, list[np.ndarray]] = {"train": [], "val": [], "test": []}
        for own in np.split(table[:, :2], np.flatnonzero(np.diff(table[:, 0])) + 1):
            known = len(own) - round(options.test * len(own))
            learned = known - round(options.val * known)
            if learned < LEAST:
                known = learned = len(own)  # too few to ask for more
            for name, part in (("train", own[:learned]), ("val", own[learned:known]), ("test", own[known:])):
                cuts[name].append(part)
        self.train, self.val, self.test = (np.concatenate(cuts[name]) for name in ("train", "val", "test"))
        self.learned = digest([*(hashed(x) for x in (self.train, self.val)), [self.users, self.items]])
        self.digest = digest([self.learned, hashed(self.test)])

    @cached_property
    def _known(self) -> np.ndarray:
        """``(K,)`` numbers of the pairs of user and item in training, sorted."""
        return np.sort(self.train[:, 0] * self.items + self.train[:, 1])

    def training(self, key: Key) -> Batch:
        """Returns every training interaction beside an item that its user has not had, drawn anew, and as many others.

        Of these both items are any; they are distilled alone, the former alone are supervised: of what a user had, a
        trained network says nothing but that it had it.
        """
        draw = rng.numpy(key.seed, "others", key.epoch, key.sample)
        user, liked = self.train.T
        known = self._known
        other: np.ndarray = draw.integers(self.items, size=len(user))
        for _ in range(100):
            asked = user * self.items + other
            had = known[np.minimum(np.searchsorted(known, asked), len(known) - 1)] == asked
            if not had.any():
                break
            other[had] = draw.integers(self.items, size=had.sum())
        drawn = draw.integers(self.items, size=(2, len(user)))
        inputs = Triples(
            torch.from_numpy(np.concatenate([user, user])),
            torch.from_numpy(np.concatenate([liked, drawn[0]])),
            torch.from_numpy(np.concatenate([other, drawn[1]])),
        )
        none = torch.empty(2, 0, dtype=torch.long)
        supervised = torch.arange(2 * len(user)) < len(user)
        return Batch(inputs, Wanted(none, none), torch.arange(2 * len(user)), supervised, distilled=~supervised)

    def asked(self, split: str) -> Batch:
        """Returns what is asked for: of validation beside what training knows, of the test beside both."""
        seen = self.train if split == "val" else np.concatenate([self.train, self.val])
        wanted = Wanted(*(torch.from_numpy(x.T.copy()) for x in (seen, getattr(self, split))))
        inputs = Triples(wanted.next[0], wanted.next[1], wanted.next[1])
        return Batch(inputs, wanted, torch.arange(len(inputs.user)))


class InteractionData(LightningDataModule):
    """Loaders of opened interactions.

    Args:
        found: They.
        seed: Of a run.
    """

    def __init__(self, found: Interactions, seed: int) -> None:
        super().__init__()
        self.found = found
        self.seed = seed

    def train_dataloader(self) -> DataLoader[Batch]:
        """Returns as many looks as an epoch has steps."""
        alone(self.found.name)
        return looks(Drawn(self.found.training, self.found.options.steps), self.seed, train=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Returns what comes next."""
        return looks([self.found.asked("val")])

    def test_dataloader(self) -> DataLoader[Batch]:
        """Returns what comes after that."""
        return looks([self.found.asked("test")])


def open_interactions(options: Mapping[str, Any]) -> Interactions:
    """Makes or reads interactions and cuts them.

    Args:
        options: Of :class:`Options`.

    Raises:
        KDBenchError: Options or files that are not as they should be.
    """
    given = Options(**check("data", Options, options))
    if given.source not in HOLDS:
        raise KDBenchError(f"data.source={given.source}: there is no such source: {nearest(given.source, HOLDS)}")
    if given.source == "interactions":
        if given.root is not None:
            raise KDBenchError(f"data.root={given.root}: {given.source} is made up and reads no files")
        return Interactions(make(Made(**check("data.made", Made, given.made))), given)
    if given.root is None:
        raise KDBenchError(f"data.root: {given.source} is not embedded; set the folder of {HOLDS[given.source]}")
    return Interactions(read(Path(given.root).expanduser()), given)
