from __future__ import annotations

import pytest

from keepsight.eval.chair.singular import singularize

# Words and what clips/pattern's singularize makes of them (run at d25511f), flaws included.
OFFICIAL = {
    "dogs": "dog", "men": "man", "women": "woman", "people": "person", "children": "child", "geese": "goose",
    "mice": "mouse", "oxen": "ox", "knives": "knife", "leaves": "leaf", "wolves": "wolf", "shelves": "shelve",
    "doves": "dove", "gloves": "glove", "boxes": "box", "benches": "bench", "dishes": "dish", "buses": "bus",
    "potatoes": "potato", "shoes": "shoe", "movies": "movie", "berries": "berry", "quizzes": "quiz", "bases": "basis",
    "vases": "vase", "houses": "house", "roses": "rose", "scissors": "scissors", "luggage": "luggage",
    "skis": "ski", "bus": "bu", "glass": "glas", "tennis": "tenni", "ties": "ty", "this": "thi", "his": "hi",
    "has": "ha", "is": "is", "as": "as", "'s": "'", "cookies": "cookies", "collies": "collies", "four": "fmy",
    "pasta": "pastum", "data": "datum", "safari": "safarus", "taxes": "taxe", "dogs'": "dog's", "'": "'s",
    "mothers-in-law": "mother-in-law", "hot-dogs": "hot-dog", "news": "news", "series": "series",
    "algae": "alga", "plateaux": "plateau", "oases": "oase", "synopses": "synopsis", "hives": "hive", "lives": "life",
    "nerves": "nerve", "scarves": "scarf", "calves": "calf", "species": "species", "": "", "...": "...",
    # "oxen" at the beginning of a word loses its "en" wherever no plural ending decides first.
    "oxen-drawn": "ox-drawn", "oxen.": "ox.", "oxen-": "ox-", "oxenford": "oxford", "oxens": "oxs", "foxen": "fox",
    "foxen-": "foxen-", "oxen's": "ox's", "oxenae": "oxena",
    # Two entries of a list begin with a caret, which is compared as it stands.
    "^ties": "^ties", "a^pies": "a^pies", "pies": "py",
    "analyses": "analysis", "psychoanalyses": "psychoanalyasis", "catalyses": "catalysis",
    # The long s and the dotless i count as s and i where the official rule ignores case, and only there.
    "dog\u017f": "dog", "boxe\u017f": "box", "mov\u0131es": "movie", "gluco\u017fe": "glucose", "d\u0131es": "dy",
    "knive\u017f": "knife", "nerve\u017f": "nerf",
}  # fmt: skip


@pytest.mark.parametrize(("plural", "singular"), OFFICIAL.items())
def test_singular_is_the_official_one(plural: str, singular: str) -> None:
    assert singularize(plural) == singular
