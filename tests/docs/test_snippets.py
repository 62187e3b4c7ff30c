"""Every snippet of the documentation is whole and runs as written, in order, with small files in place of large ones."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from doc_snippets import NEVER_RUN, RUN, Block, Stand, blocks, commands, words
from PIL import Image
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
OBJECTS = {"cat": 17, "dog": 18, "chair": 62, "person": 1, "bus": 6, "car": 3}
PICTURES = {42: ("cat", "dog", "chair"), 73: ("person", "bus", "car")}


def lines(*entries: Mapping[str, Any]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def name_of(image: int) -> str:
    return f"COCO_val2014_{image:012d}.jpg"


def coco(folder: Path) -> None:
    """COCO's annotations and references of two pictures, and the pictures; train2014 knows other ids."""
    (folder / "val2014").mkdir()
    for image in PICTURES:
        Image.new("RGB", (32, 32), "gray").save(folder / "val2014" / name_of(image))
    for year, shift in (("val2014", 0), ("train2014", 1000)):
        images = [{"id": image + shift, "file_name": name_of(image + shift)} for image in PICTURES]
        instances = {
            "images": images,
            "categories": [{"id": number, "name": name} for name, number in OBJECTS.items()],
            "annotations": [
                {"id": 10 * image + at, "image_id": image + shift, "category_id": OBJECTS[name]}
                for image, names in PICTURES.items()
                for at, name in enumerate(names)
            ],
        }
        said = [
            {"id": image, "image_id": image + shift, "caption": f"A {names[0]} and a {names[1]}."}
            for image, names in PICTURES.items()
        ]
        (folder / f"instances_{year}.json").write_text(json.dumps(instances))
        (folder / f"captions_{year}.json").write_text(json.dumps({"images": images, "annotations": said}))


def captions(folder: Path) -> None:
    """Captions of COCO's pictures, and the page's own example of a zoo."""
    (folder / "said.jsonl").write_text(
        lines(
            {"image_id": 42, "caption": "A cat beside a dog."},
            {"image_id": 73, "caption": "A man and a dog."},
        )
    )
    (folder / "zoo.jsonl").write_text(
        lines(
            {"image_id": 1, "caption": "Two buses."},
            {"image_id": 2, "caption": "A lioness behind wine glasses, and a seal."},
        )
    )
    (folder / "zoo-truth.jsonl").write_text(
        lines(
            {"image_id": 1, "objects": ["bus"]},
            {"image_id": 2, "objects": ["lion", "wine glass"]},
        )
    )
    (vocabulary,) = (
        block.text
        for block in blocks((DOCS / "chair.md").read_text("utf-8"))
        if block.text.startswith("# zoo.txt")
    )
    (folder / "zoo.txt").write_text(vocabulary + "\n")


def yes_no(folder: Path) -> None:
    """POPE's three files with answers to each, answers to a part of one, and MME's four tasks."""
    for short, kind in (("r", "random"), ("p", "popular"), ("a", "adversarial")):
        asked = [
            {
                "question_id": number,
                "image": name_of(42),
                "text": f"Is there a {name} in the image?",
                "label": label,
            }
            for number, (name, label) in enumerate([("cat", "yes"), ("bus", "no")], start=1)
        ]
        (folder / f"coco_pope_{kind}.json").write_text(lines(*asked))
        # RePOPE has POPE's form, and leaves questions out.
        (folder / f"coco_repope_{kind}.json").write_text(lines(asked[0]))
        # The lines as LLaVA-Align writes them.
        said = [
            {
                "question_id": one["question_id"],
                "prompt": one["text"],
                "text": "Yes.",
                "model_id": "llava-v1.5-13b",
                "image": one["image"],
                "metadata": {},
            }
            for one in asked
        ]
        (folder / f"{short}.jsonl").write_text(lines(*said))
    # PAINT writes neither ids nor pictures, and its file ends before the questions do.
    (folder / "paint.jsonl").write_text(
        lines(
            {
                "query": "Is there a cat in the image?",
                "label": 1,
                "ans": "Yes, there is a cat in the image.",
                "question": "USER: <ImageHere> Is there a cat in the image? ASSISTANT:",
                "file_path": "pope_eval_random",
            }
        )
    )
    for task in ("existence", "count", "position", "color"):
        (folder / f"{task}.txt").write_text("a.jpg\tIs it?\tYes\tYes\na.jpg\tIs it not?\tNo\tNo\n")


