"""Files are whole or not there, and never overwritten unasked."""

import errno
import os
import stat

import pytest

from variational_diffusion.errors import InputError
from variational_diffusion.storage.files import atomic, atomic_folder, unused


def test_the_file_appears_when_the_block_ends_and_nothing_else_stays(tmp_path):
    path = tmp_path / "weights.npz"
    with atomic(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".npz"
        temporary.write_bytes(b"all of it")
        assert not path.exists()
    assert path.read_bytes() == b"all of it"
    assert os.listdir(tmp_path) == ["weights.npz"]


def test_it_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append("flush"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), replace(a, b)))
    with atomic(tmp_path / "file") as temporary:
        temporary.write_text("text")
    assert order == ["flush", "rename", "flush"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_error_in_the_block_leaves_everything_as_it_was(tmp_path, overwrite):
    path = tmp_path / "file.txt"
    if overwrite:
        path.write_text("old")
    # two statements (PT012): the block itself is what is tested
    with pytest.raises(ZeroDivisionError), atomic(path, overwrite) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == (["file.txt"] if overwrite else [])
    assert not overwrite or path.read_text() == "old"


def test_files_get_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    with atomic(tmp_path / "ours") as temporary:
        temporary.write_text("")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours")}
    assert len(modes) == 1


def test_an_existing_file_is_kept_unless_asked(tmp_path):
    path = tmp_path / "sheet.png"
    path.write_text("old")
    message = r"sheet\.png' exists and is not overwritten; .*--out .*sheet-2\.png"
    with pytest.raises(InputError, match=message), atomic(path):
        pytest.fail("the block must not run")
    with atomic(path, overwrite=True) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / "file"
    # two statements (PT012): the error comes at the end of the block, not from either
    with pytest.raises(InputError, match="exists"), atomic(path) as temporary:  # noqa: PT012
        temporary.write_text("ours")
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_writer_left_is_removed_by_the_next_an_hour_later(tmp_path):
    left = [tmp_path / ".sheet.0123abcd.png", tmp_path / ".back.0123abcd" / "a.png"]
    young, own = tmp_path / ".sheet.89abcdef.png", tmp_path / ".other.0123abcd.png"
    left[1].parent.mkdir()
    for path in (*left, young, own):
        path.write_bytes(b"left")
    for path in (left[0], left[1].parent, own):
        os.utime(path, (0, 0))
    with atomic(tmp_path / "sheet.png") as temporary:
        temporary.write_text("new")
    with atomic_folder(tmp_path / "back") as folder:
        (folder / "a.png").write_text("new")
    assert sorted(os.listdir(tmp_path)) == sorted(
        [young.name, own.name, "sheet.png", "back"]  # of somebody who may be writing, of another
    )


def test_a_missing_folder_is_named(tmp_path):
    with (
        pytest.raises(InputError, match=r"out/a' is no folder; mkdir -p .*out/a$"),
        atomic(tmp_path / "out" / "a" / "file"),
    ):
        pytest.fail("the block must not run")


def test_a_folder_and_a_device_are_no_files(tmp_path):
    with pytest.raises(InputError, match="is a folder; give a file in it"), atomic(tmp_path):
        pytest.fail("the block must not run")
    os.mkfifo(tmp_path / "pipe")
    with (
        pytest.raises(InputError, match=r"pipe' is no regular file; .*--out .*pipe-2"),
        atomic(tmp_path / "pipe", overwrite=True),
    ):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written_to_is_named(tmp_path, monkeypatch, number):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refused)
    message = rf"file' cannot be written: {os.strerror(number).lower()}; .*--out FILE"
    with pytest.raises(InputError, match=message), atomic(tmp_path / "file"):
        pytest.fail("the block must not run")


def test_a_full_disk_is_the_users_and_other_errors_are_not(tmp_path):
    with pytest.raises(InputError, match=r"no space left.*free some space"), atomic(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="odd"), atomic(tmp_path / "a"):
        raise OSError(errno.EIO, "odd")
    assert os.listdir(tmp_path) == []


def test_unused_counts_up(tmp_path):
    path = tmp_path / "sheet.png"
    assert unused(path) == path
    path.touch()
    assert unused(path).name == "sheet-2.png"
    (tmp_path / "sheet-2.png").symlink_to("nowhere")
    assert unused(path).name == "sheet-3.png"
