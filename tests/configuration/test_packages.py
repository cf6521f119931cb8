from __future__ import annotations

import pytest

from kdbench.configuration import config
from kdbench.errors import KDBenchError
from tests.cli import install


@pytest.mark.parametrize(
    ("conf", "file", "hint"),
    [
        ("one_conf", "one_conf/__init__.py", "holds no YAML: is it package data in its pyproject.toml?"),
        ("two_conf", "other/__init__.py", "cannot be found"),
        ("three_conf", "three_conf/task/fine.yaml", None),
    ],
)
def test_a_package_without_its_yaml_is_named_where_an_option_is_missed(tmp_path, monkeypatch, conf, file, hint):
    monkeypatch.syspath_prepend(install(tmp_path, "bare", conf))
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text("")
    for refuse in (lambda: config.choices(["task=mytask"], False), lambda: config.load(["task=mytask"])):
        with pytest.raises(KDBenchError, match="^task=mytask: there is no such task: available: ") as error:
            refuse()
        said = str(error.value)
        assert "\n" not in said
        assert (f"; {conf}, which the entry point 'bare' names, {hint}" in said) == (hint is not None)
        assert ("'bare'" in said) == (hint is not None)
