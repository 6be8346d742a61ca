"""Every member of a tar is a file, a link to one, a folder, counted, or an error that names it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.config import DataConfig, ILSVRCSource, WebDatasetSource
from data_pipeline.errors import UsageError
from data_pipeline.ingest.ingesting import ingest
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.sources import open_source, safe_key
from data_pipeline.sources.tar_listing import TarListing, list_tar
from data_pipeline.storage.tar import write_tar
from data_pipeline.tools.verifying import verify
from tests.data_pipeline.raw_data import write_ilsvrc
from tests.data_pipeline.small_data import jpeg


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A member without data."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def hard(name: str, target: str) -> tarfile.TarInfo:
    return member(name, tarfile.LNKTYPE, target)


def soft(name: str, target: str) -> tarfile.TarInfo:
    return member(name, tarfile.SYMTYPE, target)


def tar(members: Iterable[tarfile.TarInfo | tuple[str, bytes]]) -> bytes:
    """A tar of files, and of members without data."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for one in members:
            if isinstance(one, tarfile.TarInfo):
                archive.addfile(one)
            else:
                info = tarfile.TarInfo(one[0])
                info.size = len(one[1])
                archive.addfile(info, io.BytesIO(one[1]))
    return buffer.getvalue()


@pytest.fixture
def listed(tmp_path: Path) -> Callable[[bytes], TarListing]:
    """Lists the tar of some bytes, with the contents of all its files."""

    def list_bytes(data: bytes) -> TarListing:
        (tmp_path / "a.tar").write_bytes(data)
        return list_tar(str(tmp_path / "a.tar"), is_wanted=lambda _name: True)

    return list_bytes


def contents(listing: TarListing) -> dict[str, bytes]:
    return {one.name: data for one, data in listing.files}


Listed = Callable[[bytes], TarListing]


def test_links_are_the_files_that_they_lead_to(listed: Listed) -> None:
    files = [
        ("a/1", b"one"),
        hard("a/2", "a/1"),
        hard("a/3", "./a/2"),
        soft("b/4", "../a/1"),
        soft("5", "b/4"),
        hard("6", "5"),
        soft("later", "c"),
        ("c", b"see"),
    ]
    expected = dict.fromkeys(["a/1", "a/2", "a/3", "b/4", "5", "6"], b"one") | {"later": b"see", "c": b"see"}
    assert contents(listed(tar(files))) == expected


def test_a_hard_link_leads_to_what_lay_before_it(listed: Listed) -> None:
    listing = listed(tar([("a", b"old"), hard("b", "a"), ("a", b"new")]))
    assert [data for _, data in listing.files] == [b"old", b"old", b"new"]


def test_a_link_to_a_hidden_member_is_read(listed: Listed) -> None:
    listing = listed(tar([(".store/1", b"one"), soft("1.jpg", ".store/1")]))
    assert contents(listing) == {"1.jpg": b"one"}
    assert listing.skipped.counts() == {"hidden": 1}


@pytest.mark.parametrize("link", [hard, soft])
@pytest.mark.parametrize("target", ["gone", "/etc/passwd", "../../x", "folder"])
def test_a_link_to_no_file_of_the_tar_is_named(
    listed: Listed, link: Callable[..., tarfile.TarInfo], target: str
) -> None:
    with pytest.raises(UsageError, match=r"a\.tar holds a link, a link to .*, which is no file of this tar"):
        listed(tar([member("folder", tarfile.DIRTYPE), ("folder/1", b""), link("a link", target)]))


def test_links_in_a_circle_are_named(listed: Listed) -> None:
    with pytest.raises(UsageError, match=r"a\.tar holds a, a link to \w, and so in a circle"):
        listed(tar([soft("a", "b"), soft("b", "c"), soft("c", "a")]))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.FIFOTYPE, "which is a FIFO"),
        (tarfile.CHRTYPE, "which is a device"),
        (tarfile.BLKTYPE, "which is a device"),
        (b"M", "which is a member of the unknown type b'M'"),
    ],
)
def test_what_is_no_file_is_named(listed: Listed, kind: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=rf"a\.tar holds dir/odd\.jpg, {words}, not a file"):
        listed(tar([("1.jpg", b""), member("dir/odd.jpg", kind)]))


