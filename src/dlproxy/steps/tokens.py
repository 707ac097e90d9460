"""The step that makes tokens of texts, as a tokenizer.json says.

Named in the table of steps; needs the package tokenizers. Not aware of: models.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.config.traits import knob
from dlproxy.config.values import ConfigError
from dlproxy.steps.options import checked
from dlproxy.steps.values import texts_of

try:
    from tokenizers import Tokenizer
except ImportError:
    raise ConfigError("text.tokenize needs tokenizers: pip install 'dlproxy[steps]'", "steps") from None

PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")


class Tokenize:
    """The tokens of texts, as long as the longest of the request, as a Hugging Face tokenizer.json says.

    Where it pads (left or right, with what) and which end is cut off is what the file says; without that, the right.
    """

    class Options(Struct, frozen=True):
        file: Annotated[str, knob("the tokenizer.json that belongs to the model")]
        max_length: Annotated[int, knob("of tokens, special ones among them; what is longer is cut off", ge=1, le=1 << 20)] = (
            512
        )
        special_tokens: Annotated[bool, knob("add those that the file says, such as [CLS] and [SEP]")] = True
        multiple_of: Annotated[int, knob("lengths are padded up to a multiple of it", ge=1, le=1024)] = 1
        type: Annotated[Literal["INT64", "INT32"], knob("of what it gives")] = "INT64"
        max_texts: Annotated[int, knob("of one request; more are refused", ge=1)] = 4096
        max_bytes: Annotated[int, knob("of one text; longer ones are refused", ge=1)] = 1 << 20

    outputs = {"input_ids": "INT64[-1,-1]", "attention_mask": "INT64[-1,-1]", "token_type_ids": "INT64[-1,-1]"}

    def __init__(self, **options: Any) -> None:
        self._options = given = checked(self.Options, options)
        try:
            self._tokenizer = Tokenizer.from_file(given.file)
            padding, cut = self._tokenizer.padding or {}, self._tokenizer.truncation or {}
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(given.max_length, direction=cut.get("direction", "right"))
        except Exception as error:  # it raises no other kind
            raise ConfigError(f"options.file: {given.file} cannot be used: {error}", "steps") from None
        special = self._tokenizer.num_special_tokens_to_add(True) if given.special_tokens else 0
        if given.max_length < special:  # with less room, it cuts off nothing
            raise ConfigError(f"options.max_length: the special tokens of two texts are {special}", "steps")
        self._left = padding.get("direction") == "left"
        self._fills = padding.get("pad_id", _pad_id(self._tokenizer.token_to_id)), 0, padding.get("pad_type_id", 0)
        self.outputs = dict.fromkeys(Tokenize.outputs, f"{given.type}[-1,-1]")

    def __call__(self, text: Any, pair: Any = None) -> dict[str, NDArray[Any]]:
        """text: BYTES of any shape, UTF-8; each element is a row. pair: second texts, as many, for models of two."""
        texts = texts_of("text", text, most=self._options.max_texts, most_bytes=self._options.max_bytes)
        rows: Sequence[Any] = texts
        if pair is not None:
            seconds = texts_of("pair", pair, most=self._options.max_texts, most_bytes=self._options.max_bytes)
            if len(seconds) != len(texts):
                raise ValueError(f"text has {len(texts)} elements, and pair has {len(seconds)}")
            rows = list(zip(texts, seconds, strict=True))
        found = self._tokenizer.encode_batch_fast(rows, add_special_tokens=self._options.special_tokens)
        longest = -(-max(map(len, found), default=0) // self._options.multiple_of) * self._options.multiple_of
        dtype = np.int32 if self._options.type == "INT32" else np.int64
        arrays = [np.full((len(found), longest), fill, dtype) for fill in self._fills]
        for row, encoding in enumerate(found):
            length = len(encoding)
            place = slice(longest - length, None) if self._left else slice(length)
            for array, values in zip(arrays, (encoding.ids, encoding.attention_mask, encoding.type_ids), strict=True):
                array[row, place] = values
        return dict(zip(self.outputs, arrays, strict=True))


def _pad_id(id_of: Callable[[str], int | None]) -> int:
    return next((number for number in map(id_of, PAD_TOKENS) if number is not None), 0)
