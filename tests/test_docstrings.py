"""The corpus of docstrings: what is found in a small tree of sources, and the real thing, cut short."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))
import docstrings

SOURCE = '''
"""What this module is about, in a sentence."""

class Thing:
    """A thing with a long enough docstring."""

    @property
    def size(self):
        """The size of it, in metres per second."""

    @size.setter
    def size(self, value):
        """Set the size to another value than before."""

    def short(self):
        """Too short."""

if True:
    async def go():
        r"""Inside of a block, with an escape \\d and more."""
        def inner():
            """Inside of a function there is another one."""
else:
    def go():
        """The other branch of the very same condition."""

def half():
    """Half a character: \\ud800, which no UTF-8 can hold."""
'''


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    package = tmp_path / "lib" / "pack"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(SOURCE)
    (package / "old.py").write_text('"""A long enough docstring, but then:"""\nprint "hello"\n')
    (package / "latin.py").write_bytes(
        b'# -*- coding: latin-1 -*-\n"""Caf\xe9 and cr\xe8me for everybody."""\n'
    )
    (package / "bare.py").write_text("x = 1\n")
    (package / "limits.py").write_text(f'"""{"x" * 50_001}"""\ndef f():\n    """{"y" * 50_000}"""\n')
    (tmp_path / "lib" / "not-a-package").mkdir()
    (tmp_path / "lib" / "not-a-package" / "a.py").write_text(SOURCE)
    return tmp_path / "lib"


def test_finds_every_definition_once(tree):
    rows, unparsable = docstrings.collect(docstrings.python_files([tree]))
    rows = docstrings.unique_ids(rows)
    assert [(name, kind) for name, _, kind, _ in rows] == [
        ("pack", "module"),
        ("pack.Thing", "class"),
        ("pack.Thing.size", "function"),
        ("pack.Thing.size#2", "function"),
        ("pack.go", "function"),
        ("pack.go.inner", "function"),
        ("pack.go#2", "function"),
        ("pack.half", "function"),
        ("pack.latin", "module"),
        ("pack.limits.f", "function"),
    ]
    assert {package for _, package, _, _ in rows} == {"pack"}
    assert rows[-3][3] == "Half a character: ?, which no UTF-8 can hold."
    assert rows[-2][3] == "Café and crème for everybody."
    assert [Path(path).name for path in unparsable] == ["old.py"]


def test_the_real_thing_cut_short(tmp_path, capsys):
    once, again = tmp_path / "once", tmp_path / "again"
    for folder in (once, again):
        assert docstrings.main([f"output={folder}", "limit=500"]) == 0
    assert "500 docstrings" in capsys.readouterr().out
    files = sorted(once.iterdir())
    assert [file.name for file in files] == [f"part-{i}.parquet" for i in range(4)]
    assert all(file.read_bytes() == (again / file.name).read_bytes() for file in files)
    rows = pq.read_table(once).to_pylist()
    assert len({row["id"] for row in rows}) == 500
    assert all(20 <= len(row["text"]) <= 50_000 for row in rows)


def test_writes_fewer_rows_than_files(tmp_path):
    docstrings.write([("a", "a", "module", "text")], tmp_path)
    assert pq.read_table(tmp_path).num_rows == 1
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("word", ["limit=0", "limit=x", "output=", "other=1", "x"])
def test_other_words_are_refused(word, capsys):
    assert docstrings.main([word]) == 2
    assert word in capsys.readouterr().err
