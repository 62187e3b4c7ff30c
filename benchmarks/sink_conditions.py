"""The conditions of ``sinks.py``: decoders, and what they are trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of training: some steps on one kind of rows, with AdamW (0.9, 0.98).

    Args:
        rows: ``backcopy``, ``text`` (the demo's text stage), or ``pictures`` (its joint stage, with the tower frozen).
        steps, batch: the number of steps, and of rows in each.
        rate, decay, clip: the peak learning rate, the weight decay, and the norm to clip gradients to; None does not clip.
        length: the number of tokens in a row of backcopy.
        begin: whether rows of backcopy begin with ``<s>``.
        backcopy: whether backcopy is mixed in: as many rows again beside text, a line under each picture.
        picture_first: whether the picture begins the row, with no ``<s>`` before it.
        cosine: whether the rate falls to 5 % along a cosine, as in the demo's training; else it stays constant after the
            warm-up of 5 %.
    """

    rows: str
    steps: int
    rate: float
    decay: float = 0.0
    clip: float | None = None
    batch: int = 32
    length: int = 64
    begin: bool = True
    backcopy: bool = False
    picture_first: bool = False
    cosine: bool = False


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A decoder and its training.

    Args:
        name: the name of the condition on the command line and in the results.
        asks: the question that the condition answers, or how it differs from another.
        stages: the stages of training, in order.
        start: ``nothing``, ``demo`` (the packaged weights) or ``planted`` (the same, with sinks planted).
        layers, heads: the shape of a decoder that starts from nothing.
        seed: the seed of weights and rows.
    """

    name: str
    asks: str
    stages: tuple[Stage, ...]
    start: str = "nothing"
    layers: int = 6
    heads: int = 8
    seed: int = 0


# Backcopy grows sinks (Guo et al. 2024). Two of the other stages are shortened ones of the demo's training. The literature
# names optimisation as a cause of sinks, so FREE has a high rate, no weight decay and no clipping.
GROW = Stage(rows="backcopy", steps=600, rate=6e-3)
TEXT = Stage(rows="text", steps=150, rate=2e-3, decay=0.02, clip=1.0, cosine=True)
MORE = Stage(rows="pictures", steps=200, rate=1e-3, decay=0.02, clip=1.0, batch=12, cosine=True)
FREE = Stage(rows="pictures", steps=200, rate=3e-3, batch=12)

CONDITIONS = (
    Condition(
        name="copy-3x1", asks="the known positive: 3 layers of one head", layers=3, heads=1, stages=(GROW,)
    ),
    Condition(name="copy-3x1-seed1", asks="another seed", layers=3, heads=1, seed=1, stages=(GROW,)),
    Condition(name="copy-3x1-seed2", asks="a third", layers=3, heads=1, seed=2, stages=(GROW,)),
    Condition(name="copy-3x8", asks="8 heads instead of one", layers=3, stages=(GROW,)),
    Condition(name="copy-6x1", asks="6 layers instead of 3", heads=1, stages=(replace(GROW, rate=4e-3),)),
    Condition(name="copy-6x8", asks="the demo's decoder", stages=(replace(GROW, rate=4e-3),)),
    Condition(
        name="copy-3x1-no-bos",
        asks="no <s>: the first symbol differs",
        layers=3,
        heads=1,
        seed=1,
        stages=(replace(GROW, begin=False),),
    ),
    Condition(name="text+copy", asks="with backcopy mixed in", stages=(replace(TEXT, backcopy=True),)),
    Condition(
        name="copy-3x1,text,pictures",
        asks="do sinks grown on backcopy survive text and pictures?",
        layers=3,
        heads=1,
        seed=1,
        stages=(GROW, TEXT, replace(MORE, rate=1.5e-3)),
    ),
    Condition(
        name="copy-6x8,text,pictures",
        asks="the same in the demo's decoder",
        stages=(replace(GROW, rate=4e-3), TEXT, replace(MORE, rate=1.5e-3)),
    ),
    Condition(
        name="copy-6x8,text,pictures-long",
        asks="500 steps on pictures instead of 200",
        stages=(replace(GROW, rate=4e-3), TEXT, replace(MORE, rate=1.5e-3, steps=500)),
    ),
    Condition(
        name="copy-3x1,pictures-first+copy",
        asks="no <s>, the picture first, backcopy under it: must image tokens serve?",
        layers=3,
        heads=1,
        seed=1,
        stages=(GROW, replace(FREE, backcopy=True, picture_first=True)),
    ),
    Condition(name="demo", asks="the packaged model as it is", start="demo", stages=()),
    Condition(name="demo+pictures", asks="200 steps more", start="demo", stages=(MORE,)),
    Condition(
        name="demo+free",
        asks="200 steps more, high rate, no decay, no clipping",
        start="demo",
        stages=(FREE,),
    ),
    Condition(
        name="demo+decay", asks="weight decay 0.5", start="demo", stages=(replace(FREE, decay=0.5, clip=1.0),)
    ),
    Condition(
        name="demo+copy-first",
        asks="the picture first, no <s>, backcopy under it",
        start="demo",
        stages=(replace(FREE, backcopy=True, picture_first=True),),
    ),
    Condition(name="planted", asks="sinks planted in the packaged weights", start="planted", stages=()),
    Condition(name="planted+pictures", asks="200 steps with them", start="planted", stages=(MORE,)),
)
