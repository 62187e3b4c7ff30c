"""Read a vocabulary from a file: which words name which objects of a data set of your own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

from keepsight.eval.chair.captions import read_text
from keepsight.eval.chair.score import check_family
from keepsight.eval.chair.singular import singularize
from keepsight.eval.chair.tokens import tokenize
from keepsight.eval.chair.vocabulary import Vocabulary
from keepsight.eval.errors import EmptyFile, MalformedFile


def read_vocabulary(path: str | Path, family: str = "pattern") -> Vocabulary:
    """The vocabulary of a file with one object a line: its name, then further words for it, parted by commas.

        goldfish, fish, koi
        sea lion, seal
        wine glass

    Empty lines and lines that begin with # are skipped; capitals and spaces around an entry do not matter. An
    entry of several words is found where they stand next to each other; where entries overlap, the one that
    begins first wins, then the longest ("sea lion" is no "lion"). Captions are searched for dictionary forms, so
    an entry is found by the dictionary forms of itself and of its regular plural, too: "wine glasses" is a wine
    glass, and "bus" a bus, although `pattern` makes "bu" of it. An entry as it is written goes before another's
    dictionary form.

    COCO's own vocabulary has rules besides that a file cannot give: "baby" before an animal is no person, a
    train track no train, a toilet's seat no chair. Read from a file, its table scores otherwise.

    Args:
        path: a UTF-8 text file.
        family: whose dictionary forms; the one that is scored with.

    Raises:
        EmptyFile: the file names no object.
        MalformedFile: an entry is empty, or stands for two objects; file and line are named.
        MissingData: the family needs language data that is not installed.
    """
    check_family(family)
    path = Path(path)
    text = read_text(path)
    claims: dict[str, tuple[str, int]] = {}  # what an entry says, its tokens joined, to its object and line
    words: dict[str, str] = {}
    for number, name, entry in _entries(text, path):
        key = " ".join(token.text for token in tokenize(entry.lower()))
        object_, line = claims.setdefault(key, (name, number))
        if object_ != name or (entry == name and line != number):
            same = "is an object already" if entry == name == object_ else f"names {object_!r} already"
            raise MalformedFile(f"{path}:{number}: {entry!r} {same} (line {line})")
        words[entry] = name
    if not claims:
        raise EmptyFile(f"{path}: names no object; give one a line, its name first: sea lion, seal")
    pairs = {key: key for key in claims if " " in key}
    forms: dict[str, tuple[str, str]] = {}  # a dictionary form to the entry it is of, and its object
    for key, (name, number) in claims.items():
        words[key] = name
        for form in _forms(key, family):
            if form in claims:
                continue
            entry, other = forms.setdefault(form, (key, name))
            if other != name:
                raise MalformedFile(
                    f"{path}:{number}: {key!r} cannot be told from {entry!r}, which names {other!r}: "
                    f"both are read as {form!r}"
                )
            words[form] = name
            if " " in form:
                pairs[form] = form
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Vocabulary(words, pairs, name=path.name, source_sha256=digest)


def _entries(text: str, path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, object and entry, for every entry; the object's name comes first."""
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        entries = [" ".join(entry.split()) for entry in stripped.split(",")]
        for entry in entries:
            if not entry:
                raise MalformedFile(
                    f"{path}:{number}: an entry is empty; put one comma between words, none at the end"
                )
            if not entry.isprintable():
                raise MalformedFile(f"{path}:{number}: {entry!r} holds a control character")
            yield number, entries[0], entry


def _forms(key: str, family: str) -> Iterator[str]:
    """The dictionary forms in which the words of an entry may come out of a caption."""
    *first, last = key.split(" ")
    parts = [_FORMS[family](word, False) for word in first] + [_FORMS[family](last, True)]
    yield from dict.fromkeys(" ".join(form) for form in product(*parts))


def _singular(word: str, last: bool) -> list[str]:
    return [singularize(word), singularize(_plural(word))] if last else [singularize(word)]


def _lemmas(word: str, last: bool) -> list[str]:
    """A tagger may take the first word of "parking meter" for a verb or an adjective."""
    from keepsight.eval.chair.wordnet import lemma

    return [lemma(word, "n"), lemma(_plural(word), "n")] if last else [lemma(word, part) for part in "nva"]


def _plural(word: str) -> str:
    """The regular plural. Its dictionary form is not always the word: "ties" becomes "ty", "vases" WordNet's "vas",
    and a word that WordNet does not know keeps its s."""
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


_FORMS: dict[str, Callable[[str, bool], list[str]]] = {"pattern": _singular, "wordnet": _lemmas}
