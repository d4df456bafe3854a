"""Documents: a file a row, in groups."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from raybert.corpus.columns import BAD_UTF8, TEXT, Reasons
from raybert.corpus.filesystems import public_uri
from raybert.corpus.shards import Scan, Shard, Size, cut
from raybert.corpus.sources import File
from raybert.corpus.streams import BOM, Cursor, line_limit


def scan_documents(file: File, size: Size) -> Scan:
    """A row for every member, by the sizes that were listed."""
    shards = cut([(1, held) for _, held in _members(file)], size)
    types = {"text": pa.string(), "path": pa.string()}
    return Scan(len(_members(file)), tuple(types), types, shards)


def read_documents(
    file: File, shards: list[Shard], max_chars: int | None
) -> Iterator[tuple[dict[str, pa.Array], Reasons]]:
    """Columns `text` (the whole file) and `path` (its public identity) of each shard."""
    limit = line_limit(max_chars)
    with ThreadPoolExecutor(8) as pool:
        for shard in shards:
            members = _members(file)[shard.start : shard.end]
            reasons = Reasons(len(members))
            texts: list[str | None] = []
            for row, (text, why) in enumerate(pool.map(lambda member: _read(member, limit), members)):
                texts.append(text)
                if why:
                    reasons.add(row, why)
            paths = [public_uri(path) for path, _ in members]
            yield {"text": pa.array(texts, TEXT), "path": pa.array(paths, pa.string())}, reasons


def _members(file: File) -> tuple[tuple[str, int], ...]:
    return file.members or ((file.path, file.size),)


def _read(member: tuple[str, int], limit: int) -> tuple[str | None, str | None]:
    """The text of a file, or why it has none."""
    path, size = member
    uri = public_uri(path)
    try:
        with Cursor(File(uri, path, size, "documents")) as cursor:
            data = cursor.read(limit + 1)
        if len(data) > limit:
            return None, f"document longer than {limit} bytes"
        return data.removeprefix(BOM).decode(), None
    except UnicodeDecodeError:
        return None, BAD_UTF8
    except ValueError as error:  # a compressed document that is broken
        return None, str(error)