@pytest.mark.parametrize(
    "form", ["gnu", "pax --sparse-version=0.0", "pax --sparse-version=0.1", "pax --sparse-version=1.0"]
)
def test_a_sparse_file_is_named(listed: Listed, tmp_path: Path, form: str) -> None:
    with (tmp_path / "holes.jpg").open("wb") as file:
        file.write(jpeg(1))
        file.truncate(2**20)
        file.seek(0, os.SEEK_END)
        file.write(b"end")
    command = ["tar", "--sparse", f"--format={form.split()[0]}", *form.split()[1:], "-cf", "-", "holes.jpg"]
    data = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    assert len(data) < 2**19
    with pytest.raises(UsageError, match=r"a\.tar holds \S*holes\.jpg as a sparse file: write the tar"):
        listed(data)


def test_folders_and_the_label_of_an_archive_are_no_files(listed: Listed) -> None:
    assert contents(listed(tar([member("backup", b"V"), member("a", tarfile.DIRTYPE), ("a/1", b"x")]))) == {"a/1": b"x"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[("._1.jpg", "of an operating system"), ("./a/._1.jpg", "of an operating system"), (".1.jpg", "hidden")],
        *[
            ("__MACOSX/1.jpg", "of an operating system"),
            ("a/Thumbs.db", "of an operating system"),
            ("a/.b/1.jpg", "hidden"),
        ],
    ],
)
def test_hidden_members_are_counted(listed: Listed, name: str, kind: str) -> None:
    listing = listed(tar([("./1.jpg", b""), (name, b"")]))
    assert list(contents(listing)) == ["./1.jpg"]
    assert listing.skipped.counts() == {kind: 1}


def test_a_name_that_is_no_utf8_is_named_in_escaped_form(listed: Listed) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", encoding="latin-1", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("café.jpg"))
    with pytest.raises(UsageError, match=r"a\.tar holds caf\\xe9\.jpg, whose name is no UTF-8"):
        listed(buffer.getvalue())


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_tar_is_said_to_be_one(listed: Listed, pack: Callable[[bytes], bytes]) -> None:
    with pytest.raises(UsageError, match=r"a\.tar is compressed \((gzip|bzip2|xz)\): .* unpack it first"):
        listed(pack(tar([("1.jpg", b"")])))


@pytest.mark.parametrize("magic", [b"\x28\xb5\x2f\xfd", b"PK\x03\x04"], ids=["zstd", "zip"])
def test_other_compressed_files_are_known_by_how_they_begin(listed: Listed, magic: bytes) -> None:
    with pytest.raises(UsageError, match=r"is compressed \((zstd|zip)\)"):
        listed(magic + bytes(range(256)) * 4)


@pytest.mark.parametrize("padding", [0, 1, 17, 100])
def test_what_lies_behind_the_end_mark_is_an_error(listed: Listed, padding: int) -> None:
    first = write_tar([("1.jpg", b"one")])[0] + bytes(512 * padding)
    assert contents(listed(first)) == {"1.jpg": b"one"}
    with pytest.raises(
        tarfile.TarError, match=rf"more behind its end-of-archive mark, at byte {len(first)}, as files do"
    ):
        listed(first + write_tar([("2.jpg", b"two")])[0])


