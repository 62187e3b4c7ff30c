from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from standin import standin
from typer.testing import Result

from keepsight.analysis.probe import probe
from keepsight.calibration.file import Calibration
from keepsight.demo.world import scenes
from keepsight.source.prompts import prepare

Run = Callable[..., Result]
Refused = Callable[..., str]
PROMPT = "Describe this image."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, scene in enumerate(scenes("val", 3)):
        scene.image().save(folder / f"{number}.{'PNG' if number == 1 else 'png'}")
    (folder / "notes.txt").write_text("not a picture")
    (folder / "inner").mkdir()
    return folder


@pytest.mark.usefixtures("demo_model")
class TestOnTheDemoModel:
    def test_scenes_of_val_are_its_pictures(self, run: Run, tmp_path: Path) -> None:
        out = tmp_path / "found.json"
        ran = run("calibrate", "demo", "--limit", 3, "--out", out)
        assert (ran.exit_code, ran.stderr) == (0, "")
        found = Calibration.load(out)
        model, processor = standin()
        shown = [prepare(processor, [scene.image()], PROMPT) for scene in scenes("val", 3)]
        expected = probe(model, shown, prompt=PROMPT)
        assert found.model == "demo"
        for name in (
            "divergence",
            "chosen",
            "visual_mass",
            "evidence",
            "reasons",
            "supported",
            "images",
            "prompt",
        ):
            assert getattr(found, name) == getattr(expected, name), name

    def test_what_is_printed_is_what_is_in_the_file(self, run: Run, tmp_path: Path) -> None:
        out = tmp_path / "found.json"
        printed = run("calibrate", "demo", "--limit", 2, "--out", out).stdout
        found = Calibration.load(out)
        assert printed.startswith(
            "demo: LlavaForConditionalGeneration, 6 layers, 8 heads, width 128. 2 pictures"
        )
        assert "Only 2 pictures" in printed
        assert "VAR cannot run on this model" in printed
        assert found.reasons[0] in printed
        best = max(
            (value, layer, head)
            for layer, row in enumerate(found.divergence)
            for head, value in enumerate(row)
        )
        first_row = printed[printed.index("VHR's rule in") :].splitlines()[1].split()
        assert first_row[:3] == [str(best[1]), str(best[2]), f"{best[0]:.2f}"]
        assert f"{found.visual_mass[3]:4.0%}" in printed
        assert printed.rstrip().endswith(f"Written to {out}")

    def test_a_folder_of_pictures(self, run: Run, tmp_path: Path, folder: Path) -> None:
        out = tmp_path / "found.json"
        assert run("calibrate", "demo", "--images", folder, "--out", out, "--prompt", "a cat").exit_code == 0
        found = Calibration.load(out)
        assert (found.images, found.prompt) == (3, "a cat")
        assert run("calibrate", "demo", "--images", folder, "--limit", 1, "--out", out).exit_code == 0
        assert Calibration.load(out).images == 1

    def test_the_file_has_a_name_of_its_own(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert run("calibrate", "demo", "--limit", 1).exit_code == 0
        assert Calibration.load("demo-calibration.json").layers == 6

    def test_caption_takes_the_file_and_says_what_it_says(
        self, run: Run, refused: Refused, tmp_path: Path, folder: Path
    ) -> None:
        out = tmp_path / "found.json"
        run("calibrate", "demo", "--limit", 1, "--out", out)
        message = refused("caption", "demo", folder / "0.png", "--method", "var", "--calibration", out)
        assert "demo has no sinks that its calibration could confirm" in message
        assert "no massive activation" in message

    def test_caption_acts_on_it(self, run: Run, tmp_path: Path, folder: Path) -> None:
        """A file that claims sinks: what VAR then does is what it does with the same constants by hand."""
        out = tmp_path / "found.json"
        run("calibrate", "demo", "--limit", 1, "--out", out)
        written = json.loads(out.read_text()) | {"supported": True, "dims": [5], "tau": 1.0}
        out.write_text(json.dumps(written))
        base = ("caption", "demo", folder / "0.png", "--max-new-tokens", 12)
        strong = "fraction=1.0,ratio=0.0,mass=0.0,layers=0/1/2/3/4"
        by_file = run(*base, "--method", f"m3id+var:{strong}", "--calibration", out)
        by_hand = run(*base, "--method", f"m3id+var:{strong},dims=5,tau=1.0")
        assert by_file.exit_code == by_hand.exit_code == 0
        assert by_file.stdout == by_hand.stdout
        assert by_file.stdout != run(*base, "--method", "m3id").stdout
        # a method's own file is left to it
        other = tmp_path / "other.json"
        other.write_text(json.dumps(written | {"dims": [7]}))
        own = run(*base, "--method", f"var:{strong},calibration={other}", "--calibration", out, "--json", "-")
        assert json.loads(own.stdout)["method"].endswith(f"calibration={other}")


class TestAnotherCheckpoint:
    def test_a_calibration_of_another_model_is_refused(
        self, run: Run, refused: Refused, tmp_path: Path, folder: Path, checkpoint: Path
    ) -> None:
        out = tmp_path / "found.json"
        ran = run("calibrate", checkpoint, "--images", folder, "--out", out)
        assert ran.exit_code == 0, ran.output
        assert Calibration.load(out).model == str(checkpoint)
        out.write_text(json.dumps(json.loads(out.read_text()) | {"model": "owner/other"}))
        options = ("--method", "var", "--calibration", out)
        assert "made for another model" in refused("caption", checkpoint, folder / "0.png", *options)


@pytest.mark.usefixtures("no_model")
class TestRefusedBeforeTheModelLoads:
    def test_other_models_need_pictures(self, refused: Refused) -> None:
        assert "give a folder of some 32 varied ones with --images" in refused("calibrate", "owner/model")

    def test_no_such_folder(self, refused: Refused, tmp_path: Path) -> None:
        assert "is no folder" in refused("calibrate", "demo", "--images", tmp_path / "none")

    def test_an_empty_folder(self, refused: Refused, tmp_path: Path) -> None:
        assert "no pictures in" in refused("calibrate", "demo", "--images", tmp_path)

    def test_a_damaged_picture(self, refused: Refused, folder: Path) -> None:
        (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:200])
        assert "2.png" in refused("calibrate", "demo", "--images", folder)

    def test_no_pictures_at_all(self, refused: Refused) -> None:
        assert "--limit" in refused("calibrate", "demo", "--limit", 0)

    def test_a_file_that_cannot_be_written(self, refused: Refused, tmp_path: Path) -> None:
        assert "there is no folder" in refused("calibrate", "demo", "--out", tmp_path / "no" / "file.json")

    @pytest.mark.parametrize("methods", [(), ("--method", "m3id"), ("--method", "m3id", "--method", "vhr")])
    def test_a_calibration_that_no_method_reads(
        self, refused: Refused, run: Run, tmp_path: Path, folder: Path, methods: tuple[str, ...]
    ) -> None:
        out = tmp_path / "found.json"
        model, processor = standin()
        shown = [prepare(processor, [scene.image()], PROMPT) for scene in scenes("val", 1)]
        probe(model, shown, prompt=PROMPT).save(out)
        message = refused("caption", "demo", folder / "0.png", *methods, "--calibration", out)
        assert "no effect on the chosen methods" in message

    def test_a_calibration_that_is_none(self, refused: Refused, tmp_path: Path, folder: Path) -> None:
        options = ("--method", "var", "--calibration")
        assert "no such calibration" in refused(
            "caption", "demo", folder / "0.png", *options, tmp_path / "none.json"
        )
        assert "is not JSON" in refused("caption", "demo", folder / "0.png", *options, folder / "notes.txt")
