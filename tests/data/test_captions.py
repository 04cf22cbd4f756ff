"""Captions are found where people have them, and what cannot be meant is named."""

from __future__ import annotations

import codecs
import csv
import json

import pytest

from cosmos_distill.data.caption_files import of_member
from cosmos_distill.data.captions import LONGEST, Captions, Unusable
from cosmos_distill.data.errors import DataError

NAMES = ("c00", "c01", "street.at.night", "sub/c02", "Zoë")
TEXTS = {name: f"caption of {name}, with a comma" for name in NAMES}


def read(root, names=NAMES):
    captions = Captions(root, names)
    return {name: captions.of(name).text for name in names}


def write(root, name, content):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("folder", ["captions", "metas", "videos"])
@pytest.mark.parametrize("suffix", [".txt", ".TXT"])
def test_a_file_for_each_clip(folder, suffix, tmp_path):
    for name, text in TEXTS.items():
        write(tmp_path, f"{folder}/{name}{suffix}", f"  {text}\r\n")
    assert read(tmp_path) == TEXTS


def test_json_for_each_clip_as_predict25_has_it(tmp_path):
    said = {"qwen": {"long": "a long caption", "short": "short"}, "other": {"long": "no"}}
    write(tmp_path, "captions/c00.json", json.dumps(said))
    write(tmp_path, "captions/c01.json", json.dumps(said)[1:-1])  # without braces, which its reader adds
    write(tmp_path, "captions/sub/c02.json", json.dumps({"fps": 24, "Caption": "mine"}))
    assert read(tmp_path, ("c00", "c01", "sub/c02")) == {
        "c00": "a long caption", "c01": "a long caption", "sub/c02": "mine",
    }  # fmt: skip


def records(form, key="file_name", text="caption"):
    named = {
        "bare": lambda n: n,
        "suffix": lambda n: f"{n}.mp4",
        "folder": lambda n: f"videos/{n}.MP4",
        "dot": lambda n: f"./videos/{n}.mp4",
        "elsewhere": lambda n: f"/data/set/videos/{n}.mov",
        "windows": lambda n: f"D:\\set\\videos\\{n.replace('/', chr(92))}.mp4",
        "base": lambda n: f"{n.rpartition('/')[2]}.mp4",
    }[form]
    return [{"extra": 1, key: named(name), text: caption} for name, caption in TEXTS.items()]


FORMS = ["bare", "suffix", "folder", "dot", "elsewhere", "windows", "base"]


def as_csv(rows, separator=","):
    import io

    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


TABLES = {
    "captions.json": {
        "mapping": lambda rows: json.dumps({r["file_name"]: r["caption"] for r in rows}),
        "records by name": lambda rows: json.dumps({r["file_name"]: {"text": r["caption"]} for r in rows}),
        "list": json.dumps,
        "list inside": lambda rows: json.dumps({"version": 2, "annotations": rows}),
    },
    "captions.jsonl": {"lines": lambda rows: "\n\n".join(map(json.dumps, rows)) + "\n"},
    "captions.csv": {
        "commas": as_csv,
        "semicolons": lambda rows: as_csv(rows, ";"),
        "tabs": lambda rows: as_csv(rows, "\t"),
        "no header": lambda rows: "\n".join(f'"{r["file_name"]}","{r["caption"]}"' for r in rows),
    },
    "captions.tsv": {"tabs": lambda rows: as_csv(rows, "\t")},
    "metadata.jsonl": {"lines": lambda rows: "\n".join(map(json.dumps, rows))},
    "metadata.csv": {"commas": as_csv},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "shape"), [(name, shape) for name in TABLES for shape in TABLES[name]])
def test_tables_name_clips_in_every_common_form(name, shape, form, tmp_path):
    write(tmp_path, name, TABLES[name][shape](records(form)))
    assert read(tmp_path) == TEXTS


