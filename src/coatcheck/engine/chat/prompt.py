"""Messages -> token ids, so that nothing a client writes can become a special token.

The chat template is rendered with a random marker in place of every text of the client. Special tokens (``<|im_end|>``,
``<|image_pad|>``, ...) are then looked for only outside the markers; what lies between two of them, the client's text
put back, is tokenized as one run with special tokens switched off. So "<|image_pad|>" typed by a client is 13
characters of text, and any request without such text gets exactly the ids of the reference tokenizer.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Any

import jinja2
from transformers import AutoTokenizer

from coatcheck.engine.chat.schema import ChatRequest, ImagePart, TextPart
from coatcheck.errors import BadRequest, ConfigError

IMAGE_TOKEN = "<|image_pad|>"
VIDEO_TOKEN = "<|video_pad|>"


class PromptEncoder:
    """A model's chat template and tokenizer. Raises ConfigError if the directory has no usable ones."""

    def __init__(self, model_dir: Path) -> None:
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(model_dir), local_files_only=True)
        except Exception as error:  # transformers raises many kinds for a directory it cannot use
            raise ConfigError(f"--model: {model_dir} has no usable tokenizer: {error}") from error
        if not self._tokenizer.is_fast or not self._tokenizer.chat_template:
            raise ConfigError(f"--model: {model_dir} needs a tokenizer.json and a chat template")
        self._backend: Any = self._tokenizer.backend_tokenizer
        self._backend.encode_special_tokens = True  # literals in text stay text; special tokens are set below, by id
        added = self._backend.get_added_tokens_decoder()
        self._special = {token.content: number for number, token in added.items() if token.special}
        for token in (IMAGE_TOKEN, VIDEO_TOKEN):
            if token not in self._special:
                raise ConfigError(f"--model: {model_dir} has no special token {token}")
        longest_first = sorted(self._special, key=len, reverse=True)
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._longest_token = max(map(len, self._backend.get_vocab(with_added_tokens=True)))
        self.image_id = self._special[IMAGE_TOKEN]
        self.video_id = self._special[VIDEO_TOKEN]
        eos = self._tokenizer.eos_token_id
        self.stop_ids: tuple[int, ...] = () if eos is None else (eos,)  # where the model's configuration has none

    def encode(self, request: ChatRequest, context: int) -> list[int]:
        """Ids of the prompt, a placeholder per image or video. Raises BadRequest; ``context`` only bounds the work."""
        marker = f"coatcheck{secrets.token_hex(16)}"
        texts: list[str] = []
        messages = [
            {"role": self._role(message.role), "content": self._content(message.content, texts, marker)}
            for message in request.messages
        ]
        if sum(map(len, texts)) > context * self._longest_token:
            raise too_long("the prompt is longer", context)
        try:
            rendered = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError as error:
            raise BadRequest(
                f"The model's chat template refuses these messages: {error}", param="messages", code="chat_template"
            ) from None
        return self._ids(rendered, texts, marker)

    @staticmethod
    def _role(role: str) -> str:
        return "system" if role == "developer" else role

    @staticmethod
    def _content(content: Any, texts: list[str], marker: str) -> str | list[dict[str, str]]:
        def mark(text: str) -> str:
            texts.append(text)
            return f"{marker}x{len(texts) - 1}x"

        if isinstance(content, str):
            return mark(content)
        return [
            {"type": "text", "text": mark(part.text)}
            if isinstance(part, TextPart)
            else {"type": "image" if isinstance(part, ImagePart) else "video"}
            for part in content
        ]

    def _ids(self, rendered: str, texts: list[str], marker: str) -> list[int]:
        ids: list[int] = []
        run: list[str] = []

        def flush() -> None:
            if text := "".join(run):
                ids.extend(self._backend.encode(text, add_special_tokens=False).ids)
            run.clear()

        for at, piece in enumerate(re.split(f"{marker}x([0-9]+)x", rendered)):
            if at % 2:  # re.split puts the captured index between the pieces of template
                run.append(texts[int(piece)])
                continue
            for bit in self._special_pattern.split(piece):
                if bit in self._special:
                    flush()
                    ids.append(self._special[bit])
                else:
                    run.append(bit)
        flush()
        return ids


def too_long(why: str, context: int, param: str = "messages") -> BadRequest:
    """The error for a request that does not fit the context."""
    return BadRequest(
        f"This model's context is {context} tokens, but {why}", param=param, code="context_length_exceeded"
    )
