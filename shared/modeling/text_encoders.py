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

from shared.modeling.tokens import Tokens, length_mask

MAX_CHECKED_CHARACTERS = 4096
"""How much of a text is checked for characters that the vocabulary lacks."""


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
        own = self._ids(self.prefix + text)[: self.max_tokens - 2]
        prefix = min(len(own), len(self._ids(self.prefix.rstrip())) if self.prefix else 0)
        earlier = [id_ for turn in context for id_ in (*self._ids(turn), self.separator_id)]
        earlier = earlier[max(0, len(earlier) - (self.max_tokens - 2 - len(own))) :]
        ids = [self.start_id, *own[:prefix], *earlier, *own[prefix:], self.separator_id]
        return TokenizedTurn(ids, [*range(1 + prefix), *range(1 + prefix + len(earlier), len(ids))])

    def can_encode(self, text: str, max_unknown: float) -> bool:
        """Whether the text has letters or digits, and the vocabulary lacks at most the share `max_unknown` of them."""
        letters = [unicodedata.category(character)[0] in "LN" for character in text]
        if not any(letters):
            return False
        encoding = self.tokenizer.encode(text[:MAX_CHECKED_CHARACTERS], add_special_tokens=False)
        unknown = [span for id_, span in zip(encoding.ids, encoding.offsets, strict=True) if id_ == self.unknown_id]
        checked = encoding.offsets[-1][1] if encoding.offsets else 0
        return sum(sum(letters[start:end]) for start, end in unknown) <= max_unknown * sum(letters[:checked])

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


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
    max_unknown: float = 0.2
    """A text is not encoded if the vocabulary lacks more than this share of its letters and digits."""


class TextEncoder(nn.Module):
    """A BERT with the vocabulary of XLM-R (Wang et al. 2024, "Multilingual E5 Text Embeddings")."""

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
        self._turn_tokenizer = TurnTokenizer(
            tokenizer, start_id, separator_id, unknown_id, config.padding_id, config.prefix, config.max_tokens
        )

    def can_encode(self, text: str) -> bool:
        """Whether the text has letters or digits, and nearly all of them are in the vocabulary."""
        return self._turn_tokenizer.can_encode(text, self.config.max_unknown)

    def forward(self, texts: Sequence[str], context: Sequence[Sequence[str]] | None = None) -> Tokens:
        """Returns features of the texts, shape [batch, tokens, width], without those of the context.

        Args:
            texts: the text of each turn. The end of a text that is longer than `max_tokens` is cut off.
            context: for each text, the texts of the turns before it, the oldest first; see `TurnTokenizer`.
        """
        return encode_turns(self.bert, self._turn_tokenizer, texts, context)


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
