"""Parquet and tar files for the tests, whose example i is an image or array full of the value i."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def image(value, size=(4, 6), channels=3, dtype=np.uint8):
    """An image full of one value; (height, width)."""
    shape = size if channels == 1 else (*size, channels)
    return np.full(shape, value, dtype)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_parquet(path, contents, row_group=5, **columns):
    """Write bytes as images, other values as they are, beside a column of labels."""
    if isinstance(contents[0], bytes):
        contents = [{"bytes": content, "path": None} for content in contents]
    table = pa.table({"label": list(range(len(contents))), "image": contents, **columns})
    pq.write_table(table, path, row_group_size=row_group)


def write_tar(path, members):
    """Write members, name → bytes."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_shards(folder, kind, counts, content=lambda i: png(image(i))):
    """Write shards with so many examples each, numbered through from 0; return their folder."""
    first = 0
    for shard, n in enumerate(counts):
        contents = [content(i) for i in range(first, first + n)]
        if kind == "tar":
            members = {}
            for i, data in enumerate(contents):
                extension = "npy" if data.startswith(b"\x93NUMPY") else "png"
                members[f"{first + i:03}.{extension}"] = data
                members[f"{first + i:03}.cls"] = b"7"
            write_tar(folder / f"{shard}.tar", members)
        else:
            write_parquet(folder / f"{shard}.parquet", contents)
        first += n
    return folder
