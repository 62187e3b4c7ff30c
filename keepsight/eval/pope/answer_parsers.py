"""Read yes or no out of an answer by the rules in use, which are what POPE scores of different papers differ in most.

Every rule is a function from a text to `"yes"`, `"no"`, or `None` for an answer that cannot be read. Two rules need more
than the text: `vcd` looks at the right answer, and `beaf` at its own last decision. `decide` applies a rule, given by its
name, to all the answers of a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from keepsight.errors import InputError, InvalidParameter, did_you_mean

Answer = Literal["yes", "no"]
Decision = Answer | None

# A word: letters and digits of any script, with single apostrophes or hyphens inside ("isn't", "no-one").
_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
# Curly apostrophes, two kinds of hyphens, and the full-width letters of Chinese and Japanese keyboards become ASCII. The
# compatibility normal form of Unicode (NFKC) would do too much: it spells the numero sign "No", which would be an answer.
_PLAIN = str.maketrans(
    dict(zip("\u2018\u2019\u02bc\u2010\u2011", "'''--", strict=True))
    | {chr(0xFEE0 + code): chr(code) for code in range(0x21, 0x7F)}
)
# Phrases in which "no" denies something else than the object that was asked about. The look-ahead tests that the phrase
# ends with a whole word: "no one-way sign" is not "no one".
_IDIOM = re.compile(
    r"no\s+(?:clue|doubts?|idea|information|matter|need|one|problem|question|way|wonder|worries)(?![\w'-])"
)
_BE = frozenset({"is", "are", "was", "were"})
_SHOW = frozenset({"contains", "depicts", "features", "has", "includes", "shows"})
_PICTURE = frozenset({"image", "photo", "photograph", "picture", "scene"})
_HEDGES = frozenset({"cannot", "never", "not"})


class UnknownParser(InvalidParameter):
    """No rule for reading answers has this name."""


def strict(answer: str) -> Decision:
    """Read an answer by Keepsight's own rule: it is yes or no only if it says so outright.

    Letter case, markup and punctuation do not matter; words are whole words ("notebook" holds no "no").

    1. An answer with both words "yes" and "no", or with neither, cannot be read, however plain its meaning is:
       "There is a dog." and "There isn't a dog." are treated alike.
    2. The one of the two words that the answer holds must be the verdict. It is the verdict if it

       - comes first: "Yes, there is a dog.", "**No**", "no dog";
       - comes last, or right after "answer" or "answer is", with no "not", "never", "cannot" or "…n't"
         before it: "The answer is no.", "Answer: yes, on the left". Therefore "I am not sure. Yes" cannot be read;
       - is the "no" of an answer that begins with "there is no", "there's no", "there are no", "I see no",
         "I can see no" or "the image shows no" (or contains, has, depicts, features, includes); "in the image"
         may stand before it.

    3. A "no" before "doubt", "idea", "matter", "question", "way" and similar words ("No doubt there is a dog", "no
       one") is not the verdict, nor is a "no" anywhere else: "a dog with no collar".

    "Yeah", "nope", "y" and "true" cannot be read: a prompt that asks for yes or no gets these words, and the number
    of unreadable answers is printed beside every score.
    """
    text = answer.translate(_PLAIN).lower()
    words = _WORD.findall(text)
    said: set[Answer] = {word for word in words if word == "yes" or word == "no"}
    if len(said) != 1:  # rule 1: both words, or neither
        return None
    (verdict,) = said
    at = words.index(verdict)
    # Rule 3 goes before rule 2: "No doubt there is a dog" begins with a "no" that is not the verdict.
    if verdict == "no" and _IDIOM.match(text, _start(text, at)):
        return None
    if at == 0 or (verdict == "no" and _begins_with_none(words[:at])):
        return verdict
    before = words[:at]
    hedged = any(word in _HEDGES or word.endswith("n't") for word in before)
    # "The answer is" announces the verdict. Without it the verdict has to be the last word, since it may belong to a phrase
    # such as "a sign that says no parking".
    asked = before[-1] == "answer" or before[-2:] == ["answer", "is"]
    return verdict if (asked or at == len(words) - 1) and not hedged else None


def _start(text: str, at: int) -> int:
    """Return where word number `at` of the text begins."""
    return next(islice(_WORD.finditer(text), at, None)).start()


def _begins_with_none(before: Sequence[str]) -> bool:
    """Return whether a "no" after these words, with which an answer begins, denies that there is something."""
    match before:
        case ["in", "the" | "this", picture, *_] if picture in _PICTURE:
            before = before[3:]
    match before:
        case ["there's"] | ["i", "see"] | ["i", "can", "see"]:
            return True
        case ["there", be]:
            return be in _BE
        case ["the" | "this", picture, shows]:
            return picture in _PICTURE and shows in _SHOW
    return False


def official(answer: str) -> Answer:
    """Read an answer as the scripts of POPE and LLaVA do: no for a word "No", "no" or "not" in its first sentence, else yes.

    The first sentence ends at the first full stop. Words are what spaces separate after commas were removed, so that "NO",
    "No!", "**No**" and "" all count as yes.
    """
    # The scripts split at spaces alone, so that a line break does not separate two words.
    words = answer.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def opera(answer: str) -> Answer:
    """Read an answer as OPERA, PAI, RITUAL and HALC do: no if "No", "no", "NO", "not" or "…n't" is a word, else yes.

    The whole answer counts, after full stops and commas were removed. RITUAL's script reads every line of an answer as an
    answer of its own; here an answer of several lines stays one answer.
    """
    words = answer.replace(".", "").replace(",", "").split(" ")
    negative = any(word in {"No", "no", "NO", "not"} or word.endswith("n't") for word in words)
    return "no" if negative else "yes"


def vcd(answer: str, label: Answer) -> Answer:
    """Read an answer as VCD, Deco, DAMRO, AGLA and ClearSight do: it is right if it holds the right word.

    A substring is enough, so that "another notebook" is right wherever the label is no, and "yes or no" is right for every
    question. The result is the label or its opposite, so that this rule cannot read an answer without its label.
    """
    other: Answer = "no" if label == "yes" else "yes"
    return label if label in answer.lower() else other


def lmms_eval(answer: str) -> Decision:
    """Read an answer as lmms-eval does: it has to be "yes" or "no" and nothing else, in any letter case; not "Yes."."""
    text = answer.lower().strip()
    return _exactly(text)


def vlmevalkit(answer: str) -> Decision:
    """Read an answer as VLMEvalKit does without its judge model: it has to hold exactly one of the words "yes" and "no".

    Words are what white space separates after the punctuation marks of the VQA metric were removed or became spaces.
    Asterisks, apostrophes and colons are not among these marks, so that "**No**" cannot be read.
    """
    words = set(_without_vqa_punctuation(answer.lower()).split())
    if ("yes" in words) == ("no" in words):
        return None
    return "yes" if "yes" in words else "no"


def mme(answer: str) -> Decision:
    """Read an answer as MME does: yes, else no, within the first four characters; "Nothing" and "Know" count as no."""
    text = answer.lower()
    start = text[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


def beaf(answer: str, before: Decision = None) -> Decision:
    """Read an answer as BEAF does: yes if "yes" is a substring, else no if "no" is, else `before`.

    `before` is the decision about the answer before it. The published script repeats that decision by mistake, since a
    variable keeps its value, and it crashes if the very first answer has neither word; here `before` is None then.
    """
    text = answer.lower()
    return "yes" if "yes" in text else "no" if "no" in text else before


_VQA_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
# The VQA metric calls `re.sub(…, "", text, re.UNICODE)`: the flag stands where the number of replacements is expected,
# so that at most 32 full stops are removed.
_FULL_STOPS_REMOVED = int(re.UNICODE)


def _without_vqa_punctuation(text: str) -> str:
    """Return the text without punctuation as the VQA metric removes it.

    A mark is removed everywhere if it stands beside a space anywhere or if the text holds a number such as 1,000; otherwise
    every such mark becomes a space.
    """
    thousands = _DIGIT_COMMA.search(text) is not None
    cleaned = text
    for mark in _VQA_MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or thousands else " ")
    return _FULL_STOP.sub("", cleaned, count=_FULL_STOPS_REMOVED)


def _exactly(text: str) -> Decision:
    """Return the text itself if it is "yes" or "no", else None."""
    return "yes" if text == "yes" else "no" if text == "no" else None


@dataclass(frozen=True, kw_only=True)
class Parser:
    """A rule for reading answers.

    Attributes:
        name: the name that options and reports use.
        users: the evaluators that read answers in this way.
        gist: the rule in a few words.
        read: takes all answers of a file, in its order, and their labels; returns one decision for each answer.
    """

    name: str
    users: str
    gist: str
    read: Callable[[Sequence[str], Sequence[Answer]], list[Decision]]


def _alone(rule: Callable[[str], Decision]) -> Callable[[Sequence[str], Sequence[Answer]], list[Decision]]:
    """Return a reader of files from a rule that needs nothing but the text of one answer."""
    return lambda answers, labels: [rule(answer) for answer in answers]


def _with_label(answers: Sequence[str], labels: Sequence[Answer]) -> list[Decision]:
    """Return the decisions of `vcd`, which needs the labels."""
    return [vcd(answer, label) for answer, label in zip(answers, labels, strict=True)]


def _in_turn(answers: Sequence[str], labels: Sequence[Answer]) -> list[Decision]:
    """Return the decisions of `beaf`, which needs the decision about the answer before."""
    decisions: list[Decision] = []
    for answer in answers:
        decisions.append(beaf(answer, decisions[-1] if decisions else None))
    return decisions


PARSERS: Mapping[str, Parser] = {
    parser.name: parser
    for parser in (
        Parser(name="strict", users="Keepsight", gist="says yes or no outright", read=_alone(strict)),
        Parser(
            name="official",
            users="POPE, LLaVA, VisAttnSink",
            gist='"No", "no", "not" in the first sentence, else yes',
            read=_alone(official),
        ),
        Parser(
            name="opera",
            users="OPERA, PAI, RITUAL, HALC",
            gist='"No", "no", "NO", "not", "…n\'t", else yes',
            read=_alone(opera),
        ),
        Parser(
            name="vcd",
            users="VCD, Deco, DAMRO, AGLA, ClearSight",
            gist="right if the label is a substring",
            read=_with_label,
        ),
        Parser(name="lmms_eval", users="lmms-eval", gist="is exactly yes or no", read=_alone(lmms_eval)),
        Parser(name="vlmevalkit", users="VLMEvalKit", gist="one of the two words", read=_alone(vlmevalkit)),
        Parser(name="mme", users="MME", gist="within the first four characters", read=_alone(mme)),
        Parser(name="beaf", users="BEAF", gist="substring, else as the answer before", read=_in_turn),
    )
}
"""All rules by name; `strict` comes first."""


def check_parser(name: str) -> Parser:
    """Return the rule of this name.

    Raises:
        UnknownParser: no rule has this name; the message suggests the nearest.
    """
    if name not in PARSERS:
        raise UnknownParser(f"no parser is called {name!r}; {did_you_mean(name, PARSERS)}")
    return PARSERS[name]


def decide(answers: Sequence[str], labels: Sequence[Answer], parser: str = "strict") -> list[Decision]:
    """Read all answers of a file by a rule.

    Args:
        answers: the texts, in the order of the file, which matters to `beaf` alone.
        labels: the right answer to each question, which matters to `vcd` alone.
        parser: the name of the rule, one of `PARSERS`.

    Returns:
        "yes", "no" or None for each answer, in order.

    Raises:
        UnknownParser: no rule has this name.
        InputError: the two lists differ in length.
    """
    if len(answers) != len(labels):
        raise InputError(f"{len(answers)} answers and {len(labels)} labels were given: one label per answer")
    return check_parser(parser).read(answers, labels)
