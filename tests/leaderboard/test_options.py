"""Options of augmentations and quantisations, as the configurations beside records have them, in the names of rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leaderboard.rows import read

Save = Callable[..., Path]
SCRIPT = "<script>alert(1)</script>"


def quantised(save: Save, name: str, bits: int, **options: Any) -> Path:
    """A record of a quantised student with its configuration."""
    file = save(name=name, run_id=name, quant="uniform", spec_hash=name)
    own = {"name": "uniform", "_target_": "a.Uniform", "bits": bits, "bucket": 256, "weights": {"kd": 1.0}, **options}
    file.with_name("config.yaml").write_text(json.dumps({"augment": {"name": "none"}, "quant": own}))
    return file.parents[3]


def test_quantisations_are_named_by_the_options_in_which_rows_differ(save: Save, tmp_path: Path) -> None:
    root = quantised(save, "two", 2)
    assert [row.quantising for row in read([root]).rows] == ["uniform"]
    quantised(save, "again", 2)
    quantised(save, "eight", 8)
    quantised(save, "whole", 8, bucket=None, weights={"kd": 3.0})
    save(name="float", run_id="float")
    save(name="mute", run_id="mute", quant="uniform")  # without a configuration nothing tells
    expected = {
        "two": "uniform bits=2 bucket=256 weights.kd=1.0",
        "again": "uniform bits=2 bucket=256 weights.kd=1.0",
        "eight": "uniform bits=8 bucket=256 weights.kd=1.0",
        "whole": "uniform bits=8 bucket=null weights.kd=3.0",
        "float": "",
        "mute": "",
    }
    for _ in range(2):  # the second time from the cache
        found = read([root], tmp_path / "cache")
        assert {row.run_id: row.quantising for row in found.rows} == expected
    assert found.parsed == 0
    assert all(row.augmenting == "" for row in found.rows)


def test_options_that_are_no_plain_words_are_told_apart_by_digests(save: Save) -> None:
    for name, odd in (("a", SCRIPT), ("b", "x" * 900), ("c", ["y" * 900])):
        root = quantised(save, name, 2, odd=odd)
    names = [row.quantising for row in read([root]).rows]
    assert len(set(names)) == 3
    assert all(name.startswith("uniform odd=#") and len(name) < 30 for name in names)
    quantised(save, "a", 2, **{f"option{n}": n for n in range(30)})
    names = [row.quantising for row in read([root]).rows]
    assert len(set(names)) == 3
    assert max(map(len, names)) < 30
