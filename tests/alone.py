"""A Python that has neither kdbench nor torch, for the scripts that lie beside exported models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BLOCKED = ["kdbench", "tasks", "leaderboard", "torch", "torchvision", "lightning"]

CODE = f"""if True:
    import runpy, sys
    sys.modules.update(dict.fromkeys({BLOCKED}))
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def alone(script: Path, *arguments: Path) -> list[dict[str, Any]]:
    """What a script prints, an object a line."""
    command = [sys.executable, "-I", "-c", CODE, str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=script.parent)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
