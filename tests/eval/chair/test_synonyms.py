from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from keepsight.errors import InputError
from keepsight.eval.chair.captions import Caption
from keepsight.eval.chair.score import mentions, score
from keepsight.eval.chair.synonyms import read_vocabulary
from keepsight.eval.chair.vocabulary import COCO
from keepsight.eval.errors import EmptyFile, MalformedFile, UnpairedReports

ZOO = """# a zoo
goldfish, fish,  Koi

sea lion, seal
lion
wine glass
bus, minibus
tie
stove top oven
TV, telly
"""


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    return written(tmp_path, ZOO)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "zoo.txt"
    path.write_text(text, encoding="utf-8")
    return path


def named(caption: str, path: Path, family: str = "pattern") -> list[str]:
    found = mentions(caption, family=family, vocabulary=read_vocabulary(path, family))
    return [mention.object for mention in found]


def test_singular_and_plural_of_every_entry_are_found(zoo: Path) -> None:
    assert named("Koi, two fishes and a goldfish", zoo) == ["goldfish"] * 3
    assert named("a bus, two buses, minibuses; a tie, ties", zoo) == ["bus"] * 3 + ["tie"] * 2
    assert named("wine glasses and a wine glass", zoo) == ["wine glass"] * 2
    assert named("TVs beside a telly", zoo) == ["TV", "TV"]
    assert named("a glass of wine, a stove", zoo) == []


def test_words_that_stand_together_are_one_object_and_the_longest_wins(zoo: Path) -> None:
    assert named("Sea lions and lions", zoo) == ["sea lion", "lion"]
    assert named("a stove top oven", zoo) == ["stove top oven"]
    caption = "Two Sea  Lions."
    found = mentions(caption, vocabulary=read_vocabulary(zoo))
    assert [caption[slice(*mention.span)] for mention in found] == ["Sea  Lions"]


def test_wordnets_dictionary_forms_are_found(zoo: Path, tmp_path: Path, nltk_data: Path) -> None:
    assert named("buses, ties, wine glasses and sea lions", zoo, "wordnet") == [
        "bus",
        "tie",
        "wine glass",
        "sea lion",
    ]
    other = written(tmp_path, "parking meter\nvase\nblorf, snee blorf\n")
    said = "Cars by the parking meters, three vases and a vase, two blorfs."
    assert named(said, other, "wordnet") == ["parking meter", "vase", "vase", "blorf"]


def test_cocos_own_table_can_be_read_and_differs_where_documented(shared: Path) -> None:
    table = read_vocabulary(shared / "data" / "chair" / "synonyms.txt")
    assert table.objects == COCO.objects
    said = "A baby elephant, a bus and a cheesecake on a train track."
    assert [m.object for m in mentions(said, vocabulary=table)] == [
        "person",
        "elephant",
        "bus",
        "cake",
        "train",
    ]
    assert [m.object for m in mentions(said)] == ["elephant"]


def test_a_score_says_its_vocabulary_and_is_not_compared_with_another(zoo: Path) -> None:
    from keepsight.eval.stats.bootstrap import paired

    own = read_vocabulary(zoo)
    said = [Caption(1, "a lion and a cat")]
    ours = score(said, {1: ["lion"]}, vocabulary=own, resamples=0)
    digest = hashlib.sha256(zoo.read_bytes()).hexdigest()
    assert ours.to_json()["vocabulary"] == {"name": "zoo.txt", "sha256": digest}
    cocos = score(said, {1: ["cat"]}, resamples=0)
    assert cocos.to_json()["vocabulary"] == {"name": "coco", "sha256": COCO.sha256}
    with pytest.raises(UnpairedReports, match=r"different vocabularies \(coco, zoo.txt\)"):
        paired(cocos, ours, "chair_i")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", EmptyFile, r"zoo.txt: names no object"),
        ("# nothing\n\n", EmptyFile, r"names no object"),
        ("cat\ndog\ncat, tabby", MalformedFile, r"zoo.txt:3: 'cat' is an object already \(line 1\)"),
        ("cat, tabby\ndog, Tabby", MalformedFile, r"zoo.txt:2: 'Tabby' names 'cat' already \(line 1\)"),
        ("cat, dog\ndog", MalformedFile, r"zoo.txt:2: 'dog' names 'cat' already \(line 1\)"),
        ("cat\ntabby, cat", MalformedFile, r"zoo.txt:2: 'cat' names 'cat' already"),
        ("cat,, tabby", MalformedFile, r"zoo.txt:1: an entry is empty"),
        ("cat,\ndog", MalformedFile, r"zoo.txt:1: an entry is empty"),
        ("cat\nd\x00g", MalformedFile, r"zoo.txt:2: 'd\\x00g' holds a control character"),
        ("wugs\nwugses", MalformedFile, r"zoo.txt:2: 'wugses' cannot be told from 'wugs'"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_vocabulary(written(tmp_path, text))


def test_a_missing_file_and_a_picture_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.txt: cannot be read"):
        read_vocabulary(tmp_path / "gone.txt")
    (tmp_path / "zoo.txt").write_bytes(b"\xff\xd8")
    with pytest.raises(MalformedFile, match="is not UTF-8"):
        read_vocabulary(tmp_path / "zoo.txt")
