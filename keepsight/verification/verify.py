"""Runs every check of some methods on one model, and reports what was compared and how far apart it was."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from keepsight.decoding.contrast import ruled_out
from keepsight.errors import InputError, KeepsightError, NeedsCalibration, UnsupportedModel, first_line
from keepsight.method import Method
from keepsight.parts import Contrast, Edit, Lens, Part, Prelude
from keepsight.registry import methods
from keepsight.target import Target
from keepsight.verification.findings import Finding, Report, Verdict
from keepsight.verification.recipes import (
    Alternative,
    EditsOf,
    Recipes,
    edits_of,
    spec_of,
    strengthened,
    together,
    weakened,
)
from keepsight.verification.record import Fingerprint, Step, inference, run, special_ids, written
from keepsight.verification.restated import Prompt, Restated, ruled_out_as
from keepsight.verification.witness import DRAWS, TIMES, Recorder, Seen, Witness

if TYPE_CHECKING:
    from PIL.Image import Image

TOKENS = 4
"""How many tokens each run writes by default."""
TELLING = 0.25
"""Where rounding reaches farther than this share of what a method does at a large strength, a comparison proves nothing."""
EXACT, HALF = 0.01, 0.1
"""The largest rounding, in single and in half precision, at which a verification proves anything: as a share of what the
best token's score is above the median one's."""


def verify(
    model: Any,
    processor: Any,
    picture: Image,
    prompts: tuple[str, str],
    methods: Iterable[Alternative] = (),
    *,
    raw: bool = False,
    tokens: int = TOKENS,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Prove on a model, with one picture, what methods do on it.

    Args:
        model: an image-text-to-text model of transformers.
        processor: its processor.
        picture: a picture.
        prompts: two questions about the picture, of different length; both stand in the padded batch.
        methods: alternatives, each a recipe, a spec string, or several recipes that act together; none is every registered
            method at its defaults.
        raw: take the prompts as they are, placeholder of the picture included.
        tokens: how many tokens each run writes, 2 or more.
        progress: is told the spec of each method before its checks run.

    Raises:
        InputError: a prompt cannot be made.
        UnsupportedModel: the model is not one that this library can drive.
    """
    from keepsight.source.prompts import prepare

    def inputs(*questions: str) -> Any:
        pictures = [picture] * len(questions)
        prepared = prepare(processor, pictures, list(questions), raw=raw)
        return prepared.to(model.device, dtype=model.dtype)

    one, other = prompts
    return verify_inputs(
        model,
        inputs(one),
        (inputs(one, other), [inputs(one), inputs(other)]),
        methods=methods,
        tokens=tokens,
        progress=progress,
    )


def verify_inputs(
    model: Any,
    inputs: Mapping[str, Any],
    batch: tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]] | None = None,
    *,
    methods: Iterable[Alternative] = (),
    tokens: int = TOKENS,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """``verify`` for inputs that are made already.

    Args:
        model: an image-text-to-text model of transformers.
        inputs: of one prompt with a picture, one row without padding.
        batch: several prompts padded on the left to one batch, and each of them alone; None leaves out what needs it.
        methods, tokens, progress: see ``verify``.

    Raises:
        InputError: the inputs hold several rows, or padding.
        UnsupportedModel: the model is not one that this library can drive.
    """
    if tokens < 2:
        raise InputError(
            f"tokens={tokens} must be 2 or more: the first token comes from the pass over the prompt alone"
        )
    target = Target(model, inputs)
    if target.batch != 1 or not bool(target.attention_mask.all()):
        raise InputError("verification takes one prompt without padding; others go into the batch")
    alternatives = [together(one) for one in methods] or [(cls(),) for cls in _registered()]
    for one in {one for recipes in alternatives for one in recipes}:
        if not (type(one).visible and type(one).negligible):
            raise InputError(
                f"{type(one).__name__} names no `visible` and `negligible` settings, without which it cannot be verified"
            )
    with inference(target.input_ids.device):
        try:
            checks = Checks(target, batch, tokens)
        except KeepsightError:
            raise
        except Exception as error:
            raise UnsupportedModel(
                f"{target.name}: nothing can be verified, since the plain model does not run with and without a cache"
                f" ({type(error).__name__}: {first_line(error)})"
            ) from error
        findings = [*checks.plain()]
        # Where the plain model does not agree with itself, nothing could be told from rounding
        for recipes in alternatives if checks.provable else ():
            progress(spec_of(recipes))
            findings += checks.of(recipes)
    config = target.text_config
    return Report(
        model_class=target.name,
        family=model.config.model_type,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(target.input_ids.device),
        attention=getattr(config, "_attn_implementation", None),
        versions=_versions(),
        prompt=target.prompt,
        tokens=tokens,
        rounding=checks.rounding,
        findings=findings,
    )


