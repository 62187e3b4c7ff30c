from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from standin import standin
from typer.testing import Result

from keepsight import mitigate, parse
from keepsight.demo.world import scenes

Run = Callable[..., Result]
Refused = Callable[..., str]
STRONG = "vcd:alpha=3.0,beta=0.0,noise_step=999"
SHORT = ("--max-new-tokens", 12)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / "one.png", folder / "COCO_val2014_000000000042.png", folder / "three.png"]
    for path, scene in zip(paths, scenes("val", 3), strict=True):
        scene.image().save(path)
    return paths


def by_hand(path: Path, *specs: str, num_beams: int = 1) -> str:
    """The caption as plain transformers code makes it."""
    model, processor = standin()
    text = "USER: <image>\nDescribe this image. ASSISTANT:"
    inputs = processor(text=text, images=Image.open(path), return_tensors="pt", add_special_tokens=True)
    with mitigate(model, *map(parse, specs)):
        ids = model.generate(**inputs, max_new_tokens=12, num_beams=num_beams, do_sample=False)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.usefixtures("demo_model")
class TestOnTheDemoModel:
    def test_one_picture_gives_its_caption_alone(self, run: Run, pictures: list[Path]) -> None:
        ran = run("caption", "demo", pictures[0], *SHORT)
        assert (ran.exit_code, ran.stderr) == (0, "")
        assert ran.stdout == by_hand(pictures[0]) + "\n"

    def test_several_pictures_are_told_apart(self, run: Run, pictures: list[Path]) -> None:
        lines = run("caption", "demo", *pictures, *SHORT).stdout.splitlines()
        assert lines == [f"{path}: {by_hand(path)}" for path in pictures]

    def test_methods_act_and_compose_in_order(self, run: Run, pictures: list[Path]) -> None:
        gate = "m3id:decay=1.0,cutoff=0.0"
        said = {
            specs: run(
                "caption", "demo", pictures[0], *SHORT, *(("--method", "+".join(specs)) if specs else ())
            ).stdout
            for specs in ((), (STRONG,), (gate,), (STRONG, gate))
        }
        for specs, text in said.items():
            assert text.strip() == by_hand(pictures[0], *specs)
        assert len(set(said.values())) == 4

    def test_json_lines_feed_the_scorer(self, run: Run, pictures: list[Path], tmp_path: Path) -> None:
        ran = run("caption", "demo", *pictures, *SHORT, "--json", "-", "--method", f"{STRONG}+m3id")
        lines = [json.loads(line) for line in ran.stdout.splitlines()]
        assert [line["image_id"] for line in lines] == ["one", 42, "three"]
        assert [line["image"] for line in lines] == [str(path) for path in pictures]
        assert {line["method"] for line in lines} == {f"{parse(STRONG).spec}+m3id"}
        assert {line["model"] for line in lines} == {"demo"}
        assert lines[0]["caption"] == by_hand(pictures[0], STRONG, "m3id")

        captions, truth = tmp_path / "captions.jsonl", tmp_path / "truth.jsonl"
        captions.write_text(ran.stdout, encoding="utf-8")
        objects = zip(("one", 42, "three"), scenes("val", 3), strict=True)
        truth.write_text(
            "".join(json.dumps({"image_id": i, "objects": scene.names}) + "\n" for i, scene in objects)
        )
        scored = run("chair", captions, "--ground-truth", truth, "--json", tmp_path / "score.json")
        assert scored.exit_code == 0, scored.output
        report = json.loads((tmp_path / "score.json").read_text())
        assert report["n"] == 3
        assert report["captions"][0]["caption"] == lines[0]["caption"]

    def test_without_a_method_json_says_so(self, run: Run, pictures: list[Path]) -> None:
        line = json.loads(run("caption", "demo", pictures[0], *SHORT, "--json", "-").stdout)
        assert line["method"] is None
        assert line["generation"] == {"max_new_tokens": 12, "num_beams": 1, "do_sample": False}

    def test_sampling_is_seeded_picture_by_picture(self, run: Run, pictures: list[Path]) -> None:
        def sampled(*paths: Path, seed: int = 0) -> list[str]:
            options = ("--sample", "--temperature", 2.0, "--seed", seed, *SHORT, "--json", "-")
            return [
                json.loads(line)["caption"]
                for line in run("caption", "demo", *paths, *options).stdout.splitlines()
            ]

        before = torch.random.get_rng_state()
        both = sampled(*pictures[:2])
        assert both == sampled(*pictures[:2])
        assert sampled(pictures[1]) == both[1:]
        assert sampled(*pictures[:2], seed=1) != both
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_beams_search(self, run: Run, pictures: list[Path]) -> None:
        lines = run("caption", "demo", *pictures, *SHORT, "--num-beams", 6).stdout.splitlines()
        assert lines == [f"{path}: {by_hand(path, num_beams=6)}" for path in pictures]
        assert lines != [f"{path}: {by_hand(path)}" for path in pictures]

    def test_a_raw_prompt_is_taken_as_it_is(self, run: Run, pictures: list[Path]) -> None:
        written = "USER: <image>\nDescribe this image. ASSISTANT:"
        plain = run("caption", "demo", pictures[0], *SHORT).stdout
        assert (
            run("caption", "demo", pictures[0], *SHORT, "--raw-prompt", "--prompt", written).stdout == plain
        )

    def test_a_raw_prompt_without_the_picture_is_refused(
        self, refused: Refused, pictures: list[Path]
    ) -> None:
        message = refused("caption", "demo", pictures[0], "--raw-prompt", "--prompt", "Describe this.")
        assert "'Describe this.'" in message
        # Who refuses it depends on the release of transformers: its processor, or we
        assert "0 <image> tokens" in message or "write <image> into it" in message

    def test_a_dtype_that_does_not_exist_is_refused(self, refused: Refused, pictures: list[Path]) -> None:
        assert "float33" in refused("caption", "demo", pictures[0], "--dtype", "float33")

    def test_a_device_that_does_not_exist_is_refused(self, refused: Refused, pictures: list[Path]) -> None:
        assert "cannot load demo" in refused("caption", "demo", pictures[0], "--device", "nowhere")


