from __future__ import annotations

import errno
import os

import pytest

from kdbench.base.files import listed, read_text, reason
from kdbench.errors import KDBenchError


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfCar\r\n")
    assert read_text(path) == "Car\n"
    path.write_bytes("Zebra \u00e9".encode())
    assert read_text(path) == "Zebra \u00e9"


def test_why_a_file_cannot_be_read_takes_a_few_words(tmp_path):
    path = tmp_path / "a.txt"
    for content, words in (
        ("Car".encode("utf-16"), "UTF-16 text: save it as UTF-8"),
        ("Auto\u00e9".encode("latin1"), "no UTF-8 text, at byte 4"),
    ):
        path.write_bytes(content)
        with pytest.raises(UnicodeDecodeError) as undecoded:
            read_text(path)
        assert reason(undecoded.value) == words
    for wrong, words in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(OSError) as unread:  # noqa: PT011 - the words are what is tested
            read_text(wrong)
        assert reason(unread.value) == words


def test_a_folder_is_listed_without_what_a_desktop_leaves_there(tmp_path):
    for name in ("a.txt", "._a.txt", ".DS_Store", "b"):
        (tmp_path / name).touch()
    assert listed(tmp_path) == {"a.txt", "b"}
    assert listed(tmp_path / "none") == set()
    with pytest.raises(KDBenchError, match="a.txt: cannot list this folder \\(Not a directory\\)"):
        listed(tmp_path / "a.txt")


def test_a_folder_that_is_closed_is_one_line(tmp_path, monkeypatch):
    def closed(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(os, "listdir", closed)  # root reads every folder
    with pytest.raises(KDBenchError, match=r"cannot list this folder \(Permission denied\)$"):
        listed(tmp_path)
