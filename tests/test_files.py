import hashlib
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from countvae import files
from countvae.errors import CannotWrite, InputError, InUse
from countvae.files import check_writable, claimed, holds_only, new_file, new_folder, sha256


def content(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "out.tsv.gz"
    with new_file(path) as beside:
        assert beside.parent == tmp_path and beside.name.endswith("out.tsv.gz")
        beside.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    assert content(tmp_path) == ["out.tsv.gz"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(failure), new_file(path, force=True) as beside:
        beside.write_text("half")
        raise failure
    assert path.read_text() == "old"
    assert content(tmp_path) == ["out.txt"]


def test_nothing_is_overwritten_without_force(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(InputError, match="is already there"), new_file(path):
        pass
    with new_file(path, force=True) as beside:
        beside.write_text("new")
    assert path.read_text() == "new"


def test_a_file_that_appeared_meanwhile_is_kept(tmp_path):
    path = tmp_path / "out.txt"
    with pytest.raises(InputError, match="is already there"), new_file(path) as beside:
        beside.write_text("mine")
        path.write_text("another's")
    assert path.read_text() == "another's"


def test_new_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    with new_file(tmp_path / "new"):
        pass
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "sub").mkdir()
    with pytest.raises(InputError, match="is a folder"), new_file(tmp_path / "sub", force=True):
        pass


def test_a_missing_folder_is_named_before_the_work(tmp_path):
    with pytest.raises(InputError, match=r"the folder '.*nowhere' does not exist"):
        check_writable(tmp_path / "nowhere" / "out.txt", force=True)
    check_writable(tmp_path / "out.txt", force=False)
    assert content(tmp_path) == []


@pytest.mark.parametrize("length", [240, 300])
def test_a_name_that_leaves_no_room_for_an_unfinished_one_is_refused_before_the_work(
    tmp_path, length
):
    with pytest.raises(CannotWrite, match=r"a+: cannot be written \(File name too long\)\.$"):
        check_writable(tmp_path / ("a" * length), force=True)
    assert content(tmp_path) == []


@pytest.mark.parametrize("outermost", ["/", "/."])
def test_the_outermost_folder_is_no_place_to_write_to(outermost):
    with pytest.raises(CannotWrite, match="this is the outermost"), claimed(outermost):
        pass


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder nobody can write to")
def test_an_unwritable_folder_is_a_sentence():
    with pytest.raises(InputError, match=r"^/proc/self/out.txt: cannot be written \(.*\)\.$"):
        check_writable("/proc/self/out.txt", force=False)


def test_a_folder_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "model"
    with new_folder(path) as beside:
        (beside / "config.json").write_text("{}")
        assert not path.exists()
    assert content(path) == ["config.json"]
    assert content(tmp_path) == ["model"]


def test_an_old_folder_stays_until_the_new_one_is_complete(tmp_path):
    path, ours = tmp_path / "model", holds_only("config.json")
    for text in ("old", "new"):
        with new_folder(path, force=text == "new", replaceable=ours) as beside:
            (beside / "config.json").write_text(text)
            assert text == "old" or (path / "config.json").read_text() == "old"
    assert (path / "config.json").read_text() == "new"
    again = new_folder(path, force=True, replaceable=ours)
    with pytest.raises(KeyboardInterrupt), again as beside:
        (beside / "config.json").write_text("half")
        raise KeyboardInterrupt
    assert (path / "config.json").read_text() == "new"
    assert content(tmp_path) == ["model"]


def test_an_old_folder_is_not_replaced_without_force(tmp_path):
    path = tmp_path / "model"
    with new_folder(path) as beside:
        (beside / "config.json").touch()
    with pytest.raises(InputError, match="is already there"), new_folder(path):
        pass


def test_an_empty_folder_is_not_in_the_way(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    with new_folder(path) as beside:
        (beside / "config.json").touch()
    assert content(path) == ["config.json"]


@pytest.mark.parametrize("beside", ["thesis.txt", "config.json"])
def test_somebodys_own_folder_is_not_removed_even_with_force(tmp_path, beside):
    home, ours = tmp_path / "home", holds_only("config.json")
    home.mkdir()
    (home / "thesis.txt").touch()
    (home / beside).touch()
    for path in (home, home / "thesis.txt"):
        with pytest.raises(InputError, match="was not written here"):
            with new_folder(path, force=True, replaceable=ours):
                pass
    assert content(home) == sorted({"thesis.txt", beside})


def test_what_a_link_points_to_is_written_and_the_link_stays(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("file", "folder"):
        (tmp_path / name).symlink_to(elsewhere / name)
    (elsewhere / "folder").mkdir()
    for path in (elsewhere / "file", elsewhere / "folder" / "a"):
        path.write_text("old")
    with new_file(tmp_path / "file", force=True) as beside:
        assert beside.parent == elsewhere
        beside.write_text("new")
    with new_folder(tmp_path / "folder", force=True, replaceable=holds_only("a")) as beside:
        (beside / "a").write_text("new")
    assert (elsewhere / "file").read_text() == (elsewhere / "folder" / "a").read_text() == "new"
    assert (tmp_path / "file").is_symlink() and (tmp_path / "folder").is_symlink()
    assert content(elsewhere) == ["file", "folder"]


def test_a_link_into_a_missing_folder_or_in_a_circle_is_a_sentence(tmp_path):
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere" / "x")
    (tmp_path / "there").symlink_to("back")
    (tmp_path / "back").symlink_to("there")
    for path in (tmp_path / "gone", tmp_path / "there" / "x"):
        with pytest.raises(CannotWrite, match="does not exist"), new_file(path, force=True):
            pass
    with pytest.raises(InputError, match="is already there"), new_file(tmp_path / "there"):
        pass


def test_sha256_is_that_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_of_a_folder_that_is_replaced_a_reader_finds_the_old_or_the_new(tmp_path):
    place, stop, seen = tmp_path / "model", threading.Event(), set()

    def replace_again_and_again():
        for i in range(60):
            with new_folder(place, force=True, replaceable=holds_only("a", "b")) as folder:
                for name in ("a", "b"):
                    (folder / name).write_text(str(i))
        stop.set()

    with new_folder(place) as folder:
        for name in ("a", "b"):
            (folder / name).write_text("-1")
    writer = threading.Thread(target=replace_again_and_again)
    writer.start()
    while not stop.is_set():
        inside = os.open(place, os.O_RDONLY)  # a reader who came in stays in the folder it found
        try:
            a, b = (Path(f"/proc/self/fd/{inside}/{name}") for name in ("a", "b"))
            first, second = a.read_text(), b.read_text()
            assert first == second
            seen.add(first)
        except FileNotFoundError:
            pass  # read after the folder was let go: gone, never half
        finally:
            os.close(inside)
    writer.join()
    assert len(seen) > 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_place_is_claimed_by_one_and_free_when_that_ends(tmp_path):
    with claimed(tmp_path / "m"):
        with pytest.raises(InUse, match="m: another run is writing to it"), claimed(tmp_path / "m"):
            pass
        with claimed(tmp_path / "other"):
            pass
    with claimed(tmp_path / "m"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_claims_its_place_and_tidies_it(tmp_path):
    path = tmp_path / "a.tsv"
    left = [tmp_path / ".countvae-01234567-a.tsv", tmp_path / ".countvae-89abcdef-b.tsv"]
    for file in left:
        file.write_text("half")
    with new_file(path) as beside:
        assert not left[0].exists() and left[1].exists()
        with pytest.raises(InUse):
            _claim_elsewhere(path)
        beside.write_text("whole")
    assert sorted(tmp_path.iterdir()) == [left[1], path]
    folder = tmp_path / "folder"
    with claimed(folder), new_folder(folder), pytest.raises(InUse):
        _claim_elsewhere(folder)
    with claimed(folder), new_file(folder / "within") as beside:
        assert list(folder.iterdir()) == [beside], "a lock that a killed run would leave there"


def _claim_elsewhere(path):
    """Claim a place in another process, and raise what that raised."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(_claim, path).result()


def _claim(path):
    with claimed(path):
        pass


def test_a_claim_removes_what_a_killed_run_began_there_and_nothing_else(tmp_path):
    for name in (".countvae-0123abcd-m", ".countvae-4567abcd-m.before"):
        (tmp_path / name).mkdir()
    begun = {f".countvae-0123abcd-{name}" for name in ("mm", "my-m", "m.after")}
    others = begun | {".deadbeef-m", ".notes-m", "m"}
    for name in others:
        (tmp_path / name).mkdir()
    with claimed(tmp_path / "m"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == others


def test_a_claim_brings_back_what_a_killed_run_had_put_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *given, **named: object())  # no renameat2
    for content in ("old", "new"):
        with new_folder(tmp_path / "m", force=True, replaceable=holds_only("a")) as folder:
            (folder / "a").write_text(content)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    rename = os.rename

    def killed_after_the_first(before, after):
        rename(before, after)
        raise Killed

    monkeypatch.setattr(files.os, "rename", killed_after_the_first)
    monkeypatch.setattr(files.shutil, "rmtree", lambda *given, **named: None)
    with (
        pytest.raises(Killed),
        new_folder(tmp_path / "m", force=True, replaceable=holds_only("a")) as folder,
    ):
        (folder / "a").write_text("newest")
    monkeypatch.undo()
    assert not (tmp_path / "m").exists()
    with claimed(tmp_path / "m"):
        assert (tmp_path / "m" / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


class Killed(BaseException):
    pass


def test_a_place_in_no_folder_cannot_be_claimed(tmp_path):
    with pytest.raises(CannotWrite, match="does not exist"), claimed(tmp_path / "none" / "m"):
        pass
    assert not (tmp_path / "none").exists()


def test_a_write_that_fails_is_about_the_file_that_was_asked_for(tmp_path):
    def full(path):
        raise OSError(28, "No space left on device", str(path))

    with pytest.raises(CannotWrite) as found, new_file(tmp_path / "a.tsv") as beside:
        full(beside)
    assert str(found.value) == f"{tmp_path / 'a.tsv'}: cannot be written (No space left on device)."
    with pytest.raises(CannotWrite) as found, new_folder(tmp_path / "f") as folder:
        with new_file(folder / "b.tsv") as beside:
            full(beside)
    where = tmp_path / "f" / "b.tsv"
    assert str(found.value) == f"{where}: cannot be written (No space left on device)."
    assert list(tmp_path.iterdir()) == []
