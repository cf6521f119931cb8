from __future__ import annotations

import io
import re

from rich.console import Console

from kdbench.runs.progress import Bar
from kdbench.training.fit import Training
from tests.toy import Toy, recipe, teacher_file


def test_every_stage_counts_its_own_epochs(tmp_path):
    trained = Training(recipe("Staged", epochs=6), Toy(), {"teacher": teacher_file(tmp_path)})
    said = io.StringIO()
    (tmp_path / "work").mkdir()
    trained.run(tmp_path / "work", [Bar("student", Toy.selection, Console(file=said, width=200))])
    epochs = re.findall(r"^student: epoch (\d)/(\d) · .*hint", said.getvalue(), re.MULTILINE)
    assert epochs == [("1", "3"), ("2", "3"), ("3", "3")] * 2
