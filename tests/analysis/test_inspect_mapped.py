"""What inspection says of decoders on which it once said that methods run, while they changed nothing or something else."""

from __future__ import annotations

import mapped
import pytest

from keepsight import methods
from keepsight.analysis.inspect import try_methods
from keepsight.verification import Verdict, verify_inputs

NAMES = ("fuyu", "gemma4:kv_shared", "minimax_m3_vl:sparse", "inkling_mm_model", "qwen3_5")


@pytest.mark.parametrize("name", NAMES)
def test_a_method_that_is_said_to_run_is_right_and_another_is_refused(name: str) -> None:
    built = mapped.build(name)
    trials = {trial.method: trial for trial in try_methods(built.model, built.inputs)}
    assert set(trials) == set(methods())
    report = verify_inputs(
        built.model, built.inputs, methods=[(cls(),) for cls in methods().values()], tokens=2
    )
    assert not report.wrong, report.wrong
    for method, trial in trials.items():
        refused = [
            one
            for one in report.findings
            if one.method == method
            and one.verdict is Verdict.REFUSED
            and one.compared in ("put in place", "as given")
        ]
        assert trial.runs != bool(refused), (method, trial, refused)