def edits(folder: Path) -> None:
    """BEAF's questions about one original and one edit of it, and answers."""
    asked = [
        {
            "id": number,
            "image": image,
            "question": f"Is there a {name} in the image?",
            "orig_img": image == "COCO_val2014_000000000042.jpg",
            "removed_q": name == "cat",
            "gt": right,
        }
        for number, (image, name, right) in enumerate(
            [
                ("COCO_val2014_000000000042.jpg", "cat", "yes"),
                ("COCO_val2014_000000000042.jpg", "dog", "no"),
                ("COCO_val2014_000000000042_00.png", "cat", "no"),
                ("COCO_val2014_000000000042_00.png", "dog", "no"),
            ]
        )
    ]
    (folder / "beaf_qna.json").write_text(json.dumps(asked))
    (folder / "answers.json").write_text(json.dumps([{"id": one["id"], "answer": "Yes."} for one in asked]))


def amber(folder: Path) -> None:
    """AMBER's files cut to one yes-or-no question, which needs none of NLTK's data."""
    question = {"id": 1, "type": "discriminative-hallucination", "truth": "no"}
    (folder / "annotations.json").write_text(json.dumps([question]))
    (folder / "relation.json").write_text(json.dumps({"person": ["man"]}))
    (folder / "safe_words.txt").write_text("orange\n")
    (folder / "responses.json").write_text(json.dumps([{"id": 1, "response": "No"}]))


def photos(folder: Path) -> None:
    """Two pictures of the reader's own."""
    for name in ("photo.jpg", "image.jpg"):
        Image.new("RGB", (64, 64), "gray").save(folder / name)
    (folder / "photos").mkdir()
    for index in range(2):
        Image.new("RGB", (64, 64), "gray").save(folder / "photos" / f"{index}.jpg")


def front_page(folder: Path) -> None:
    """Captions and answers under the names that the front page gives them."""
    (folder / "captions.jsonl").write_text((folder / "said.jsonl").read_text())
    (folder / "answers.jsonl").write_text((folder / "r.jsonl").read_text())


CHECKPOINT = "llava-hf/llava-1.5-7b-hf"
DEMO = {CHECKPOINT: "demo", "cuda": "cpu"}
QUICK_RUN = {"keepsight run": "--limit 1 --max-new-tokens 2"}
LOADED = """
from keepsight.demo.model import PROMPT, checkpoint, load
from keepsight.demo.world import scenes

model, processor = load()
inputs = processor.apply_chat_template(
    [{"role": "user", "content": [
        {"type": "image", "image": scenes("test-shifted", 1)[0].image()}, {"type": "text", "text": PROMPT}
    ]}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
CHECKPOINT = str(checkpoint())
"""
"""The demo model and inputs of it, for a page that begins where a reader has a model already."""
PAGES = {
    "README.md": Stand(
        files=[coco, captions, yes_no, photos, front_page],
        words=DEMO,
        extra={
            "keepsight demo": "--limit 2",
            "keepsight caption": "--max-new-tokens 4",
            "keepsight tune": "--limit 2",
            "keepsight bench": "--new-tokens 2 --repeats 1",
            "keepsight calibrate": "--limit 2",
            "keepsight dominance": "--limit 2",
            **QUICK_RUN,
        },
        given=LOADED,
        code={
            f'"{CHECKPOINT}"': "CHECKPOINT",
            '"cuda"': '"cpu"',
            "bfloat16": "float32",
            "float16": "float32",
        },
    ),
    "docs/methods.md": Stand(),
    "docs/how-it-works.md": Stand(),
    "docs/amber.md": Stand(files=[amber]),
    "docs/beaf.md": Stand(files=[edits]),
    "docs/chair.md": Stand(files=[coco, captions]),
    "docs/pope.md": Stand(
        files=[coco, yes_no],
        words=DEMO,
        extra={"keepsight pope build": "--limit 2", **QUICK_RUN},
    ),
    "docs/runs.md": Stand(files=[coco], words=DEMO, extra=QUICK_RUN),
}
"""What each page takes for granted. A page that is not here is not covered yet."""


