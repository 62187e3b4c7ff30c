"""The demo model: a small LLaVA (CLIP tower, projector, Llama) that ships inside the package.

``load()`` returns the trained checkpoint. The functions ``build_…`` create the untrained model, its tokenizer and its
processor, for training the model again. torch and transformers are imported inside the functions, because importing them
takes seconds and the constants of this module do not need them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keepsight.errors import KeepsightError

if TYPE_CHECKING:
    import torch

WEIGHTS = Path(__file__).parent / "weights"
"""The directory of the packaged checkpoint; ``from_pretrained`` reads it."""
PROMPT = "Describe this image."
"""The text of the user's message that the model was trained to answer with a caption."""
SIDE, PATCH = 128, 16
"""The side of the square input image and of one patch, in pixels."""
# The order gives the ids below: the tokenizer numbers special tokens from 0 on
SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
PAD, BOS, EOS, IMAGE = range(4)
IMAGE_TOKENS = (SIDE // PATCH) ** 2
"""The number of image tokens of a prompt: one for each patch, and none for the class token of CLIP."""
# The images of a message are written before its texts, wherever they stand in it, since no prompt of the training had an
# image behind a text. Other roles are refused by name, because the model has never seen one
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{ 'USER: ' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>\n' }}{%- endfor -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}"
    "{%- endif -%}"
    "{%- elif message['role'] == 'assistant' -%}{{ ' ASSISTANT: ' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}"
    "{%- endif -%}{{ eos_token }}"
    "{%- else -%}{{ raise_exception('the demo model knows the roles user and assistant only') }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ ' ASSISTANT:' }}{%- endif -%}"
)


class WeightsMissing(KeepsightError):
    """The package has no checkpoint of the demo model."""


def checkpoint() -> Path:
    """The folder of the packaged checkpoint.

    Raises:
        WeightsMissing: the package has no checkpoint.
    """
    if not (WEIGHTS / "model.safetensors").is_file():
        raise WeightsMissing(f"no demo checkpoint in {WEIGHTS}: reinstall keepsight")
    return WEIGHTS


def load(dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> tuple[Any, Any]:
    """The packaged model in evaluation mode, and its processor.

    Args:
        dtype: the type of the weights; by default ``torch.float32``, although the file holds float16.
        device: where the model is placed; by default the CPU.

    Raises:
        WeightsMissing: the package has no checkpoint.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = checkpoint()
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype or torch.float32)
    # Calibration files know a model by this name. The path would differ from installation to installation
    model.config._name_or_path = "demo"
    return model.to(device).eval(), AutoProcessor.from_pretrained(folder)


def build_model(vocabulary: int) -> Any:
    """An untrained ``LlavaForConditionalGeneration`` of the demo model's shape.

    Args:
        vocabulary: the number of tokens of the tokenizer.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        image_size=SIDE,
        patch_size=PATCH,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    shape: dict[str, Any] = {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": IMAGE,
        "image_seq_length": IMAGE_TOKENS,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",  # transformers' name for dropping the class token
        "tie_word_embeddings": True,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    model = LlavaForConditionalGeneration(LlavaConfig(**shape))
    model.generation_config.update(
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, max_new_tokens=64, do_sample=False
    )
    return model


def build_tokenizer(texts: Iterable[str]) -> Any:
    """A byte-level BPE tokenizer of at most 768 tokens, trained on ``texts``. It puts ``<s>`` before every text.

    Args:
        texts: the texts of the training, prompts and answers.
    """
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.processors import TemplateProcessing
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = ByteLevel(add_prefix_space=False)
    bpe.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=768,
        special_tokens=list(SPECIAL),
        # All 256 bytes are tokens, so that any text of a user can be encoded, although the training had few letters
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",  # answers are generated behind the prompt, so that padding has to stand before it
        model_max_length=512,
    )


def build_processor(tokenizer: Any) -> Any:
    """The ``LlavaProcessor`` around ``tokenizer``, for images of 128 by 128 pixels and 64 image tokens.

    Pixel values become -1 to 1, as in the training.
    """
    from transformers import LlavaProcessor

    # The image processor over Pillow, since the one that transformers prefers needs torchvision
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    pictures = LlavaImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        # The class token. The processor counts it, and then takes one off again for the strategy "default"
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
