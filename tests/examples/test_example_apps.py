from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from keepsight import mitigate
from keepsight.demo.model import PROMPT, load
from keepsight.demo.world import scenes

APPS = Path(__file__).parents[2] / "examples" / "apps"
QUESTIONS = [PROMPT, "Is there a dog in the image?"]
MARKED = re.compile(
    r"# The one line that mitigates\. It was: (with .+:)\n +with .+ mitigate\((model, .+)\):\n"
)
METHOD = "m3id:decay=0.07,cutoff=0.02"


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    scenes("val-shifted", 23)[22].image().save(path)  # picked because the method changes the answer
    return path


def generated(picture: Path, *methods: str) -> list[str]:
    """What the model itself answers."""
    model, processor = load()
    answers = []
    for question in QUESTIONS:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        chat = [{"role": "user", "content": content}]
        prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = processor(text=prompt, images=Image.open(picture).convert("RGB"), return_tensors="pt")
        with torch.no_grad(), mitigate(model, *methods):
            ids = model.generate(**inputs, max_new_tokens=64)
        text = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers.append(text.strip())
    return answers


def without_the_line(app: Path) -> str:
    text, changed = MARKED.subn(r"\1\n", app.read_text(encoding="utf-8"))
    assert changed == 1
    return text


@pytest.mark.parametrize("library", ["gradio", "streamlit", "chainlit"])
def test_the_marked_line_is_all_that_mitigates(library: str, picture: Path, tmp_path: Path) -> None:
    if find_spec(library) is None:  # looked for, not imported: see driven_apps
        pytest.skip(f"{library} is not installed: make apps")
    app, plain = APPS / f"{library}_chat.py", tmp_path / "plain.py"
    plain.write_text(without_the_line(app), encoding="utf-8")
    driver = Path(__file__).parent.with_name("driven_apps.py")
    done = subprocess.run(
        [sys.executable, str(driver), library, str(picture), str(app), str(plain)],
        input=json.dumps(QUESTIONS),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [[text.strip() for text in texts] for texts in json.loads(done.stdout.splitlines()[-1])]
    mitigated, greedy = generated(picture, METHOD), generated(picture)
    assert answers == [mitigated, greedy]
    assert mitigated != greedy


@pytest.mark.parametrize("app", sorted(APPS.glob("*.py")), ids=lambda path: path.stem)
def test_apps_are_plain_code_but_for_the_line(app: Path) -> None:
    [(before, arguments)] = MARKED.findall(app.read_text(encoding="utf-8"))
    assert before == "with torch.inference_mode():"
    assert arguments == f'model, "{METHOD}"'
    ours = [ast.unparse(node) for node in ast.walk(ast.parse(without_the_line(app))) if is_ours(node)]
    assert ours == ["from keepsight import mitigate", "from keepsight.demo.model import load"]


def is_ours(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "keepsight"