@pytest.mark.usefixtures("no_model")
class TestRefusedBeforeTheModelLoads:
    def test_missing(self, refused: Refused, tmp_path: Path) -> None:
        assert "no such picture" in refused("caption", "demo", tmp_path / "missing.png")

    def test_folder(self, refused: Refused, tmp_path: Path) -> None:
        assert "is not a file" in refused("caption", "demo", tmp_path)

    def test_not_a_picture(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "notes.png").write_text("not a picture")
        assert "not a picture" in refused("caption", "demo", tmp_path / "notes.png")

    def test_empty(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "empty.jpg").touch()
        assert "not a picture" in refused("caption", "demo", tmp_path / "empty.jpg")

    @pytest.mark.parametrize("name", ["cut.png", "cut.jpg"])
    def test_truncated_and_last_of_several(
        self, refused: Refused, pictures: list[Path], tmp_path: Path, name: str
    ) -> None:
        whole = tmp_path / name
        Image.open(pictures[0]).save(whole)
        whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        message = refused("caption", "demo", pictures[0], whole)
        assert name in message
        assert "damaged or incomplete" in message

    def test_no_pictures(self, refused: Refused) -> None:
        assert "Missing argument" in refused("caption", "demo")

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--method", "m3di"), "did you mean 'm3id'?"),
            (("--method", "vcd:alpha=inf"), "must be a finite number"),
            (("--temperature", "0.5"), "temperature has no effect"),
            (("--sample", "--temperature", "0"), "temperature=0.0 must be a finite number above 0"),
            (("--sample", "--temperature", "nan"), "temperature=nan must be a finite number above 0"),
            (("--sample", "--top-p", "1.5"), "top_p=1.5 must be above 0 and at most 1"),
            (("--max-new-tokens", "0"), "max_new_tokens=0 must be a whole number, 1 or more"),
            (("--num-beams", "0"), "num_beams=0"),
        ],
    )
    def test_options(
        self, refused: Refused, pictures: list[Path], options: tuple[str, ...], words: str
    ) -> None:
        assert words in refused("caption", "demo", pictures[0], *options)


class TestOtherCheckpoints:
    def test_a_folder_is_a_model(self, run: Run, pictures: list[Path], checkpoint: Path) -> None:
        line = json.loads(run("caption", checkpoint, pictures[0], *SHORT, "--json", "-").stdout)
        assert line["caption"] == by_hand(pictures[0])
        assert line["model"] == str(checkpoint)

    def test_a_text_only_model_is_refused(
        self, refused: Refused, pictures: list[Path], tmp_path: Path
    ) -> None:
        from transformers import LlamaConfig

        LlamaConfig(vocab_size=8, hidden_size=64).save_pretrained(tmp_path)
        assert "is a llama model and takes no pictures" in refused("caption", tmp_path, pictures[0])

    def test_a_checkpoint_without_a_processor_is_refused(
        self, refused: Refused, pictures: list[Path], tmp_path: Path
    ) -> None:
        model, _ = standin()
        model.save_pretrained(tmp_path)
        assert f"cannot load {tmp_path}" in refused("caption", tmp_path, pictures[0])

    def test_damaged_weights_are_refused(
        self, refused: Refused, pictures: list[Path], tmp_path: Path, checkpoint: Path
    ) -> None:
        for file in checkpoint.iterdir():
            (tmp_path / file.name).write_bytes(
                file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None]
            )
        assert f"cannot load {tmp_path}" in refused("caption", tmp_path, pictures[0])

    def test_a_path_that_is_not_there_is_refused(
        self, refused: Refused, pictures: list[Path], tmp_path: Path
    ) -> None:
        assert "cannot load" in refused("caption", tmp_path / "nothing", pictures[0])

    def test_a_processor_without_a_template_wants_a_raw_prompt(
        self, run: Run, refused: Refused, pictures: list[Path], tmp_path: Path
    ) -> None:
        model, processor = standin()
        processor.chat_template = None
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        assert "no chat template" in refused("caption", tmp_path, pictures[0])
        ran = run("caption", tmp_path, pictures[0], "--raw-prompt", "--prompt", "<image> a", *SHORT)
        assert ran.exit_code == 0
        assert ran.stdout.strip()

    def test_a_package_without_weights_says_so(
        self, refused: Refused, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("keepsight.demo.model.WEIGHTS", tmp_path)
        assert "no demo checkpoint" in refused("caption", "demo", pictures[0])
        assert "no demo checkpoint" in refused("demo")
