"""English singulars the way the CHAIR of 2018 made them, mistakes included.

The original scorer used `singularize` of the Pattern library (clips/pattern, pattern/text/en/inflect.py),
which no longer installs. Scores depend on its mistakes ("bus" becomes "bu" and is never found, "ties" becomes
"ty"), so they are kept. The word lists are facts taken from that file (Pattern: BSD-3-Clause; its endings
after Bermi Ferrer's Inflector, MIT).
"""

from __future__ import annotations

import re
from functools import lru_cache


def _listed(text: str) -> list[str]:
    return text.split()


_UNCHANGED = _listed("""bison bream breeches britches carp chassis christmas clippers cod contretemps corps
debris diabetes djinn eland elk flounder gallows georgia graffiti headquarters herpes high-jinks homework
innings jackanapes mackerel measles mews mumps news pincers pliers proceedings rabies salmon scissors series
shears species swine swiss trout tuna whiting wildebeest advice bread butter cheese electricity equipment
fruit furniture garbage gravel happiness information ketchup knowledge love luggage mathematics mayonnaise
meat mustard news progress research rice sand software understanding water
""")

# Pattern leaves a word alone when one of the above ENDS with it, so every ending counts: "as", "is", "s", "".
_ENDINGS_UNCHANGED = frozenset(word[at:] for word in _UNCHANGED for at in range(len(word) + 1))

# Plurals in -ies of words in -ie. Pattern hands the plural back as it is, so "collies" is not a dog.
_IE = tuple(
    word + "s"
    for word in _listed("""alergie auntie beanie birdie bogie bombie collie cookie cutie doggie eyrie freebie
    goonie groupie hankie hippie hoagie hottie indie junkie laddie laramie lingerie meanie newbie nightie
    oldie pixie quickie reverie rookie softie sortie stoolie sweetie techie toughie valkyrie veggie weenie
    yuppie zombie
    """)
)

_IRREGULAR = dict(
    pair.split(":")
    for pair in _listed("""atlantes:atlas atlases:atlas axes:axe beeves:beef brethren:brother children:child
    corpora:corpus corpuses:corpus ephemerides:ephemeris feet:foot ganglia:ganglion geese:goose genera:genus
    genii:genie graffiti:graffito helves:helve kine:cow leaves:leaf loaves:loaf men:man mongooses:mongoose
    monies:money moves:move mythoi:mythos numena:numen occipita:occiput octopodes:octopus opera:opus
    opuses:opus our:my oxen:ox penes:penis penises:penis people:person sexes:sex soliloquies:soliloquy
    teeth:tooth testes:testis trilbys:trilby turves:turf zoa:zoon
    """)
)

# (ending, letters to cut, letters to add); the first ending that fits decides.
_RULES = tuple(
    (re.compile(f"(?:{ending})$"), cut, add)
    for ending, cut, add in (
        (".ae", 1, ""),
        (".itis", 0, ""),
        (".eaux", 1, ""),
        ("quizzes", 3, ""),
        ("matrices", 3, "x"),
        ("(?:ap|vert|ind)ices", 4, "ex"),
        ("(?:alias|status)es", 2, ""),
        ("[octpvir|]i", 1, "us"),
        ("(?:cris|ax|test)es", 2, "is"),
        ("shoes", 1, ""),
        ("oes|buses", 2, ""),
        ("[ml|]ice", 3, "ouse"),
        ("(?:x|ch|ss|sh)es", 2, ""),
        ("movies|.ombies", 1, ""),
        ("series", 0, ""),
        ("(?:[^aeiouy]|qu)ies", 3, "y"),
        ("(?:[aeo]l|[^d]ea|ar)ves", 3, "f"),
        ("erves", 1, ""),
        ("[nlw]ives", 3, "fe"),
        ("[lr]ves", 3, "f"),
        ("(?:[aeo]|[sth]i)ves", 1, ""),
        ("[^f]ves", 3, "fe"),
        ("(?:analy|ba|diagno|parenthe|progno|synop|the|.op|.y)ses", 2, "is"),
        ("(?:h|d|r|o|n|b|cl|p)oses", 1, ""),
        (".oses", 2, "is"),
        ("[ti]a", 1, "um"),
        ("news", 0, ""),
        ("s", 1, ""),
    )
)

_PREPOSITIONS = frozenset(
    _listed("""about above across after among around at athwart before behind below beneath beside besides
    between betwixt beyond but by during except for from in into near of off on onto out over since till to
    under until unto upon with
    """)
)


@lru_cache(maxsize=1 << 16)
def singularize(word: str) -> str:
    """The singular of a lower-case word, as Pattern gives it.

    >>> [singularize(word) for word in ("dogs", "women", "knives", "bus", "ties", "scissors")]
    ['dog', 'woman', 'knife', 'bu', 'ty', 'scissors']
    """
    head, hyphen, rest = word.partition("-")
    if hyphen and rest.partition("-")[0] in _PREPOSITIONS:
        return singularize(head) + hyphen + rest
    if word.endswith("'"):
        return singularize(word[:-1]) + "'s"
    if word in _ENDINGS_UNCHANGED or word.endswith(_IE):
        return word
    for plural, singular in _IRREGULAR.items():
        if word.endswith(plural):
            return word.removesuffix(plural) + singular
    for ending, cut, add in _RULES:
        if ending.search(word):
            return word[: len(word) - cut] + add
    return word
