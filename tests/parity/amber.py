"""AMBER: nouns and figures of descriptions one by one and together, and the figures of answers by type."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from keepsight.eval.amber.files import read_annotations, read_lexicon, read_responses
from keepsight.eval.amber.score import Part, score
from keepsight.eval.amber.similarity import similarity
from keepsight.eval.chair.wordnet import nouns
from parity._row import Row, tally
from parity.chair import use_nltk_data

DESCRIBED = {"chair": "CHAIR", "cover": "Cover", "hal": "Hal", "cog": "Cog"}
ANSWERED = {"accuracy": "Accuracy", "precision": "Precision", "recall": "Recall", "f1": "F1"}
# The official script's names, its spelling included
TYPES = {
    "all": "Descriminative Task",
    "existence": "Exsitence",
    "attribute": "Attribute",
    "state": "State",
    "number": "Number",
    "action": "Action",
    "relation": "Relation",
}


def differences(shared: Path) -> Iterator[Row]:
    """Every response, with equality in the place of the official script's word vectors, as in the reference files."""
    use_nltk_data(shared)
    folder, data = shared / "data" / "parity" / "amber", shared / "data" / "amber"
    official = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    annotations = read_annotations(data / "annotations.json")
    lexicon, exact = read_lexicon(data / "relation.json", data / "safe_words.txt"), similarity("exact")

    said = read_responses(folder / "generative_llava15.json")
    by_id = {one.id: one for one in said}
    file = "amber/generative_llava15.json"
    alone = official["per_response_first150"]
    yield tally(
        file, "nouns", ((one["id"], nouns(by_id[one["id"]].text or ""), one["nouns"]) for one in alone)
    )
    single = {
        number: score([by_id[number]], annotations, lexicon, exact, convention="official", resamples=0)
        for number in (one["id"] for one in alone)
    }
    yield tally(
        file,
        "figures of a response",
        (
            (
                one["id"],
                printed(single[one["id"]].generative, DESCRIBED),
                one["scores_alone"]["Generative Task"],
            )
            for one in alone
        ),
    )
    together = score(said, annotations, lexicon, exact, convention="official", resamples=0)
    theirs = official["generative"]["Generative Task"]
    ours = printed(together.generative, DESCRIBED)
    yield tally(file, "figures of the file", ((name, ours.get(name), theirs[name]) for name in theirs))

    file = "amber/discriminative_synthetic.json"
    said = read_responses(folder / "discriminative_synthetic.json")
    report = score(said, annotations, lexicon, exact, convention="official", resamples=0)
    for kind, name in TYPES.items():
        ours, theirs = printed(report.discriminative.get(kind), ANSWERED), official["discriminative"][name]
        yield tally(file, f"{kind}: figures", ((key, ours.get(key), theirs[key]) for key in theirs))


def printed(part: Part | None, names: dict[str, str]) -> dict[str, float | None]:
    """Figures under the official names, in per cent with one decimal, as the script prints them."""
    if part is None:
        return {}
    found = {official: part.values[ours] for ours, official in names.items()}
    return {name: None if value is None else round(100 * value, 1) for name, value in found.items()}
