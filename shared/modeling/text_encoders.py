"""Text encoders: turn the text of a turn, with the turns before it as context, into a sequence of features.

Padding never changes a result: encoding a batch gives the same features as encoding its items one by one.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertModel, PreTrainedModel

from shared.modeling.text_normalization import normalize_text
from shared.modeling.tokens import Tokens, length_mask

WINDOW_TOKENS = 64
"""Longest window of a text that is longer than the encoder's input. Shorter windows hide a sentence less."""
SPARE_TOKENS = 8
"""Room in a window, because a part of a text may have a few more tokens alone than within the text."""
SENTENCE_MARKS = ".!?…。！？؟।"  # noqa: RUF001


@dataclass(frozen=True)
class ReadableText:
    """The part of a text that is encoded.

    Attributes:
        text: in plain writing, see `normalize_text`, without the words that the vocabulary lacks.
        letters: how many letters and digits the whole text has.
        unknown: how many of them the vocabulary lacks.
        unread: how many letters and digits are left out. A single unknown letter within a word is not.
    """

    text: str
    letters: int
    unknown: int
    unread: int


@dataclass(frozen=True)
class TokenizedTurn:
    """Token ids of a turn and its context.

    Attributes:
        ids: the whole input of the text encoder.
        own: the positions in `ids` that belong to the turn itself, with the start token and the prefix.
    """

    ids: list[int]
    own: list[int]


