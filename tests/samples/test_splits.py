"""Split files: what is in them, whether the files are there, and the official lists of Sen1Floods11."""

from __future__ import annotations

import logging
from pathlib import Path
from string import ascii_letters, digits

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from terramind_plugin.errors import DataError
from terramind_plugin.samples.layout import Layout, read_split
from terramind_plugin.samples.splits import convert_sen1floods11_lists


def _split(folder: Path, content: bytes) -> Path:
    path = folder / "split.txt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"a_1\nb_2\n",
        b"a_1\nb_2",
        b"\n\na_1\n\n  \nb_2\n\n\n",
        b"a_1\r\nb_2\r\n",
        b"a_1\rb_2\r",
        b"\xef\xbb\xbfa_1\nb_2\n",
        b"\xef\xbb\xbf\r\na_1  \r\n\tb_2\r\n\r\n",
    ],
)
def test_ids_whatever_the_line_ends(tmp_path: Path, content: bytes) -> None:
    assert read_split(_split(tmp_path, content)) == ["a_1", "b_2"]


def test_repeated_ids_are_used_once_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="terramind_plugin"):
        assert read_split(_split(tmp_path, b"b\na\nb\nb\n")) == ["b", "a"]
    assert "2 ids more than once, e.g. b" in caplog.text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    ids=st.lists(st.text(ascii_letters + digits + "_-.", min_size=1), min_size=1, unique=True),
    end=st.sampled_from(["\n", "\r\n", "\n\n", " \n", "\r\n\r\n"]),
)
def test_any_list_of_ids_is_read_back(tmp_path: Path, ids: list[str], end: str) -> None:
    path = _split(tmp_path, "".join(f"{name}{end}" for name in ids).encode())
    assert read_split(path) == ids


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"  \r\n"])
def test_no_id_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="no sample id"):
        read_split(_split(tmp_path, content))


def test_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Split file not found: .*nowhere\.txt"):
        read_split(tmp_path / "nowhere.txt")


def test_a_file_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="UTF-8"):
        read_split(_split(tmp_path, "café\n".encode("latin-1")))
    with pytest.raises(DataError, match="UTF-8"):
        read_split(_split(tmp_path, "a\nb\n".encode("utf-16")))


def _folder(tmp_path: Path, *names: str) -> dict[str, Path]:
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return {"S2": tmp_path / "s2", "mask": tmp_path / "mask"}


def _check(ids: list[str], roots: dict[str, Path], *, substrings: bool = True, optional: tuple[str, ...] = ()) -> None:
    suffixes = {"S2": "*.tif", "S1": "*.tif", "mask": "*_label.tif"}
    Layout(roots, suffixes, substrings=substrings, optional=optional).check(ids, "train.txt")


def test_complete_samples_pass(tmp_path: Path) -> None:
    roots = _folder(tmp_path, "s2/a.tif", "s2/b_2020.tif", "mask/a_label.tif", "mask/b_label.tif")
    _check(["a", "b"], roots)


def test_ids_without_a_file_are_named(tmp_path: Path) -> None:
    roots = _folder(tmp_path, "s2/a.tif", "s2/b.tif", "mask/a_label.tif")
    with pytest.raises(DataError) as caught:
        _check(["a", "b", "x"], roots)
    message = str(caught.value)
    assert "train.txt does not match the data" in message
    assert "b: no file for mask" in message
    assert "x: no file for S2" in message
    assert "allow_missing_modalities" in message


def test_many_problems_are_counted(tmp_path: Path) -> None:
    roots = _folder(tmp_path, "s2/a.tif", "mask/a_label.tif")
    with pytest.raises(DataError, match=r"12 problems with 6 of 6 samples(.|\n)*and 7 more"):
        _check([f"x{i}" for i in range(6)], roots)


def test_an_ambiguous_id_is_an_error(tmp_path: Path) -> None:
    roots = _folder(tmp_path, "s2/a_1.tif", "s2/a_2.tif", "mask/a_label.tif")
    with pytest.raises(DataError, match=r"a: 2 files for S2 \(a_1.tif, a_2.tif\)"):
        _check(["a"], roots)


def test_an_exact_name_is_not_ambiguous(tmp_path: Path) -> None:
    roots = _folder(tmp_path, "s2/a.tif", "s2/a_2.tif", "mask/a_label.tif")
    _check(["a"], roots)


def test_wildcards_in_ids_are_literal(tmp_path: Path) -> None:
    roots = _folder(tmp_path, "s2/a[1].tif", "s2/a1.tif", "mask/a[1]_label.tif")
    _check(["a[1]"], roots)
    with pytest.raises(DataError, match="no file for S2"):
        _check(["*"], roots)


def test_without_substrings_names_are_exact(tmp_path: Path) -> None:
    roots = _folder(tmp_path, "s2/a_2020.tif", "mask/a_label.tif")
    with pytest.raises(DataError, match="no file for S2"):
        _check(["a"], roots, substrings=False)


def test_an_optional_modality_may_lack_but_not_all(tmp_path: Path) -> None:
    roots = _folder(tmp_path, "s2/a.tif", "s1/b.tif", "mask/a_label.tif", "mask/b_label.tif", "mask/c_label.tif")
    roots["S1"] = tmp_path / "s1"
    _check(["a", "b"], roots, optional=("S2", "S1"))
    with pytest.raises(DataError, match=r"c: no file of any modality \(S2, S1\)"):
        _check(["a", "c"], roots, optional=("S2", "S1"))


OFFICIAL = "Ghana_103272_S1Hand.tif,Ghana_103272_LabelHand.tif\nSpain_7370579_S1Hand.tif,Spain_7370579_LabelHand.tif\n"


def test_official_lists_become_ids(tmp_path: Path) -> None:
    source, target = tmp_path / "csv", tmp_path / "new" / "splits"
    source.mkdir()
    (source / "flood_train_data.csv").write_text(OFFICIAL)
    (source / "flood_bolivia_data.csv").write_bytes(b"\xef\xbb\xbfBolivia_1_S1Hand.tif,Bolivia_1_LabelHand.tif\r\n\r\n")
    written = convert_sen1floods11_lists(source, target)
    assert [path.name for path in written] == ["flood_train_data.txt", "flood_bolivia_data.txt"]
    assert read_split(written[0]) == ["Ghana_103272", "Spain_7370579"]
    assert read_split(written[1]) == ["Bolivia_1"]
    assert sorted(path.name for path in target.iterdir()) == sorted(path.name for path in written)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Ghana_1_S2Hand.tif,Ghana_1_LabelHand.tif\n", "line 1: expected '<id>_S1Hand.tif"),
        (f"{OFFICIAL}Ghana_1\n", "line 3"),
        ("Ghana_1_S1Hand.tif,Ghana_2_LabelHand.tif\n", "line 1.*Ghana_2"),
        ("\n", "is empty"),
    ],
)
def test_a_bad_list_changes_nothing(tmp_path: Path, content: str, message: str) -> None:
    source, target = tmp_path / "csv", tmp_path / "splits"
    source.mkdir()
    target.mkdir()
    (target / "flood_train_data.txt").write_text("kept\n")
    (source / "flood_train_data.csv").write_text(OFFICIAL)
    (source / "flood_valid_data.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        convert_sen1floods11_lists(source, target)
    assert [path.name for path in target.iterdir()] == ["flood_train_data.txt"]
    assert (target / "flood_train_data.txt").read_text() == "kept\n"


def test_no_list_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No Sen1Floods11 list in"):
        convert_sen1floods11_lists(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
