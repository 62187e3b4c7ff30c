"""Make English words singular as the CHAIR of 2018 did, mistakes included.

The original scorer used `singularize` of the Pattern library (clips/pattern, pattern/text/en/inflect.py), which no longer
installs. Scores depend on its mistakes ("bus" becomes "bu" and is never found, "ties" becomes "ty"), so that they are kept.
The word lists are facts taken from that file (Pattern: BSD-3-Clause; its endings follow Bermi Ferrer's Inflector, MIT).
"""

from __future__ import annotations

import re
from functools import lru_cache


def _listed(text: str) -> list[str]:
    """Return the words of a text."""
    return text.split()


_UNCHANGED = _listed("""bison bream breeches britches carp chassis christmas clippers cod contretemps corps
debris diabetes djinn eland elk flounder gallows georgia graffiti headquarters herpes high-jinks homework
innings jackanapes mackerel measles mews mumps news pincers pliers proceedings rabies salmon scissors series
shears species swine swiss trout tuna whiting wildebeest advice bread butter cheese electricity equipment
fruit furniture garbage gravel happiness information ketchup knowledge love luggage mathematics mayonnaise
meat mustard news progress research rice sand software understanding water
""")

# Pattern tests whether an uninflected word ends with the given word, and not the other way round, so that it also leaves
# every ending of the words above alone: "as", "is", "s" and the empty word.
_ENDINGS_UNCHANGED = frozenset(word[at:] for word in _UNCHANGED for at in range(len(word) + 1))

# Plurals in -ies of words in -ie. Pattern hands the plural back as it is, so "collies" is not a dog. In its list "pie"
# and "tie" begin with a caret that was meant to anchor a regular expression. The list is compared with `endswith`, so
# that the caret is an ordinary character: "pies" becomes "py", and only the token "^pies" stays as it is.
_IE = tuple(
    word + "s"
    for word in _listed("""alergie auntie beanie birdie bogie bombie collie cookie cutie doggie eyrie freebie
    goonie groupie hankie hippie hoagie hottie indie junkie laddie laramie lingerie meanie newbie nightie
    oldie ^pie pixie quickie reverie rookie softie sortie stoolie sweetie techie ^tie toughie valkyrie veggie
    weenie yuppie zombie
    """)
)

# Pattern replaces these as endings of words, so that "men:man" makes "woman" of "women", too.
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

# Each rule is an expression to search for, the number of letters to cut from the end of what was found, and letters to
# put there; the first rule that fits decides. As in Pattern, upper and lower case are the same except inside (?-i:).
# This matters on lower-cased text, too, because Python's `re` takes the long s and the dotless i for forms of s and i.
_RULES = tuple(
    (re.compile(f"(?i)(?:{pattern})"), cut, add)
    for pattern, cut, add in (
        (".ae$", 1, ""),
        (".itis$", 4, "itis"),
        (".eaux$", 4, "eau"),
        ("quizzes$", 3, ""),
        ("matrices$", 4, "ix"),
        ("(?:ap|vert|ind)ices$", 4, "ex"),
        # This is the only rule that is not bound to the end of a word: "oxen-drawn" becomes "ox-drawn", and "oxenford"
        # becomes "oxford".
        ("^oxen", 2, ""),
        ("(?:alias|status)es$", 2, ""),
        ("[octpvir|]i$", 1, "us"),
        ("(?:cris|ax|test)es$", 2, "is"),
        ("shoes$", 1, ""),
        ("(?:oes|buses)$", 2, ""),
        ("[ml|]ice$", 3, "ouse"),
        ("(?:x|ch|ss|sh)es$", 2, ""),
        ("movies$", 5, "ovie"),
        (".ombies$", 6, "ombie"),
        ("series$", 5, "eries"),
        ("(?:[^aeiouy]|qu)ies$", 3, "y"),
        ("(?-i:(?:[aeo]l|[^d]ea|ar)ves)$", 3, "f"),
        ("(?-i:erves)$", 1, ""),
        ("(?-i:[nlw]ives)$", 3, "fe"),
        ("[lr]ves$", 3, "f"),
        ("(?-i:[aeo]ves)$", 1, ""),
        ("[sth]ives$", 1, ""),
        ("[^f]ves$", 3, "fe"),
        ("^analyses$", 3, "sis"),
        # Pattern puts the "a" of "analyses" there twice: "psychoanalyses" becomes "psychoanalyasis".
        ("analyses$", 3, "asis"),
        ("(?:ba|diagno|parenthe|progno|synop|the)ses$", 3, "sis"),
        (".opses$", 5, "opsis"),
        (".yses$", 4, "ysis"),
        ("(?:h|d|r|o|n|b|cl|p)oses$", 4, "ose"),
        # What is found equals what is put there, so that this changes a word only if it is written with a long s.
        ("(?:fruct|gluc|galact|lact|ket|malt|rib|sacchar|cellul)ose$", 3, "ose"),
        (".oses$", 4, "osis"),
        ("[ti]a$", 1, "um"),
        ("news$", 3, "ews"),
        ("s$", 1, ""),
    )
)

_PREPOSITIONS = frozenset(
    _listed("""about above across after among around at athwart before behind below beneath beside besides
    between betwixt beyond but by during except for from in into near of off on onto out over since till to
    under until unto upon with
    """)
)


# Captions repeat their words, and a word that no rule changes is compared with all of them.
@lru_cache(maxsize=1 << 16)
def singularize(word: str) -> str:
    """Return the singular of a lower-case word, as Pattern gives it.

    >>> [singularize(word) for word in ("dogs", "women", "knives", "bus", "ties", "scissors")]
    ['dog', 'woman', 'knife', 'bu', 'ty', 'scissors']
    """
    # In a compound with a preposition the head is the plural: "mothers-in-law".
    head, hyphen, rest = word.partition("-")
    if hyphen and rest.partition("-")[0] in _PREPOSITIONS:
        return singularize(head) + hyphen + rest
    if word.endswith("'"):  # the possessive of a plural: "dogs'" becomes "dog's"
        return singularize(word[:-1]) + "'s"
    if word in _ENDINGS_UNCHANGED or word.endswith(_IE):
        return word
    for plural, singular in _IRREGULAR.items():
        if word.endswith(plural):
            return word.removesuffix(plural) + singular
    for pattern, cut, add in _RULES:
        if found := pattern.search(word):
            return word[: found.end() - cut] + add + word[found.end() :]
    return word