@dataclass(frozen=True)
class TurnTokenizer:
    """Tokenizes a turn with the turns before it.

    The input of the text encoder is: start token, prefix, each earlier turn and a separator, the turn, a separator. If
    that is longer than `max_tokens`, the earlier turns are cut first, from the oldest on, and then the end of the turn.
    """

    tokenizer: Tokenizer
    start_id: int
    separator_id: int
    unknown_id: int | None
    padding_id: int
    prefix: str
    max_tokens: int

    def __post_init__(self) -> None:
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def tokenize(self, text: str, context: Sequence[str] = ()) -> TokenizedTurn:
        """Returns the token ids of a turn and its context, the oldest turn first."""
        own = self._ids(self.prefix + self.read(text).text)[: self.max_tokens - 2]
        prefix = min(len(own), len(self._ids(self.prefix.rstrip())) if self.prefix else 0)
        earlier = [id_ for turn in context for id_ in (*self._ids(self.read(turn).text), self.separator_id)]
        earlier = earlier[max(0, len(earlier) - (self.max_tokens - 2 - len(own))) :]
        ids = [self.start_id, *own[:prefix], *earlier, *own[prefix:], self.separator_id]
        return TokenizedTurn(ids, [*range(1 + prefix), *range(1 + prefix + len(earlier), len(ids))])

    def read(self, text: str) -> ReadableText:
        """Returns what is encoded of a text."""
        text = normalize_text(text)
        is_letter = [unicodedata.category(character)[0] in "LN" for character in text]
        runs = self._unknown_runs(text, is_letter)
        left_out = [(start, end) for start, end in runs if sum(is_letter[start:end]) > 1]
        unread = sum(sum(is_letter[start:end]) for start, end in left_out)
        if unread == sum(is_letter):
            left_out, unread = [], 0
        edges = [0, *(place for run in left_out for place in run), len(text)]
        kept = [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
        return ReadableText(
            text=" ".join(" ".join(kept).split()) if left_out else text,
            letters=sum(is_letter),
            unknown=sum(sum(is_letter[start:end]) for start, end in runs),
            unread=unread,
        )

    def can_encode(self, text: str, max_unknown: float) -> bool:
        """Whether the text has letters or digits, and the vocabulary lacks at most the share `max_unknown` of them."""
        read = self.read(text)
        return read.letters > 0 and read.unknown <= max_unknown * read.letters

    def windows(self, read: ReadableText) -> list[str]:
        """Returns the text, or the windows of a text that is longer than the encoder's input. They cover all of it.

        A window ends with a sentence where one ends in its second half, else with a word where one ends, and has
        `WINDOW_TOKENS` tokens at most.
        """
        text = read.text
        if len(self._ids(self.prefix + text)) <= self.max_tokens - 2:
            return [text]
        prefix = len(self._ids(self.prefix.rstrip()))
        starts = [start for start, _ in self.tokenizer.encode(text, add_special_tokens=False).offsets]
        most = max(1, min(WINDOW_TOKENS, self.max_tokens - 2 - SPARE_TOKENS) - prefix)
        edges = [0]
        while len(starts) - edges[-1] > most:
            edges.append(_last_boundary(text, starts, edges[-1], edges[-1] + most))
        places = [*(starts[edge] for edge in edges[1:]), len(text)]
        return [text[start:end].strip() for start, end in zip([0, *places], places, strict=False)]

    def fitting(self, text: str, context: Sequence[str]) -> Sequence[str]:
        """Returns the turns of the context that `tokenize` keeps at least a part of, with this text."""
        room = self.max_tokens - 2 - len(self._ids(self.prefix + self.read(text).text))
        kept = 0
        while kept < len(context) and room > 1:
            kept += 1
            room -= len(self._ids(self.read(context[-kept]).text)) + 1
        return context[len(context) - kept :]

    def _unknown_runs(self, text: str, is_letter: Sequence[bool]) -> list[tuple[int, int]]:
        """The spans of the tokens with letters that the vocabulary lacks, joined where no letter is between."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        runs: list[tuple[int, int]] = []
        for id_, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if id_ != self.unknown_id or not any(is_letter[start:end]):
                continue
            if runs and not any(is_letter[runs[-1][1] : start]):
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((start, end))
        return runs

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def _last_boundary(text: str, starts: Sequence[int], first: int, end: int) -> int:
    """The token before which a window from the token `first` ends, at most `end`: a sentence's, a word's, or `end`."""
    for is_boundary in (_ends_sentence, _ends_word):
        for token in range(end, first + (end - first) // 2, -1):
            if is_boundary(text[: starts[token]][-2:], text[starts[token]]):
                return token
    return end


def _ends_sentence(before: str, after: str) -> bool:
    return _ends_word(before, after) and before.rstrip()[-1:] in SENTENCE_MARKS


def _ends_word(before: str, after: str) -> bool:
    return before[-1:].isspace() or after.isspace()


class TextEncoderConfig(BaseModel):
    """Shapes and settings. The default shapes are those of multilingual-e5-small, except for the vocabulary."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: int
    width: int = 384
    layers: int = 12
    heads: int = 12
    hidden: int = 1536
    positions: int = 512
    padding_id: int = 1
    prefix: str = "query: "
    max_tokens: int = 256
    context_turns: int = 0
    """How many turns before a turn the encoder was trained to read as context."""
    max_unknown: float = 0.5
    """A text is not encoded if the vocabulary lacks more than this share of its letters and digits."""


class TextEncoder(nn.Module):
    """A BERT with the vocabulary of XLM-R (Wang et al. 2024, "Multilingual E5 Text Embeddings").

    Attributes:
        turn_tokenizer: says what is encoded of a text, and in which windows.
    """

    def __init__(self, config: TextEncoderConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.bert = BertModel(
            BertConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=config.hidden,
                max_position_embeddings=config.positions,
                type_vocab_size=2,
                layer_norm_eps=1e-12,
                pad_token_id=config.padding_id,
            ),
            add_pooling_layer=False,
        )
        start_id, separator_id, unknown_id = (_special_id(tokenizer, token) for token in ("<s>", "</s>", "<unk>"))
        self.turn_tokenizer = TurnTokenizer(
            tokenizer, start_id, separator_id, unknown_id, config.padding_id, config.prefix, config.max_tokens
        )

    def can_encode(self, text: str) -> bool:
        """Whether the text has letters or digits, and enough of them are in the vocabulary."""
        return self.turn_tokenizer.can_encode(text, self.config.max_unknown)

    def forward(self, texts: Sequence[str], context: Sequence[Sequence[str]] | None = None) -> Tokens:
        """Returns features of the texts, shape [batch, tokens, width], without those of the context.

        Args:
            texts: the text of each turn. The end of a text that is longer than `max_tokens` is cut off.
            context: for each text, the texts of the turns before it, the oldest first; see `TurnTokenizer`.
        """
        return encode_turns(self.bert, self.turn_tokenizer, texts, context)


def encode_turns(
    model: PreTrainedModel,
    tokenizer: TurnTokenizer,
    texts: Sequence[str],
    context: Sequence[Sequence[str]] | None = None,
) -> Tokens:
    """Returns the model's last hidden states at the texts' own tokens, shape [batch, tokens, width].

    The model attends to the context, but the hidden states of the context are not returned.
    """
    contexts = context or [()] * len(texts)
    turns = [tokenizer.tokenize(text, before) for text, before in zip(texts, contexts, strict=True)]
    ids = [torch.tensor(turn.ids, device=model.device) for turn in turns]
    padded = pad_sequence(ids, batch_first=True, padding_value=tokenizer.padding_id)
    mask = length_mask(torch.tensor([len(row) for row in ids], device=model.device), padded.shape[1])
    hidden = model(input_ids=padded, attention_mask=mask.long()).last_hidden_state.float()
    return Tokens.padded([states[turn.own] for states, turn in zip(hidden, turns, strict=True)])


def _special_id(tokenizer: Tokenizer, token: str) -> int:
    id_ = tokenizer.token_to_id(token)
    if id_ is None:
        raise ValueError(f"the tokenizer has no token {token}, which every XLM-R vocabulary has")
    return id_
