"""Where graphs come from: made up, a published data set, or one of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kdbench.base.digest import digest, source_digest
from kdbench.base.instantiate import check
from kdbench.base.store import Store
from kdbench.errors import KDBenchError, nearest, reading
from tasks.graph import hyper, layout, planetoid, tables
from tasks.graph.citations import Citations, make
from tasks.graph.layout import Graph

#: What is in the folder of a source; the embedded one has none.
HOLDS = {
    "citations": "",
    "cora": "cora.npz, or Planetoid's ind.cora.x, .y, .tx, .ty, .allx, .ally, .graph, .test.index",
    "citeseer": "citeseer.npz, or Planetoid's ind.citeseer.x and its siblings",
    "coauthorship": "hyper_cora_coauthorship.npz",
    "cocitation": "hyper_cora_cocitation.npz",
    "owngraph": "graph.npz in the layout of tasks.graph.layout, or nodes.csv and edges.csv",
}
FILE = "graph.npz"
HYPER = ("coauthorship", "cocitation")


def open_source(
    name: str, root: str | None, store: Store, citations: Mapping[str, Any], directed: bool, split: int = 0
) -> Graph:
    """Reads a graph, which is made first where it is made up.

    Args:
        name: Key of :data:`HOLDS`.
        root: Folder of a real data set; nothing is written there.
        store: Where what was made lies.
        citations: Options of the made-up one, :class:`~tasks.graph.citations.Citations`.
        directed: Of tables, whether edges have a direction.
        split: Of hypergraphs, which of the published training sets.

    Raises:
        KDBenchError: An unknown name, a root that is missing or not wanted, or files that are not as they should be.
    """
    if name not in HOLDS:
        raise KDBenchError(f"data.source={name}: there is no such source: {nearest(name, HOLDS)}")
    if split and name not in HYPER:
        raise KDBenchError(f"data.split={split}: {name} has one cut alone: leave it out")
    if name == "citations":
        if root is not None:
            raise KDBenchError(f"data.root={root}: {name} is made up and reads no files; choose data=cora or owngraph")
        return _made(Citations(**check("data.citations", Citations, citations)), store)
    if citations:
        raise KDBenchError(f"data.citations={dict(citations)}: {name} is not made up; choose data=citations")
    if root is None:
        raise KDBenchError(f"data.root: {name} is not embedded; set the folder that holds {HOLDS[name]}")
    folder = Path(root).expanduser()
    with reading(folder):
        if not folder.is_dir():
            raise KDBenchError(f"data.root={root}: there is no such folder; expected one that holds {HOLDS[name]}")
    if name == "owngraph":
        path = folder / FILE
        return layout.read(path, name) if path.is_file() else tables.read(folder, name, directed)
    if name in HYPER:
        return hyper.read(folder / HOLDS[name], name, split)
    path = folder / f"{name}.npz"
    return layout.read(path, name) if path.is_file() else planetoid.read(folder, name)


def _made(options: Citations, store: Store) -> Graph:
    """Returns the made-up graph as it is read from its file, which is written once."""

    def fill(work: Path) -> dict[str, Any]:
        layout.write(work / FILE, make(options))
        return {"source": "citations"}

    key = digest([asdict(options), source_digest(("tasks.graph.citations", "tasks.graph.layout"))])
    path = store.product("graph-citations", key, fill, wait_message="the papers").path / FILE
    return replace(layout.read(path, "citations"), embedded=True)