@pytest.mark.parametrize("cut", range(0, 5 * 512, 128))
def test_a_tar_that_was_cut_anywhere_before_its_end_mark_is_an_error(listed: Listed, cut: int) -> None:
    whole = write_tar([("1.jpg", b"1" * 700), ("2.jpg", b"2" * 300)])[0]
    assert len(whole) == 5 * 512 + 1024
    with pytest.raises(tarfile.TarError):
        listed(whole[:cut])


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header that says what it likes of its size."""
    info = member(name, kind)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


HOSTILE = {
    "negative size": header("1.jpg", -512) + bytes(1024),
    "size of -1": header("1.jpg", -1) + bytes(1024),
    "huge size": header("1.jpg", 2**62) + bytes(1024),
    "huge long name": header("long", 2**40, tarfile.GNUTYPE_LONGNAME) + bytes(1024),
    "negative long name": header("long", -512, tarfile.GNUTYPE_LONGNAME) + bytes(1024),
    "huge pax header": header("pax", 2**40, tarfile.XHDTYPE) + bytes(1024),
    "pax headers in a chain": header("pax", 512, tarfile.XHDTYPE) * 3000,
    "negative pax size": header("pax", 512, tarfile.XHDTYPE)
    + b"11 size=-5\n".ljust(512, b"\0")
    + header("a", 0)
    + bytes(1024),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_end_in_an_error_at_once(listed: Listed, case: str) -> None:
    with pytest.raises(tarfile.TarError):
        listed(HOSTILE[case])


def test_the_name_and_the_size_of_a_pax_header_count(listed: Listed) -> None:
    """As tar writes them for long names and for files of more than 8 GiB, where the plain header has no room."""
    records = b"".join(b"%d %b\n" % (len(text) + 4, text) for text in (b"path=folder/real.jpg", b"size=700"))
    pax = header("pax", len(records), tarfile.XHDTYPE) + records.ljust(512, b"\0")
    data = pax + header("short", 0) + (b"7" * 700).ljust(1024, b"\0") + header("next", 0) + bytes(1024)
    assert contents(listed(data)) == {"folder/real.jpg": b"7" * 700, "next": b""}


def test_the_linked_images_of_a_class_are_its_images(tmp_path: Path) -> None:
    inner = {"n01": [("n01_1.JPEG", jpeg(1)), hard("n01_2.JPEG", "n01_1.JPEG")], "n02": [("n02_1.JPEG", jpeg(2))]}
    (tmp_path / "train.tar").write_bytes(tar([(f"{wnid}.tar", tar(files)) for wnid, files in inner.items()]))
    source = open_source(ILSVRCSource(path=str(tmp_path / "train.tar")))
    assert [(item.key, item.label) for item in source.items] == [("n01_1", 0), ("n01_2", 0), ("n02_1", 1)]
    assert [source.reader.read(item) for item in source.items] == [jpeg(1), jpeg(1), jpeg(2)]


@pytest.mark.parametrize(
    "empty", [tar([]), tar([("._n02_1.JPEG", b"\0\5\x16\7")])], ids=["no members", "AppleDouble alone"]
)
def test_a_class_tar_without_images_is_named_unless_it_is_allowed(tmp_path: Path, empty: bytes) -> None:
    path = tmp_path / "train.tar"
    path.write_bytes(tar([("n01.tar", tar([("n01_1.JPEG", jpeg(1))])), ("n02.tar", empty)]))
    with pytest.raises(UsageError, match=r"class tars without images \(1\): n02\.tar\. .*allow_empty_classes"):
        open_source(ILSVRCSource(path=str(path)))
    assert open_source(ILSVRCSource(path=str(path), allow_empty_classes=True)).classes == ("n01", "n02")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([("n01.tar", gzip.compress(b"x"))], r"train\.tar: n01\.tar is compressed \(gzip\)"),
        ([("n01.tar", b"")], r"train\.tar: n01\.tar is not a tar of the images of one class"),
        ([("n01.tar.gz", b"")], r"one tar per class, but holds n01\.tar\.gz"),
        ([("n01.tar", tar([])), ("b/n01.tar", tar([]))], r"holds n01\.tar and b/n01\.tar: a class has one tar"),
        ([("n01.tar", tar([])), ("n01.tar", tar([]))], r"holds n01\.tar and n01\.tar: a class has one tar"),
        ([("n01.tar", tar([])), ("N01.tar", tar([]))], r"the classes 'n01' and 'N01', which differ in case"),
        ([("n01.tar", tar([("a", b"")]) * 2)], r"train\.tar: n01\.tar is .* more behind its end-of-archive mark"),
    ],
    ids=["compressed", "of no bytes", "another ending", "in two folders", "twice", "in two cases", "joined"],
)
def test_class_tars_that_are_wrong_are_named(tmp_path: Path, parts: list[tuple[str, bytes]], message: str) -> None:
    (tmp_path / "train.tar").write_bytes(tar(parts))
    with pytest.raises(UsageError, match=message):
        open_source(ILSVRCSource(path=str(tmp_path / "train.tar")))


def test_what_macos_packs_beside_class_tars_is_counted(tmp_path: Path) -> None:
    inner = tar([("./n01_1.JPEG", jpeg(1)), ("./._n01_1.JPEG", b"\0\5\x16\7")])
    (tmp_path / "train.tar").write_bytes(tar([("./._n01.tar", b"\0\5\x16\7"), ("./n01.tar", inner)]))
    source = open_source(ILSVRCSource(path=str(tmp_path / "train.tar")))
    assert [item.key for item in source.items] == ["n01_1"]
    assert source.skipped == {"of an operating system": 2}


def test_a_compressed_tar_among_others_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar([("1.jpg", jpeg(1)), ("1.cls", b"0")]))
    (tmp_path / "b.tar.gz").write_bytes(b"")
    with pytest.raises(UsageError, match=r"holds b\.tar\.gz, which is compressed: unpack it to a plain tar"):
        open_source(WebDatasetSource(path=str(tmp_path)))


def test_members_without_extension_and_empty_tars_are_counted(tmp_path: Path) -> None:
    files = [("1.jpg", jpeg(1)), ("1.cls", b"0"), ("README", b""), ("._1.jpg", b""), (".d/2.jpg", b"")]
    (tmp_path / "a.tar").write_bytes(tar(files))
    (tmp_path / "b.tar").write_bytes(tar([]))
    source = open_source(WebDatasetSource(path=str(tmp_path), label=".CLS", images=(".JPG",)))
    assert [item.key for item in source.items] == ["1"]
    assert source.skipped == {"empty tars": 1, "hidden": 1, "of an operating system": 1, "without an extension": 1}


@pytest.mark.parametrize("name", ["fifo.tar", "loop.tar", "zero.tar", "gone.tar"])
@pytest.mark.parametrize("kind", [ILSVRCSource, WebDatasetSource])
def test_a_source_that_is_no_file_ends_in_an_error(tmp_path: Path, kind: type, name: str) -> None:
    os.mkfifo(tmp_path / "fifo.tar")
    (tmp_path / "loop.tar").symlink_to("loop.tar")
    (tmp_path / "zero.tar").symlink_to("/dev/zero")
    (tmp_path / "gone.tar").symlink_to("nowhere.tar")
    with pytest.raises(UsageError, match=name.replace(".", r"\.")):
        open_source(kind(path=str(tmp_path / name)))


ODD = st.sampled_from(["image", "hard link", "symlink", "damaged", "hidden", "._", "folder"])


@given(kinds=st.dictionaries(st.tuples(st.sampled_from(["n01", "n02"]), st.integers(0, 4)), ODD, max_size=8))
def test_images_and_what_is_set_aside_and_skipped_are_all_that_a_tar_holds(
    kinds: dict[tuple[str, int], str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tar")
    classes: dict[str, list[tarfile.TarInfo | tuple[str, bytes]]] = {
        wnid: [(f"{wnid}_first.JPEG", jpeg(9))] for wnid in ("n01", "n02")
    }
    for (wnid, number), kind in kinds.items():
        first, name = f"{wnid}_first.JPEG", f"{wnid}_{number}.JPEG"
        made: dict[str, tarfile.TarInfo | tuple[str, bytes]] = {
            "image": (name, jpeg(number)),
            "hard link": hard(name, first),
            "symlink": soft(name, first),
            "damaged": (name, b"damage"),
            "hidden": (f".{name}", b""),
            "._": (f"._{name}", b""),
            "folder": member(f"{number}", tarfile.DIRTYPE),
        }
        classes[wnid].append(made[kind])
    (folder / "train.tar").write_bytes(tar([(f"{wnid}.tar", tar(files)) for wnid, files in classes.items()]))
    source = ILSVRCSource(path=str(folder / "train.tar"))
    manifest = ingest(DataConfig(source=source, max_bad_share=1), str(folder / "out"), seed=0)["train"]
    count = Counter(kinds.values())
    assert manifest.samples == 2 + count["image"] + count["hard link"] + count["symlink"]
    assert manifest.quarantined == count["damaged"]
    assert Counter(open_source(source).skipped) == Counter(
        {"hidden": count["hidden"], "of an operating system": count["._"]}
    )


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar"])
def test_every_stored_image_is_the_file_that_tar_unpacks(tmp_path: Path, form: str) -> None:
    for number, wnid in enumerate(("n01", "n02")):
        folder = tmp_path / wnid
        folder.mkdir()
        (folder / f"{wnid}_a.JPEG").write_bytes(jpeg(number))
        (folder / f"{wnid}_b.JPEG").hardlink_to(folder / f"{wnid}_a.JPEG")
        (folder / f"{wnid}_c.JPEG").symlink_to(f"{wnid}_b.JPEG")
        (folder / f"{wnid}_{'long' * 20}.JPEG").write_bytes(jpeg(number + 9))
        (folder / f"._{wnid}_a.JPEG").write_bytes(b"\0\5\x16\7")
        subprocess.run(["tar", f"--format={form}", "-cf", f"{wnid}.tar", "-C", wnid, "."], cwd=tmp_path, check=True)
    subprocess.run(["tar", f"--format={form}", "-cf", "train.tar", "./n01.tar", "n02.tar"], cwd=tmp_path, check=True)
    source = ILSVRCSource(path=str(tmp_path / "train.tar"))
    ingest(DataConfig(source=source), str(tmp_path / "out"), seed=0)
    assert verify(str(tmp_path / "out" / "train")).passed
    shards = ImageShards(str(tmp_path / "out" / "train"))
    stored = {shards.key(index): (int(shards.labels[index]), shards.read(index)) for index in range(shards.count)}
    expected = {}
    for number, wnid in enumerate(("n01", "n02")):
        unpacked = tmp_path / "unpacked" / wnid
        unpacked.mkdir(parents=True)
        subprocess.run(["tar", "-xf", tmp_path / f"{wnid}.tar", "-C", unpacked], check=True)
        images = [path for path in unpacked.iterdir() if not path.name.startswith(".")]
        expected |= {safe_key(path.stem): (number, path.read_bytes()) for path in images}
    assert stored == expected
    assert len(stored) == 8


def test_both_writers_agree(tmp_path: Path) -> None:
    """The tars of these tests and those of the other ones are listed alike."""
    files = [("n01_1.JPEG", jpeg(1)), ("n01_2.JPEG", jpeg(2))]
    ours = open_source(write_ilsvrc(tmp_path / "ours.tar", {"n01": files}))
    (tmp_path / "theirs.tar").write_bytes(tar([("n01.tar", tar(files))]))
    theirs = open_source(ILSVRCSource(path=str(tmp_path / "theirs.tar")))
    assert [item[:4] for item in ours.items] == [item[:4] for item in theirs.items]