@pytest.mark.parametrize("key", ["file", "video", "path", "ID", "video_path"])
@pytest.mark.parametrize("text", ["text", "prompt", " Caption "])
def test_keys_are_called_many_things(key, text, tmp_path):
    rows = records("suffix", key, text)
    write(tmp_path, "videos/captions.jsonl", "\n".join(map(json.dumps, rows)))
    write(tmp_path, "captions.csv", as_csv(rows))
    assert read(tmp_path) == TEXTS  # both say the same


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["captions.json", "captions.csv", "captions/c00.txt"])
def test_byte_order_marks(name, encoding, tmp_path):
    content = {
        "captions.json": json.dumps({"c00": "Käse, 雨"}, ensure_ascii=False),
        "captions.csv": 'file,caption\r\nc00.mp4,"Käse, 雨"\r\n',
        "captions/c00.txt": "Käse, 雨",
    }[name]
    write(tmp_path, name, content.encode(encoding))
    assert read(tmp_path, ("c00",)) == {"c00": "Käse, 雨"}


def test_quoting_and_line_ends(tmp_path):
    write(
        tmp_path,
        "captions.csv",
        'file,caption\r\nc00.mp4,"He says ""hi"",\r\nand leaves"\r\n\r\nc01,plain\r\n',
    )
    captions = Captions(tmp_path, ("c00", "c01"))
    assert captions.of("c00").text == 'He says "hi",\nand leaves'
    assert captions.of("c01") == ("plain", "captions.csv, line 5")
    write(tmp_path, "captions.csv", "")
    write(tmp_path, "captions.jsonl", json.dumps({"id": "c00", "text": "a\u2028b"}, ensure_ascii=False))
    assert read(tmp_path, ("c00",)) == {"c00": "a\u2028b"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("captions/c00.txt", "caf\xe9".encode("latin-1"), "is not UTF-8 at byte 3: save it as UTF-8"),
        ("captions/c00.txt", "night".encode("utf-16-le"), "UTF-16 without its mark"),
        ("captions/c00.txt", codecs.BOM_UTF16_LE + b"a", "not UTF-16"),
        ("captions/c00.json", "{", "c00.json is no JSON"),
        ("captions/c00.json", '{"fps": 24}', "holds no caption under caption, .* but fps"),
        ("captions/c00.json", '{"caption": ["a", "b"]}', "holds no caption"),
        ("captions/c00.json", r'{"caption": "a\ud800"}', r"half of a character"),
        ("captions.json", '{"c00": "a", "c00": "b"}', "'c00' stands there twice"),
        ("captions.json", '{"c00": 3}', "'c00' is no caption, or several"),
        ("captions.json", "[1]", "record 0 is a int"),
        ("captions.json", '"c00"', "it is a str: give a mapping"),
        ("captions.json", "[" * 100_000, "nested too deeply|recursion"),
        ("captions.jsonl", '{"id": "c00", "text": "a"}\n{"id":', "line 2 is no JSON"),
        ("captions.jsonl", '{"id": "c00", "words": "a"}', "holds a caption: it has id, words"),
        ("captions.jsonl", '{"words": "c00", "text": "a"}', "line 1 has no key that names a clip"),
        ("captions.csv", "file,caption\nc00.mp4,A red car, at night\n", "line 2 has 3 cells under"),
        ("captions.csv", 'file,caption\nc00.mp4,"a\nb\n', "line 2: unexpected end"),
        ("captions.csv", "a,b,c\nc00,x,y\n", "its first line 'a,b,c' names no column"),
        ("captions.csv", "file,caption\nc00.mp4,a\nvideos/c00.mp4,b\n",
         "'a' in captions.csv, line 2 and 'b' in captions.csv, line 3"),
        ("captions.csv", "file,caption\nx/c00.mp4,a\ny/c00.mp4,b\n", "clip c00 has two captions"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_an_error_that_names_file_and_line(name, content, said, tmp_path):
    write(tmp_path, name, content)
    with pytest.raises(DataError, match=said):
        read(tmp_path, ("c00",))


def test_places_that_contradict_each_other_and_places_that_come_first(tmp_path):
    write(tmp_path, "metadata.csv", "file_name,text\nc00.mp4,of the table\n")
    assert read(tmp_path, ("c00",)) == {"c00": "of the table"}
    write(tmp_path, "videos/c00.txt", "beside the clip")
    assert read(tmp_path, ("c00",)) == {"c00": "beside the clip"}
    write(tmp_path, "metas/c00.txt", "of metas")
    write(tmp_path, "metas/c00.json", '{"camera": 3}')
    assert read(tmp_path, ("c00",)) == {"c00": "of metas"}
    write(tmp_path, "captions.json", '{"c00": "first"}')
    write(tmp_path, "captions/c00.txt", "first\n")
    assert read(tmp_path, ("c00",)) == {"c00": "first"}
    write(tmp_path, "captions/c00.txt", "second\n")
    with pytest.raises(DataError, match=r"'second' in captions/c00.txt and 'first' in captions.json"):
        read(tmp_path, ("c00",))


def test_a_name_with_its_folder_goes_before_one_of_elsewhere(tmp_path):
    write(tmp_path, "captions.csv", "file,caption\nother/c00.mp4,no\nvideos/c00.mp4,yes\n")
    assert read(tmp_path, ("c00",)) == {"c00": "yes"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("captions/c01.txt", "x", r"has no caption \(captions/c00.txt"),
        ("captions.csv", "file,caption\nd00.mp4,a\nd01.mp4,a\nd02.mp4,a\nd03.mp4,a\n",
         "no caption, while captions are given for d00.mp4, d01.mp4, d02.mp4 and 1 more"),
        ("captions/c00.txt", " \n", "its caption in captions/c00.txt is empty"),
        ("captions.json", '{"c00": null}', "its caption in captions.json is empty"),
        ("captions.csv", "file,caption\nc00.mp4,\n", "its caption in captions.csv, line 2 is empty"),
        ("captions/c00.txt", "word " * LONGEST, "has 99,999 characters, more than the 20,000"),
        ("metadata.json", '{"frames": 12}', "has no caption"),
        ("metadata.csv", b"\xff\xfe\xff", "has no caption"),
    ],
)  # fmt: skip
def test_a_clip_whose_caption_cannot_be_used_is_told_why(name, content, said, tmp_path):
    write(tmp_path, name, content)
    with pytest.raises(Unusable, match=said):
        Captions(tmp_path, ("c00",)).of("c00")


def test_what_is_no_file_neither_blocks_nor_passes_unseen(tmp_path):
    import os

    os.mkfifo(tmp_path / "captions.csv")
    with pytest.raises(DataError, match="named pipe"):
        Captions(tmp_path, NAMES)
    (tmp_path / "captions.csv").unlink()
    (tmp_path / "captions.json").symlink_to("nowhere")
    with pytest.raises(DataError, match="cannot be read"):
        Captions(tmp_path, NAMES)
    (tmp_path / "captions.json").unlink()
    (tmp_path / "captions").mkdir()
    os.mkfifo(tmp_path / "captions" / "c00.txt")
    with pytest.raises(DataError, match="named pipe"):
        read(tmp_path, ("c00",))


def test_members_of_a_shard():
    assert of_member(b"\xef\xbb\xbfa red car\r\n", ".txt", "x.txt") == "a red car"
    assert of_member(b'{"__key__": "x", "text": "a red car"}', ".json", "x.json") == "a red car"
    assert of_member(b'"a red car"', ".json", "x.json") == "a red car"
    assert of_member(b"", ".json", "x.json") == ""
    with pytest.raises(DataError, match=r"member x.json holds no caption"):
        of_member(b'{"fps": 3}', ".json", "shard.tar, member x.json")
