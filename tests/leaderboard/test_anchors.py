from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from kdbench.configuration import config
from kdbench.errors import KDBenchError
from leaderboard.anchors import ANCHORS, load

HEAD = "task,dataset,pair,method,metric,value,rule,source,note\n"


def test_the_file_is_read() -> None:
    found = load()
    assert len(found) > 300
    assert (
        Counter((a.task, a.dataset, a.pair, a.method, a.metric, a.source, a.note) for a in found).most_common(1)[0][1]
        == 1
    )
    assert {a.rule for a in found} == {"last", "best", "unknown"}
    assert all(0 < a.value < 100 for a in found)
    (kd,) = (a for a in found if (a.pair, a.method, a.rule) == ("resnet32x4_resnet8x4", "kd", "last"))
    assert (kd.value, kd.source, kd.metric) == (73.33, "RepDistiller README", "top1")
    lad = {a.pair: a.value for a in found if a.method == "lad"}
    assert lad == {"deeplabv3_resnet101_resnet18": 75.0, "pspnet_resnet101_resnet18": 75.4}
    assert {a.rule for a in found if a.method == "lad"} == {"best"}


def test_every_row_has_its_frame_and_a_pair_of_ours() -> None:
    found = load()
    framed = {(a.task, a.pair, a.metric) for a in found if a.method == "none"}
    assert {(a.task, a.pair, a.metric) for a in found} == framed
    assert {(a.task, a.pair, a.metric) for a in found if a.method == "teacher"} == framed
    assert {a.pair for a in found} <= set(config.options("pair"))
    assert {a.task for a in found} <= set(config.options("task"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the columns are"),
        ("a,b\n", "the columns are a,b"),
        (HEAD + "t,d,p,m,x,1.0,last,s\n", ":2: 8 columns, expected 9"),
        (HEAD + "t,d,p,m,x,1.0,last,s,\nt,d,p,m,x,1.0,first,s,\n", ":3: rule is 'first', expected one of last, best"),
        (HEAD + "t,d,p,m,x,nan,last,s,\n", "the value is no finite number"),
        (HEAD + 't,d,p,m,x,"1,0",last,s,\n', "the value is no finite number"),
        (HEAD + "t,d,p,m,x,1.0,last,,\n", "source is empty"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "anchors.csv"
    path.write_text(text)
    with pytest.raises(KDBenchError, match=says):
        load(path)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "anchors.csv"
    path.write_text("\ufeff" + HEAD + "t,d,p,m,x,1.0,last,s,\n", encoding="utf-8")
    (anchor,) = load(path)
    assert anchor.task == "t"


def test_numbers_are_as_the_sources_print_them() -> None:
    lines = ANCHORS.read_text().splitlines()
    assert len(lines) == len(set(lines))
    assert all("," in line for line in lines)