def _registered() -> list[type[Method]]:
    return list(methods().values())


def _versions() -> dict[str, str]:
    import transformers

    from keepsight import __version__

    return {
        "keepsight": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _draw(step: int) -> int:
    """The seed of the moves by one unit of rounding at a step: each step has its own."""
    return 1000 * (step + 1)


def centred(scores: Tensor, best: Tensor) -> Tensor:
    """Scores ``(rows, vocab)`` minus that of one token of each row: what a constant in them says does not count.

    Chameleon rules tokens out by the lowest number of its data type; they are −inf here like any other ruled-out token.
    """
    scores = scores.float()
    return (scores - scores.gather(-1, best)).masked_fill(ruled_out(scores), -torch.inf)


def largest(scores: Tensor) -> float:
    """The largest score by size, ruled-out tokens aside."""
    kept = scores[~ruled_out(scores)]
    return float(kept.abs().max()) if len(kept) else 0.0


def put_out(steps: Sequence[Step]) -> float:
    """What counts as rounding of what methods put out: float32 log-probabilities, however small the model's scores are."""
    return TIMES * max(torch.finfo(torch.float32).eps * largest(step.after) for step in steps)


class Checks:
    """The checks of one model.

    Args:
        target: the model and one prompt without padding.
        batch: see ``verify_inputs``.
        tokens: how many tokens each run writes.
    """

    def __init__(self, target: Target, batch: Any, tokens: int) -> None:
        self.target, self.model, self.count = target, target.model, tokens
        self.inputs = {key: value for key, value in target.inputs.items() if value is not None}
        self.batch = batch
        self.restated = Restated(self.model, target)
        self.banned = special_ids(target)
        self.exact_dtype = self.model.dtype in (torch.float32, torch.float64)
        self._spreads: dict[Recipes, float] = {}
        self._runs: dict[Recipes, list[Step]] = {}
        """Runs that several checks compare with, by their methods."""
        self._sharing: dict[Recipes, bool] = {}
        self._effects: dict[Recipes, float] = {}
        """How far scores at a large strength are from the plain ones."""
        self.steps = self._run(())
        self.tokens = written(self.steps)
        self.before = Fingerprint.of(self.model)
        self.places = self._places()
        _ = self.rounding

    def _run(self, recipes: Sequence[Method], **options: Any) -> list[Step]:
        given = {
            "tokens": getattr(self, "tokens", None),
            "banned": self.banned,
            "count": self.count,
            **options,
        }
        return run(self.model, given.pop("inputs", self.inputs), recipes, **given)

    def _run_of(self, recipes: Recipes) -> list[Step]:
        """A run under some methods with amateurs in passes of their own, made once."""
        if recipes not in self._runs:
            self._runs[recipes] = self._run(recipes)
        return self._runs[recipes]

    def _from_plain(self, steps: Sequence[Step], *, after: bool = True) -> float:
        """How far the scores of a run are from the plain model's, as its methods left them or as they were given them."""
        return max(
            self._far(a.after if after else a.before, b.before, b.before)
            for a, b in zip(steps, self.steps, strict=True)
        )

    # ---------------------------------------------------------------------------------------------- the plain model

    def _plain_restated(self, step: int, draw: int | None = None) -> Tensor:
        """The plain model's scores at a step by a pass without a cache."""
        given = self.steps[step].before
        logits, _ = self.restated.logits(self.target.model_inputs, self.tokens[:, :step], draw=draw)
        return ruled_out_as(given, logits)

    @cached_property
    def _uncached(self) -> list[Tensor]:
        return [self._plain_restated(step) for step in range(self.count)]

    @cached_property
    def rounding(self) -> float:
        """The largest difference between the plain model's scores with a cache and without one, and at least one unit of
        rounding of its largest score, since in half precision both may round to the same."""
        pairs = zip(self.steps, self._uncached, strict=True)
        found = [self._far(step.before, other, step.before) for step, other in pairs]
        size = max(largest(step.before) for step in self.steps)
        return max([*found, *self._rounding_of_rows(), torch.finfo(self.model.dtype).eps * size])

    def _rounding_of_rows(self) -> Iterator[float]:
        """The same for the prompts of the batch, each alone."""
        for row in () if self.batch is None else self.batch[1]:
            steps = run(self.model, row, (), count=self.count, banned=self.banned)
            restated, tokens = Restated(self.model, Target(self.model, row)), written(steps)
            for i, step in enumerate(steps):
                logits, _ = restated.logits(restated.target.model_inputs, tokens[:, :i])
                yield self._far(step.before, ruled_out_as(step.before, logits), step.before)

    @cached_property
    def _plain_spread(self) -> float:
        """How far the plain model's scores move when the embedded text is moved by one unit of rounding."""
        return max(
            self._far(self._plain_restated(step, _draw(step)), self._uncached[step], self.steps[step].before)
            for step in range(self.count)
        )

    @staticmethod
    def _far(a: Tensor, b: Tensor, expert: Tensor, ties: Tensor | None = None) -> float:
        """The largest difference of scores, measured from the best of the expert's tokens that both keep; infinite where one
        alone rules a token out, or no token is kept by both."""
        b = b.to(a.device)
        kept = expert.float().masked_fill(ruled_out(a) | ruled_out(b), -torch.inf)
        if bool((kept == -torch.inf).all(-1).any()):
            return math.inf
        best = kept.argmax(-1, keepdim=True)
        a, b = centred(a, best), centred(b, best)
        differ = torch.isfinite(a) != torch.isfinite(b)
        if ties is not None:
            differ = differ & ~ties.to(differ.device)
        if bool(differ.any()) or bool(a.isnan().any()):
            return math.inf
        both = torch.isfinite(a) & torch.isfinite(b)
        return float((a - b)[both].abs().max()) if bool(both.any()) else 0.0

    def _places(self) -> dict[str, float]:
        """By place in the decoder's layers, what cached and uncached passes of the plain model differ by."""
        cached, uncached = Recorder(self.restated), Recorder(self.restated)
        with cached.recording():
            self._run(())
        with uncached.recording():
            for step in range(self.count):
                self._plain_restated(step)
        if len(cached.passes) != len(uncached.passes):
            return {}
        return cached.differences(uncached)

    @cached_property
    def _repeat(self) -> float:
        """How far a second run of the plain model is from the first: 0 unless a GPU adds in another order each time."""
        return self._from_plain(self._run(()), after=False)

    def plain(self) -> Iterator[Finding]:
        """The plain model against itself, which says what rounding is here."""
        yield self._finding("plain", "a second run", self._repeat, TIMES * self.rounding)
        reason = "the plain model's own scores with and without a cache differ so much that nothing can be proved on it"
        yield Finding(
            method="plain",
            compared="with a cache and without",
            verdict=Verdict.ROUNDING if self.provable else Verdict.REFUSED,
            difference=self.rounding,
            reason=None if self.provable else reason,
        )

    @cached_property
    def provable(self) -> bool:
        """Whether rounding is small beside what scores of different tokens differ by."""
        return self.rounding <= self._bound

    @cached_property
    def _bound(self) -> float:
        """The largest difference of the plain model from itself beside which anything can be proved."""
        first = self.steps[0].before
        there = first[~ruled_out(first)]
        return (EXACT if self.exact_dtype else HALF) * float(there.max() - there.median())

    # ------------------------------------------------------------------------------------------------------ a method

    def of(self, recipes: Recipes) -> list[Finding]:
        """Every check of some methods that act together."""
        name = spec_of(recipes)
        self._runs.clear()  # scores of a large vocabulary take room
        found: list[Finding] = []
        try:
            # Whatever stands in the way shows at the first token already, at the strength that the user asks for
            try:
                self._run(recipes, count=1)
            except NeedsCalibration as error:
                found.append(self._refused(name, "as given", error))
                # What the method needs can be given by hand, and then all that it does can be checked
                recipes = strengthened(recipes)
                self._run(recipes, count=1)
            parts = self._parts(recipes)
        except KeepsightError as error:
            return [*found, self._refused(name, "put in place", error), self._left(name)]
        except Exception as error:
            return [*found, self._crashed(name, "put in place", error), self._left(name)]
        acting = [part for part in parts if not isinstance(part, Prelude)]
        if not any(isinstance(part, (Contrast, Lens)) or part.layers for part in acting):
            reason = "it acts in no layer of this model"
            return [
                *found,
                Finding(method=name, compared="put in place", verdict=Verdict.REFUSED, reason=reason),
            ]
        strong = strengthened(recipes)
        checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
            ("off", lambda: self._off(name, recipes)),
            ("negligible strength", lambda: self._negligible(name, recipes)),
            ("large strength, from scratch", lambda: self._strong(name, strong)),
            ("as given, from scratch", lambda: self._given(name, recipes, strong)),
            ("edited layers", lambda: self._layers(name, strong)),
            ("shared passes", lambda: self._fused(name, strong)),
            ("padded batch, rows alone", lambda: self._rows(name, strong)),
            ("beams, from scratch", lambda: self._beams(name, strong)),
        ]
        for what, check in checks:
            try:
                found += check()
            except KeepsightError as error:
                found.append(self._refused(name, what, error))
            except Exception as error:
                found.append(self._crashed(name, what, error))
        return [*found, self._left(name)]

    def _parts(
        self, recipes: Recipes, restated: Restated | None = None, draw: int | None = None
    ) -> list[Part]:
        """Parts of recipes for the restatement, prepared by its own passes; ``draw`` as for ``Restated.logits``.

        Raises:
            KeepsightError: the method refuses the model.
        """
        restated = restated or self.restated
        parts: list[Part] = []
        for recipe in recipes:
            if (reason := recipe.refusal(restated.target)) is not None:
                raise UnsupportedModel(reason)
            parts += recipe.parts(restated.target)
        restated.prepared(parts, draw)
        return parts

    def _off(self, name: str, recipes: Recipes) -> Iterator[Finding]:
        steps = self._run([recipe.off() for recipe in recipes])
        same = all(
            torch.equal(a.after, b.after) and torch.equal(a.before, b.before)
            for a, b in zip(steps, self.steps, strict=True)
        )
        far = self._from_plain(steps)
        # Not one bit may differ, unless the plain model does not repeat its own
        allowed = TIMES * self.rounding if self._repeat > 0 else None
        yield self._finding(name, "off", 0.0 if same else max(far, 1e-30), allowed)

    def _negligible(self, name: str, recipes: Recipes) -> Iterator[Finding]:
        steps = self._run(weakened(recipes))
        far = self._from_plain(steps)
        yield self._finding(name, "negligible strength", far, max(TIMES * self.rounding, put_out(steps)))

    def _strong(self, name: str, strong: Recipes) -> Iterator[Finding]:
        steps = self._run_of(strong)
        moved = self._from_plain(steps)
        self._effects[strong] = moved
        if moved > TIMES * self.rounding:
            yield Finding(
                method=name, compared="large strength differs", verdict=Verdict.EXACT, difference=moved
            )
        else:
            yield self._unmoved(name, strong, moved)
        yield from self._from_scratch(name, "large strength, from scratch", strong, steps)
        kinds = [type(part) for one in strong for part in one.parts(self.target)]
        if Contrast in kinds and any(issubclass(kind, Edit) for kind in kinds):
            # Amateurs' passes must leave the edits of the main passes as they were
            alone = self._run([EditsOf(strong)])
            far = max(self._far(a.before, b.before, b.before) for a, b in zip(steps, alone, strict=True))
            repeats = None if self._repeat == 0 else TIMES * self.rounding
            yield self._finding(name, "edits beside amateurs", far, repeats)

    def _unmoved(self, name: str, strong: Recipes, moved: float) -> Finding:
        """What it means that a large strength changes nothing: a mistake, unless passes from scratch agree."""
        parts = self._parts(strong)
        wanted = [
            self.restated.scores(parts, step.before, self.tokens[:, :i], expert=True)
            for i, step in enumerate(self.steps)
        ]
        far = max(self._far(a, b.before, b.before) for a, b in zip(wanted, self.steps, strict=True))
        agreed = far <= TIMES * self.rounding
        return Finding(
            method=name,
            compared="large strength differs",
            verdict=Verdict.REFUSED if agreed else Verdict.WRONG,
            difference=moved,
            reason="it changes nothing on this prompt, and passes from scratch agree: try another picture"
            if agreed
            else f"it changes nothing, and passes from scratch differ by {far:.1e}",
        )

    def _given(self, name: str, recipes: Recipes, strong: Recipes) -> Iterator[Finding]:
        if recipes != strong:
            yield from self._from_scratch(name, "as given, from scratch", recipes, self._run_of(recipes))

    def _from_scratch(
        self,
        name: str,
        compared: str,
        recipes: Recipes,
        steps: Sequence[Step],
        *,
        rounding: float = 0.0,
        normalised: bool = False,
    ) -> Iterator[Finding]:
        """Scores of a run with scores recomputed from scratch, token by token and row by row.

        ``rounding`` is the plain model's own difference in such a run, where that may be larger than in a plain one, and
        ``normalised`` says whether methods are handed log-probabilities in it.
        """
        parts = self._parts(recipes)
        edited = any(isinstance(part, Edit) for part in parts)
        mixed = any(isinstance(part, (Contrast, Lens)) for part in parts)
        # Edits decide, and in half precision a decision near a tie may fall otherwise in a pass of another shape: what edits
        # do is compared layer by layer there, and the expert of a contrast is taken as it came
        expert = self.exact_dtype or not edited
        if not mixed and not expert:
            return
        worst, spread = 0.0, self._spreads.get(recipes, 0.0)
        for number, step in enumerate(steps):
            for row in range(len(step.ids)):
                given = step.before[row : row + 1]
                generated = step.ids[row : row + 1, self.target.prompt :]

                def make(
                    draw: int | None, shift: float = 0.0, given: Tensor = given, generated: Tensor = generated
                ) -> Tensor:
                    return self.restated.scores(
                        parts, given, generated, expert=expert, draw=draw, normalised=normalised, shift=shift
                    )

                wanted = make(None)
                moved = make(_draw(number))
                ties = torch.isfinite(moved) != torch.isfinite(wanted)
                far = self._far(moved, wanted, given, ties)
                spread = max(spread, far) if math.isfinite(far) else spread
                far = self._far(step.after[row : row + 1], wanted, given, ties)
                if math.isinf(far):
                    # Of many tokens whose score is about where a method rules tokens out, one draw moves only some across
                    for shift in (TIMES * self.rounding, -TIMES * self.rounding):
                        ties = ties | (torch.isfinite(make(None, shift)) != torch.isfinite(wanted))
                    far = self._far(step.after[row : row + 1], wanted, given, ties)
                worst = max(worst, far)
        self._spreads[recipes] = spread
        allowed = max(self._allowed(spread, rounding), put_out(steps))
        yield self._telling(recipes, self._finding(name, compared, worst, allowed))

    def _telling(self, recipes: Recipes, finding: Finding) -> Finding:
        """A finding, or that it proves nothing: where rounding reaches as far as the method itself, anything would fit."""
        effect = self._effects.get(recipes, math.inf)
        if finding.verdict is not Verdict.ROUNDING or finding.allowed is None:
            return finding
        if finding.allowed <= TELLING * effect:
            return finding
        reason = (
            f"in this data type rounding reaches {finding.allowed:.1e}, and the method itself {effect:.1e}"
        )
        return replace(finding, verdict=Verdict.REFUSED, reason=reason)

    def _allowed(self, spread: float, rounding: float = 0.0) -> float:
        """What counts as rounding where scores move by ``spread`` when all layers are moved by one unit of rounding.

        That is four times the plain model's own difference, times how much farther these scores move than the plain ones.
        """
        beside = max(self._plain_spread, self.rounding, rounding)
        gain = max(1.0, spread / beside) if beside > 0 else 1.0
        return TIMES * max(max(self.rounding, rounding) * gain, spread)

    def _layers(
        self,
        name: str,
        strong: Recipes,
        restated: Restated | None = None,
        inputs: Mapping[str, Any] | None = None,
        tokens: Tensor | None = None,
        where: str = "",
    ) -> Iterator[Finding]:
        """Every edited layer of a run with full matrices."""
        restated = restated or self.restated
        parts = self._parts(strong, restated)
        if not edits_of(parts):
            return
        inputs = self.inputs if inputs is None else inputs
        tokens = self.tokens if tokens is None else tokens

        def watched(parts: Sequence[Part], others: Sequence[Sequence[Edit]] = ()) -> Witness:
            prompt = Prompt.of(self.model, inputs)
            witness = Witness(restated, prompt, edits_of(parts), self.places, others)
            self._run([EditsOf(strong)], inputs=inputs, watch=witness, tokens=tokens)
            return witness

        witness = watched(parts)
        if witness.wrong and any(isinstance(part, Prelude) for part in parts):
            others = [edits_of(self._parts(strong, restated, _draw(draw))) for draw in range(DRAWS)]
            witness = watched(self._parts(strong, restated), others)
        for place, seen in witness.seen.items():
            yield self._seen(name, f"{where}{place} in {len(seen.layers)} layers", seen)
        if missing := witness.missing():
            yield Finding(
                method=name,
                compared=f"{where}layers reached",
                verdict=Verdict.WRONG,
                reason=f"not reached: {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}",
            )
        if witness.untouched.layers:
            yield self._finding(
                name,
                f"{where}other layers",
                witness.untouched.difference,
                TIMES * self.places.get("attention", 0.0) if self._repeat > 0 else None,
            )

    def _seen(self, name: str, compared: str, seen: Seen) -> Finding:
        wrong = f"at most {seen.allowed:.1e} is rounding, {seen.worst}"
        return self._finding(name, compared, seen.difference, seen.allowed, wrong)

    def _fused(self, name: str, strong: Recipes) -> Iterator[Finding]:
        if not self._contrasts(strong):
            return
        what = "shared passes"
        try:
            together = self._run(strong, fused=True)
        except KeepsightError as error:
            yield self._refused(name, what, error)
            return
        yield from self._from_scratch(name, "shared passes, from scratch", strong, together)
        apart = self._run_of(strong)
        worst = max(self._far(a.before, b.before, b.before) for a, b in zip(together, apart, strict=True))
        yield self._finding(name, "shared passes, main scores", worst, 2 * self._allowed_under(strong))

    # ----------------------------------------------------------------------------------------------- batches and beams

    @cached_property
    def _plain_rows(self) -> tuple[Tensor, float]:
        """The tokens that the plain model writes for each row alone, and how far the batch is from that."""
        both, alone = self.batch
        rows = [run(self.model, row, (), count=self.count, banned=self.banned) for row in alone]
        tokens = torch.cat([written(steps) for steps in rows])
        together = self._run((), inputs=both, tokens=tokens)
        return tokens, self._rows_apart(together, rows)

    def _rows_apart(
        self, together: Sequence[Step], rows: Sequence[Sequence[Step]], *, after: bool = False
    ) -> float:
        worst = 0.0
        for i, steps in enumerate(rows):
            for batch, alone in zip(together, steps, strict=True):
                a, b = (batch.after, alone.after) if after else (batch.before, alone.before)
                worst = max(worst, self._far(a[i : i + 1], b, alone.before))
        return worst

    def _rows(self, name: str, strong: Recipes) -> Iterator[Finding]:
        if self.batch is None:
            return
        both, alone = self.batch
        what = "padded batch, rows alone"
        tokens, plain = self._plain_rows
        if plain > self._bound:
            reason = f"rows of the plain model's own batch differ by {plain:.1e} from the rows alone"
            yield Finding(method=name, compared=what, verdict=Verdict.REFUSED, reason=reason)
            return
        edited = any(isinstance(part, Edit) for one in strong for part in one.parts(self.target))
        if edited:
            restated = Restated(self.model, Target(self.model, both))
            yield from self._layers(name, strong, restated, both, tokens, "padded batch, ")
        if edited and not self.exact_dtype:
            return
        together = self._run(strong, inputs=both, tokens=tokens)
        rows = [self._run(strong, inputs=row, tokens=tokens[i : i + 1]) for i, row in enumerate(alone)]
        worst = self._rows_apart(together, rows, after=True)
        # Both runs may be as far from passes from scratch as rounding reaches, one to each side
        spreads = [
            self._spread(strong, restated, steps) for restated, steps in zip(self._alone, rows, strict=True)
        ]
        allowed = self._allowed(max(spreads))
        allowed = max(2 * allowed, TIMES * plain, put_out(together))
        yield self._telling(strong, self._finding(name, what, worst, allowed))
        if self._shared(strong):
            together = self._run(strong, inputs=both, tokens=tokens, fused=True)
            worst = self._rows_apart(together, rows, after=True)
            yield self._telling(strong, self._finding(name, "padded batch, shared passes", worst, allowed))

    @cached_property
    def _alone(self) -> list[Restated]:
        """The prompts of the batch, each alone."""
        return [Restated(self.model, Target(self.model, row)) for row in self.batch[1]]

    def _spread(self, recipes: Recipes, restated: Restated, steps: Sequence[Step]) -> float:
        """How far the scores of a run under some methods move when all layers are moved by one unit of rounding.

        The run has to be one under the same methods: scores are measured from the best token of the expert that they edit,
        and where a method rules out the plain model's best token, nothing could be measured from that one.
        """
        parts, found = self._parts(recipes, restated), 0.0
        for number, step in enumerate(steps):
            generated = step.ids[:, restated.target.prompt :]
            wanted = restated.scores(parts, step.before, generated, expert=True)
            moved = restated.scores(parts, step.before, generated, expert=True, draw=_draw(number))
            ties = torch.isfinite(moved) != torch.isfinite(wanted)
            far = self._far(moved, wanted, step.before, ties)
            found = max(found, far) if math.isfinite(far) else found
        return found

    def _allowed_under(self, recipes: Recipes) -> float:
        """How far rounding reaches in scores under some methods.

        It was measured where their scores were compared with passes from scratch. In half precision those of edits are not,
        and are measured here.
        """
        if recipes not in self._spreads:
            self._spreads[recipes] = self._spread(recipes, self.restated, self._run_of(recipes))
        return self._allowed(self._spreads[recipes])

    def _run_beams(self, recipes: Recipes, *, fused: bool = False) -> list[Step]:
        return self._run(recipes, tokens=None, num_beams=2, num_return_sequences=2, count=3, fused=fused)

    def _shared(self, recipes: Recipes) -> bool:
        """Whether amateurs of some methods can share the passes of the main generation on this model."""
        if recipes not in self._sharing:
            self._sharing[recipes] = self._shares(recipes)
        return self._sharing[recipes]

    def _shares(self, recipes: Recipes) -> bool:
        if not self._contrasts(recipes):
            return False
        try:
            self._run(recipes, fused=True, count=1)
        except KeepsightError:
            return False
        return True

    def _contrasts(self, recipes: Recipes) -> bool:
        """Whether some methods have an amateur."""
        return any(isinstance(part, Contrast) for one in recipes for part in one.parts(self.target))

    @cached_property
    def _plain_beams(self) -> float | str:
        """The largest difference between the plain model's scores with beams and those of passes without a cache, or why
        the plain model does not run with beams."""
        try:
            steps = self._run_beams(())
        except Exception as error:
            return f"the plain model does not run with beams ({type(error).__name__}: {first_line(error)})"
        worst = 0.0
        for step in steps:
            for row in range(len(step.ids)):
                given, generated = step.before[row : row + 1], step.ids[row : row + 1, self.target.prompt :]
                logits, _ = self.restated.logits(self.target.model_inputs, generated)
                worst = max(worst, self._far(given, ruled_out_as(given, logits), given))
        if worst > self._bound:
            return (
                f"the plain model's own scores with beams differ by {worst:.1e} from passes without a cache"
            )
        return worst

    def _beams(self, name: str, strong: Recipes) -> Iterator[Finding]:
        what, plain = "beams, from scratch", self._plain_beams
        if isinstance(plain, str):
            yield Finding(method=name, compared=what, verdict=Verdict.REFUSED, reason=plain)
            return
        yield from self._from_scratch(
            name, what, strong, self._run_beams(strong), rounding=plain, normalised=True
        )
        if self._shared(strong):
            steps = self._run_beams(strong, fused=True)
            yield from self._from_scratch(
                name, "beams, shared passes", strong, steps, rounding=plain, normalised=True
            )

    # ------------------------------------------------------------------------------------------------------- findings

    def _left(self, name: str) -> Finding:
        """Whether the model is as it was, and still writes what it wrote."""
        changed = self.before.changed(Fingerprint.of(self.model))
        try:
            again = self._run(())
        except Exception as error:  # what was left behind may raise
            return self._crashed(name, "the model afterwards", error)
        same = all(torch.equal(a.before, b.before) for a, b in zip(again, self.steps, strict=True))
        far = self._from_plain(again, after=False)
        if changed is None and not same and far > TIMES * self.rounding:
            changed = f"the plain model's scores differ by {far:.1e} from those before"
        verdict = Verdict.WRONG if changed else Verdict.EXACT if same else Verdict.ROUNDING
        return Finding(
            method=name,
            compared="the model afterwards",
            verdict=verdict,
            difference=far,
            reason=changed,
        )

    @staticmethod
    def _finding(
        name: str, compared: str, difference: float, allowed: float | None, wrong: str | None = None
    ) -> Finding:
        if difference == 0:
            verdict = Verdict.EXACT
        elif allowed is not None and difference <= allowed:
            verdict = Verdict.ROUNDING
        else:
            verdict = Verdict.WRONG
        reason = None
        if verdict is Verdict.WRONG:
            reason = wrong or (
                "no difference is allowed" if allowed is None else f"at most {allowed:.1e} is rounding"
            )
        return Finding(
            method=name,
            compared=compared,
            verdict=verdict,
            difference=difference,
            allowed=allowed,
            reason=reason,
        )

    @staticmethod
    def _refused(name: str, compared: str, error: Exception) -> Finding:
        return Finding(method=name, compared=compared, verdict=Verdict.REFUSED, reason=first_line(error))

    @staticmethod
    def _crashed(name: str, compared: str, error: Exception) -> Finding:
        reason = f"unexpected {type(error).__name__}: {first_line(error)}"
        return Finding(method=name, compared=compared, verdict=Verdict.WRONG, reason=reason)
