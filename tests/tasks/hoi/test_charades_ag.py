"""The converter of Charades with Action Genome, on tables and pickles made by hand."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbench.base.store import Store
from kdbench.errors import KDBenchError
from tasks.hoi import charades_ag
from tasks.hoi.layout import CLIP
from tasks.hoi.sources import open_source


def thing(kind: str, box: tuple[float, ...] | None, visible: bool = True, **relations: list[str]) -> dict[str, Any]:
    named = {f"{group}_relationship": relations.get(group) for group in ("attention", "spatial", "contacting")}
    return {"class": kind, "bbox": box, "visible": visible, "metadata": {"set": "train"}, **named}


def person(*box: float) -> dict[str, Any]:
    found = np.array(box, np.float32).reshape(-1, 4)
    return {"bbox": found, "bbox_score": np.ones(len(found), np.float32), "bbox_size": (200, 100), "bbox_mode": "xyxy"}


def frames() -> tuple[dict[str, Any], dict[str, Any]]:
    """Persons and objects of two videos of three frames and of one whose object is never seen."""
    people: dict[str, Any] = {}
    objects: dict[str, Any] = {}
    for name in ("AAAAA", "BBBBB", "CCCCC"):
        for number in (5, 11, 20):
            key = f"{name}.mp4/{number:06d}.png"
            people[key] = person(20, 10, 60, 90)
            cup = thing(
                "cup", (50, 40, 20, 20), name != "CCCCC", attention=["unsure"], contacting=["holding", "touching"]
            )
            sofa = thing("sofa", None, False, attention=["looking_at"], spatial=["behind"])
            objects[key] = [cup, sofa]
    people["AAAAA.mp4/000011.png"] = person()
    return people, objects


ROWS = {"train": "AAAAA,S1,c001 0.00 3.00;c000 1.00 2.00\nCCCCC,S3,\nZZZZZ,S4,", "test": "BBBBB,S2,c002 0.10 4.20"}


def folder(root: Path, rows: dict[str, str] | None = None, pickles: tuple[Any, Any] | None = None) -> Path:
    (root / "annotations").mkdir(parents=True)
    for part, text in (rows or ROWS).items():
        lines = [line.split(",") for line in text.splitlines()]
        table = ["id,subject,scene,actions,length", *(f"{i},{who},Kitchen,{actions},9.1" for i, who, actions in lines)]
        (root / charades_ag.TABLES[part]).write_text("\n".join(table) + "\n")
    (root / charades_ag.CLASSES).write_text("c000 Holding a cup\nc001 Drinking\nc002 Sitting\n")
    for name, held in zip((charades_ag.PERSONS, charades_ag.OBJECTS), pickles or frames(), strict=True):
        (root / "annotations" / name).write_bytes(pickle.dumps(held, protocol=2))
    return root


def test_every_value_finds_its_place(tmp_path):
    layout = open_source("charades_ag", str(folder(tmp_path / "data")), Store(tmp_path / "cache"), {})
    meta = layout.meta
    assert meta.classes[CLIP] == ("Holding a cup", "Drinking", "Sitting")
    assert meta.categories == ("unknown", "cup", "sofa")
    (fold,) = layout.folds
    assert (fold.train, fold.test) == (("AAAAA",), ("BBBBB",))  # no file has frames of ZZZZZ, CCCCC has no object
    assert meta.source.endswith("1 videos left out")
    assert meta.videos["BBBBB"]["subject"] == "S2"
    video = layout.videos["AAAAA"]
    assert video.clip_label.tolist() == [1, 1, 0]
    assert video.time[:, 0].tolist() == [5, 11, 20]
    assert video.category.tolist() == [1]
    assert video.mask.tolist() == [[True, True], [False, True], [True, True]]
    assert video.human[0, 0].astype(float) == pytest.approx([0.1, 0.1, 0.3, 0.9], abs=1e-3)
    assert video.object[0, 0, :4].astype(float) == pytest.approx([0.25, 0.4, 0.35, 0.6], abs=1e-3)
    said = [charades_ag.RELATIONS[n] for n in np.flatnonzero(video.object[0, 0, 4:])]
    assert said == ["unsure", "holding", "touching"]
    # Middles (0.2, 0.5) and (0.3, 0.5); both share 0.05 x 0.2 of a union of 0.16 + 0.02 - 0.01.
    assert video.edge[0, 0, 1].astype(float) == pytest.approx([0.1, 0.0, 0.1, 0.01 / 0.17], abs=1e-3)
    assert video.edge[0, 1, 0].astype(float) == pytest.approx([-0.1, 0.0, 0.1, 0.01 / 0.17], abs=1e-3)
    assert not video.edge[1].any()


def test_the_relations_are_those_of_action_genome():
    assert [len(names) for names in charades_ag.GROUPS.values()] == [3, 6, 17]
    assert len({*charades_ag.RELATIONS}) == 26


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("run"),))


def changed(**change: Any) -> tuple[Any, Any]:
    people, objects = frames()
    objects["AAAAA.mp4/000005.png"][0] |= change
    return people, objects


@pytest.mark.parametrize(
    ("rows", "pickles", "line"),
    [
        (
            None,
            ({"a": Evil()}, {}),
            "person_bbox.pkl: asks for .*, which is no part of Action Genome; it was not run",
        ),
        (None, ([], {}), "person_bbox.pkl: holds list, expected a dict of frames"),
        (None, ({"x": 1}, {"x": 1}), "'x' names no frame"),
        (None, changed(contacting_relationship=["holdin"]), "video AAAAA is not as .* no relation 'holdin'"),
        (None, changed(bbox=(1, 2)), "video AAAAA is not as Action Genome has it"),
        (ROWS | {"test": "BBBBB,S2,c009 0 1"}, None, "video BBBBB: 'c009' is no action of Charades_v1_classes.txt"),
        (ROWS | {"test": "BBBBB,S1,c001 0 1"}, None, "subject 'S1' is in training and in test, which leaks"),
    ],
)
def test_what_is_not_as_released_is_one_line(tmp_path, monkeypatch, rows, pickles, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KDBenchError, match=line) as raised:
        open_source("charades_ag", str(folder(tmp_path / "data", rows, pickles)), Store(tmp_path / "cache"), {})
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_broken_and_missing_files_are_named(tmp_path):
    root = folder(tmp_path)
    (root / "annotations" / charades_ag.OBJECTS).write_bytes(b"\x80\x02}q\x00(")
    with pytest.raises(KDBenchError, match="not a whole file, expected Action Genome"):
        charades_ag.convert(root)
    (root / charades_ag.CLASSES).write_text("Holding a cup\n")
    with pytest.raises(KDBenchError, match="expected lines such as 'c000 Holding some clothes'"):
        charades_ag.convert(root)
    (root / charades_ag.TABLES["train"]).write_text("id,actions\n")
    (root / charades_ag.CLASSES).write_text("c000 Holding a cup\n")
    with pytest.raises(KDBenchError, match="there is no column 'subject'"):
        charades_ag.convert(root)
    (root / charades_ag.CLASSES).unlink()
    with pytest.raises(KDBenchError, match="it may also lie in annotations or Charades"):
        charades_ag.files(root)