# A snippet opens a picture as people do, without closing it
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand = PAGES[page]
    for make in stand.files:
        make(tmp_path)
    (tmp_path / "runs").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)
    found = [block for block in blocks((ROOT / page).read_text("utf-8")) if block.language in RUN]
    assert found, f"{page} holds no snippet"
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(stand.given, names)
    left_out = {beginning for block in found for beginning in run(block, page, stand, names)}
    assert left_out == stand.not_run.keys(), "not_run names commands that the page does not hold"
    names.clear()
    gc.collect()  # what a snippet left open is closed here, and not in the middle of another test


def run(block: Block, page: str, stand: Stand, names: dict[str, Any]) -> set[str]:
    """Run a block; gives back which entries of ``not_run`` kept a command from being run."""
    left_out: set[str] = set()
    if block.language == "python":
        text = block.text
        for piece, other in stand.code.items():
            text = text.replace(piece, other)
        # Empty lines in front make a traceback's line the line of the page
        code = compile("\n" * (block.line - 1) + text, page, "exec")
        exec(code, names)
        return left_out
    from keepsight.cli.main import app

    for line, command in commands(block):
        skipped = {**NEVER_RUN, **stand.not_run}
        if beginning := next((one for one in skipped if command.startswith(one)), None):
            assert "…" not in command, f"{page}:{line}: not whole: {command}"
            print(f"{page}:{line}: not run: {skipped[beginning]}")
            left_out |= {beginning} & stand.not_run.keys()
            continue
        arguments = words(command, stand)
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{page}:{line}: {arguments}\n{result.output}\n{result.exception!r}"
    return left_out


def test_blocks_are_told_apart() -> None:
    text = """# A

    keepsight demo

text

```python
x = 1
```

- a list

      from here

```text
keepsight
```
"""
    assert [(block.language, block.text, block.line) for block in blocks(text)] == [
        ("sh", "keepsight demo", 3),
        ("python", "x = 1", 8),
        ("text", "keepsight", 16),
    ]


def test_commands_are_joined_and_told_from_what_they_print() -> None:
    block = Block("console", "$ keepsight a \\\n    --b c\nprinted\n$ keepsight d", 5)
    assert list(commands(block)) == [(5, "keepsight a     --b c"), (8, "keepsight d")]


def test_words_stand_in_and_launchers_are_left_out() -> None:
    stand = Stand(words={"val2014": "pictures"}, extra={"keepsight run": "--limit 1"})
    command = "torchrun --nproc_per_node 4 -m keepsight run --images val2014  # on four devices"
    assert words(command, stand) == ["run", "--images", "pictures", "--limit", "1"]


def test_code_stands_in_and_takes_names_for_granted() -> None:
    stand = Stand(given="n = 2", code={"big": "n"})
    block = Block("python", "assert big == 2\nfound = big + 1", 7)
    names: dict[str, Any] = {}
    exec(stand.given, names)
    assert run(block, "page", stand, names) == set()
    assert names["found"] == 3


@pytest.mark.parametrize("command", ["make demo", "keepsight serve demo  # any client"])
def test_what_is_never_run_has_a_reason(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Block("sh", command, 3), "page", Stand(), {}) == set()
    assert "page:3: not run: it" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["keepsight run …", "rm -r runs", "pip install keepsight"])
def test_what_is_not_whole_or_not_ours_is_refused(command: str) -> None:
    with pytest.raises(AssertionError):
        words(command, Stand())
