"""The tokenizer of the default model: byte-level BPE, 512 entries, made from the questions themselves.

Ids 0..255 are the bytes, 256..503 merges learned from questions and answers, 504..511 the special tokens. The
splitting rule and the NFC normalisation are those of Qwen2's tokenizer, since loaders rebuild it from
`tokenizer_class` instead of reading them from the file.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from training.questions import ABILITY, CHAT, KINDS, NO_IMAGE, OFF_TOPIC, ORDINALS, ask, ask_about_many
from training.scenes import scenes

VOCAB_SIZE = 512
SPECIAL_TOKENS: tuple[str, ...] = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SPECIAL_IDS: dict[str, int] = {token: VOCAB_SIZE - len(SPECIAL_TOKENS) + k for k, token in enumerate(SPECIAL_TOKENS)}
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
MAX_LENGTH = 8192
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def _corpus(seed: int = 0) -> list[str]:
    """Questions, answers and chat lines, in about the mix that training sees."""
    rng = random.Random(f"coatcheck corpus {seed}")
    lines = ["user\n", "assistant\n", "system\n"] * 1000
    lines += [text for pair in CHAT.items() for text in pair] * 20 + [ABILITY, NO_IMAGE, OFF_TOPIC] * 100
    drawn = list(scenes(400, 0, (112, 112), split="validation"))
    for scene in drawn:
        for kind in KINDS:
            question = ask(scene, rng, kind)
            if question is not None:
                lines += [question.text, question.answer]
        several = rng.sample(drawn, rng.randint(2, len(ORDINALS)))
        question = ask_about_many(several, rng, dict.fromkeys(KINDS, 1.0))
        lines += [question.text, question.answer]
    return lines


def build_tokenizer() -> Tokenizer:
    """The tokenizer; the same at every call."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE - len(SPECIAL_TOKENS):
        raise RuntimeError(f"the corpus gave {tokenizer.get_vocab_size()} entries only")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    for token, index in SPECIAL_IDS.items():
        if tokenizer.token_to_id(token) != index:
            raise RuntimeError(f"{token} got id {tokenizer.token_to_id(token)}, not {index}")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json, vocab.json, merges.txt, tokenizer_config.json and the chat template."""
    tokenizer.save(str(directory / "tokenizer.json"))
    model = json.loads(tokenizer.to_str())["model"]
    (directory / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False) + "\n", encoding="utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    added = {
        str(index): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token, index in SPECIAL_IDS.items()
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": MAX_LENGTH,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2TokenizerFast",
        "unk_token": None,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
