"""Collect the docstrings of every installed Python package into Parquet: a real corpus, without a download.

    python jobs/docstrings.py output=demo/docstrings

Walks the standard library and site-packages and parses the sources; nothing is imported or run. Writes a folder of
Parquet files with the columns id (dotted name, unique), package, kind (module, class or function) and text (20 to
50,000 characters). The same installation gives the same rows in the same order. `limit=10000` keeps the first 10,000.
"""

import ast
import gc
import itertools
import multiprocessing
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SHORTEST, LONGEST = 20, 50_000
FILES, ROWS_PER_GROUP = 4, 2048
SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "package", "kind", "text")])

Row = tuple[str, str, str, str]


def main(argv: Sequence[str]) -> int:
    """Run with `key=value` words. Returns 0, or 2 for a word that is not understood."""
    try:
        output, limit = settings(argv)
    except ValueError as error:
        print(f"docstrings: {error}", file=sys.stderr)
        return 2
    sources = python_files(roots())
    rows, unparsable = collect(sources, limit)
    rows = unique_ids(rows)
    write(rows, output)
    megabytes = sum(len(row[3].encode()) for row in rows) / 1e6
    print(f"{len(rows):,} docstrings, {megabytes:.1f} MB of text, from {len(sources):,} files in {output}")
    if unparsable:
        print(f"{len(unparsable)} files are no valid Python here and were left out, such as {unparsable[0]}")
    return 0


def settings(argv: Sequence[str]) -> tuple[Path, int | None]:
    """`output` and `limit`. Raises ValueError for anything else."""
    output, limit = Path("demo/docstrings"), None
    for word in argv:
        key, _, value = word.partition("=")
        if key == "output" and value:
            output = Path(value)
        elif key == "limit" and value.isdecimal() and int(value):
            limit = int(value)
        else:
            raise ValueError(f"cannot use {word!r}; write output=FOLDER or limit=NUMBER")
    return output, limit


def roots() -> list[Path]:
    """The standard library and the folders that packages are installed in."""
    places = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")}
    return sorted(place for place in places if place.is_dir())


def python_files(roots: Sequence[Path]) -> list[tuple[str, str]]:
    """(path, dotted name) of every source file below the roots, the standard library first, then by name."""
    stdlib = str(Path(sysconfig.get_path("stdlib")).resolve())
    found = []
    for root in roots:
        for folder, folders, files in os.walk(root):
            # site-packages may lie inside the standard library and is a root of its own; folders with other marks
            # hold no modules
            folders[:] = [
                f for f in folders if f.isidentifier() and f != "__pycache__" and Path(folder, f) not in roots
            ]
            for file in files:
                stem, extension = os.path.splitext(file)
                if extension == ".py" and stem.isidentifier():
                    parts = Path(folder, stem).relative_to(root).parts
                    name = ".".join(p for p in parts if p != "__init__")
                    found.append((str(root) != stdlib, name, os.path.join(folder, file)))
    return [(path, name) for _, name, path in sorted(found)]


def collect(sources: Sequence[tuple[str, str]], limit: int | None = None) -> tuple[list[Row], list[str]]:
    """The first `limit` rows of all files, in their order, and the files that cannot be parsed."""
    rows, unparsable = [], []
    # a syntax tree is millions of objects and no cycles: garbage collection finds nothing and takes a quarter of the time
    # spawned: forked from a process with threads, a child may wait for ever for a lock that one of them held
    with multiprocessing.get_context("spawn").Pool(initializer=gc.disable) as pool:
        for (path, _), found in zip(sources, pool.imap(docstrings, sources, chunksize=64), strict=True):
            if found is None:
                unparsable.append(path)
            else:
                rows += found
            if limit is not None and len(rows) >= limit:
                break
    return rows[:limit], unparsable


def docstrings(source: tuple[str, str]) -> list[Row] | None:
    """The docstrings of one file, if it has any in triple quotes; None if it is no valid Python."""
    path, module = source
    try:
        code = Path(path).read_bytes()
        if b'"""' not in code and b"'''" not in code:  # a third of all files, among them the large tables
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's escapes
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        return None
    package = module.partition(".")[0] or Path(path).parent.name
    rows = []
    for kind, name, node in definitions(tree, "module", module):
        text = (ast.get_docstring(node) or "").strip().replace("\0", "")
        if SHORTEST <= len(text) <= LONGEST:
            # an escape in a literal may be half a character, which no UTF-8 can hold
            rows.append((name, package, kind, text.encode(errors="replace").decode()))
    return rows


def definitions(node: ast.AST, kind: str, name: str) -> Iterator[tuple[str, str, ast.AST]]:
    """(kind, dotted name, node) of a module and of every class and function in it, in order of the source."""
    yield kind, name, node
    # without recursion into expressions, where there are none; blocks such as `if` do hold definitions
    waiting = list(reversed(getattr(node, "body", [])))
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, ast.ClassDef):
            yield from definitions(inner, "class", f"{name}.{inner.name}")
        elif isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from definitions(inner, "function", f"{name}.{inner.name}")
        else:
            blocks = (
                getattr(inner, field, []) for field in ("body", "handlers", "orelse", "finalbody", "cases")
            )
            waiting += reversed(list(itertools.chain.from_iterable(b for b in blocks if isinstance(b, list))))


def unique_ids(rows: Sequence[Row]) -> list[Row]:
    """A name that occurs again (an overload, a setter, a branch of an `if`) gets #2, #3, ..."""
    times: dict[str, int] = {}
    out = []
    for name, *rest in rows:
        times[name] = times.get(name, 0) + 1
        out.append((name if times[name] == 1 else f"{name}#{times[name]}", *rest))
    return out


def write(rows: Sequence[Row], folder: Path) -> None:
    """FILES Parquet files of about equal length, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(FILES):
        part = rows[len(rows) * i // FILES : len(rows) * (i + 1) // FILES]
        columns = list(zip(*part, strict=True)) or [()] * len(SCHEMA)
        table = pa.table([pa.array(column, pa.string()) for column in columns], schema=SCHEMA)
        pq.write_table(table, folder / f"part-{i}.parquet", row_group_size=ROWS_PER_GROUP, compression="zstd")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
