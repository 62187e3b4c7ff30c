"""Read a vocabulary from a file: which words name which objects of your own data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

from keepsight.eval.chair.score import check_family
from keepsight.eval.chair.singular import singularize
from keepsight.eval.chair.tokens import tokenize
from keepsight.eval.chair.vocabulary import Vocabulary
from keepsight.eval.errors import EmptyFile, MalformedFile
from keepsight.eval.json_files import read_text


def read_vocabulary(path: str | Path, family: str = "pattern") -> Vocabulary:
    """Read a vocabulary from a file with one object a line: its name, then further words for it, separated by commas.

        goldfish, fish, koi
        sea lion, seal
        wine glass

    Empty lines and lines that begin with # are skipped; capitals and spaces around an entry do not matter. An entry of
    several words is found where these stand next to each other; where entries overlap, the one that begins first wins,
    then the longest ("sea lion" does not count as "lion"). Captions are searched for dictionary forms, so that an entry is
    also found by the dictionary forms of itself and of its regular plural: "wine glasses" is a wine glass, and "bus" a bus,
    although `pattern` makes "bu" of it. Where one entry equals a
    dictionary form of another one, the form counts as the former.

    COCO's own vocabulary has further rules that no file can give: "baby" before an animal is no person, a train track is
    no train, and a toilet's seat is no chair. COCO's table read from a file therefore scores differently.

    Args:
        path: a UTF-8 text file.
        family: the family whose dictionary forms are found, "pattern" or "wordnet"; score with the same one.

    Raises:
        UnknownFamily: there is no CHAIR family of this name.
        EmptyFile: the file names no object.
        MalformedFile: an entry is empty, or names two objects; the message names file and line.
        MissingData: the family needs language data that is not installed.
    """
    check_family(family)
    path = Path(path)
    text = read_text(path)
    # Maps the tokens of an entry, joined by spaces, to the object that the entry names and its line.
    claims: dict[str, tuple[str, int]] = {}
    words: dict[str, str] = {}
    for number, name, entry in _entries(text, path):
        # Captions are tokenized, so that an entry has to be, too: the entry "dog's bowl" is found as "dog 's bowl".
        key = " ".join(token.text for token in tokenize(entry.lower()))
        object_, line = claims.setdefault(key, (name, number))
        if object_ != name or (entry == name and line != number):
            same = "is an object already" if entry == name == object_ else f"names {object_!r} already"
            raise MalformedFile(f"{path}:{number}: {entry!r} {same} (line {line})")
        words[entry] = name  # ground truth names objects by entries as they are written
    if not claims:
        raise EmptyFile(f"{path}: names no object; give one a line, its name first: sea lion, seal")
    pairs = {key: key for key in claims if " " in key}
    # Maps a dictionary form to the entry that it belongs to and the object. Forms are added only after all entries are
    # known, since an entry as written goes before the form of another one.
    forms: dict[str, tuple[str, str]] = {}
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
    """Yield line, object and entry for every entry; the name of the object is the first entry of its line."""
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
    """Yield the dictionary forms that the family may make of an entry, or of its plural, in a caption."""
    # Only the last word of an entry has a plural of its own: "wine glasses".
    *first, last = key.split(" ")
    parts = [_FORMS[family](word, False) for word in first] + [_FORMS[family](last, True)]
    yield from dict.fromkeys(" ".join(form) for form in product(*parts))


def _singular(word: str, last: bool) -> list[str]:
    """Return the forms that `pattern` makes of a word, and of its plural if it is the last of its entry."""
    return [singularize(word), singularize(_plural(word))] if last else [singularize(word)]


def _lemmas(word: str, last: bool) -> list[str]:
    """Return the forms that `wordnet` makes of a word, and of its plural if it is the last of its entry."""
    # A tagger may take the first word of "parking meter" for a verb or an adjective, so that all three forms are given.
    from keepsight.eval.chair.wordnet import lemma

    return [lemma(word, "n"), lemma(_plural(word), "n")] if last else [lemma(word, part) for part in "nva"]


def _plural(word: str) -> str:
    """Return the regular plural of a word.

    The dictionary form of the plural is not always the word: `pattern` makes "ty" of "ties", WordNet makes "vas" of "vases",
    and a word that WordNet does not know keeps its s.
    """
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    # The letter before the y is taken as a slice, which is empty for the word "y". The empty text is in "aeiou", too.
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


# The forms of a word by family; the flag says whether the word is the last one of its entry.
_FORMS: dict[str, Callable[[str, bool], list[str]]] = {"pattern": _singular, "wordnet": _lemmas}
