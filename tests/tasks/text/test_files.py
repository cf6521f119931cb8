"""Texts of one's own in every layout, and what is wrong with them in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import KDBenchError
from tasks.text.files import Columns, of_test, read

LABELLED = Columns(label="label")


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return folder


def told(root: Path, columns: Columns = LABELLED) -> dict[str, list[tuple[str, str]]]:
    return {split: [(row.text, row.label) for row in rows] for split, rows in read(root, columns).items()}


def test_tables(tmp_path):
    expected = [("a, b", "x"), ("c\nd", "y")]
    write(tmp_path / "csv", train_csv='text,label,n\n"a, b",x,1\n"c\nd",y,2\n', test_csv="text,label,n\ne,x,3\n")
    assert told(tmp_path / "csv") == {"train": expected, "test": [("e", "x")]}
    write(tmp_path / "tsv", train_tsv='label\ttext\nx\ta, b\ny\t"c\nd"\n')
    assert told(tmp_path / "tsv") == {"train": expected}
    lines = [json.dumps({"text": text, "label": label}) for text, label in expected]
    write(tmp_path / "jsonl", train_jsonl="\n".join([*lines, "", '{"text": "", "label": 3}']), dev_jsonl=lines[0])
    assert told(tmp_path / "jsonl") == {"train": [*expected, ("", "3")], "val": expected[:1]}
    assert told(tmp_path / "csv" / "train.csv") == {"train": expected}
    other = write(tmp_path / "other", all_csv="review,stars\nfine,5\n")
    assert told(other, Columns("review", "stars")) == {"train": [("fine", "5")]}
    assert told(other, Columns("review")) == {"train": [("fine", "")]}


def test_a_mark_of_byte_order_is_no_part_of_a_name(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"\xef\xbb\xbftext,label\r\na,x\r\n")
    assert told(tmp_path) == {"train": [("a", "x")]}


def test_a_field_may_be_long(tmp_path):
    write(tmp_path, train_csv=f"text,label\n{'a' * 200_000},x\n")
    assert len(told(tmp_path)["train"][0][0]) == 200_000


def test_folders(tmp_path):
    write(tmp_path / "a", train__pos__1_txt="good", train__neg__2_txt="bad", test__pos__1_txt="fine")
    assert told(tmp_path / "a") == {"train": [("bad", "neg"), ("good", "pos")], "test": [("fine", "pos")]}
    write(tmp_path / "b", x_txt="one", deep__y_txt="two")
    assert told(tmp_path / "b", Columns()) == {"train": [("two", ""), ("one", "")]}
    write(tmp_path / "c", train_txt="one", test_txt="two")
    assert told(tmp_path / "c", Columns()) == {"train": [("one", "")], "test": [("two", "")]}


def test_a_tenth_is_test_where_none_is_given(tmp_path):
    rows = "".join(f"text {n},{'xy'[n % 2]}\n" for n in range(40))
    found: Any = read(write(tmp_path, train_csv=f"text,label\n{rows}"), LABELLED)
    learn, test = of_test(found)
    assert (len(learn), len(test)) == (36, 4)
    assert {row.label for row in test} == {"x", "y"}
    assert not {row.name for row in learn} & {row.name for row in test}
    with pytest.raises(KDBenchError, match="found 2 texts, expected three at least"):
        of_test({"train": learn[:2]})


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"train_csv": "txt,label\na,x\n"}, r"train.csv:2: there is no 'text': did you mean 'txt'"),
        ({"train_csv": "text,label\na\n"}, r"train.csv:2: expected 2 values"),
        ({"train_csv": "text,label\na,x,y\n"}, r"train.csv:2: expected 2 values"),
        ({"train_csv": "text,label\na,\n"}, r"train.csv:2: label is '', expected the name or number of a class"),
        ({"train_csv": 'text,label\n"a,x\n'}, r"train.csv:\d: found no table \(.*\), expected quoted fields"),
        ({"train_jsonl": '{"text": "a"'}, r"train.jsonl:1: found no JSON \(.*\), expected an object a line"),
        ({"train_jsonl": "[1]"}, r"train.jsonl:1: found a list, expected an object a line"),
        ({"train_jsonl": '\n{"text": 3, "label": "x"}'}, r"train.jsonl:2: text is 3, expected a text"),
        ({"train_jsonl": '{"text": "a", "label": 1.5}'}, r"label is 1.5, expected the name or number"),
        ({"train_jsonl": '{"text": "a", "label": true}'}, r"label is True, expected the name or number"),
        ({"train_csv": "text,label\n"}, r"found no texts, expected train.csv, train.tsv, train.jsonl or a folder"),
        ({"a_csv": "text\na\n", "b_csv": "text\nb\n"}, r"found a.csv and b.csv, expected train and test.csv"),
        ({"train_csv": "text,label\na,x\n", "train_jsonl": ""}, r"found train twice, expected one"),
        ({"train__x_txt": "a"}, r"x.txt: expected a folder for each class: CLASS/x.txt"),
        ({"train_txt": "a"}, r"train.txt: found a text without a class"),
        ({"readme_md": "a"}, r"found no texts"),
    ],
)
def test_bad_files_are_one_line(tmp_path, files, line):
    with pytest.raises(KDBenchError, match=line):
        read(write(tmp_path, **files), LABELLED)


def test_what_is_no_text_is_one_line(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"text,label\n\xff\xfe,x\n")
    with pytest.raises(KDBenchError, match=r"train.csv: found bytes that are no UTF-8 .*, expected UTF-8"):
        read(tmp_path, LABELLED)
    with pytest.raises(KDBenchError, match=r"data.root=.*there is no"):
        read(tmp_path / "absent", LABELLED)
