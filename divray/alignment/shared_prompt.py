"""One pass over a prompt for all the texts of a batch that follow it.

DPO scores ``prompt + chosen`` and ``prompt + rejected``.  A causal model gives equal tokens in an equal context equal hidden states, so it
needs to compute a common beginning only once.  Rows that begin alike become one row: the first of them whole, then the rest of each other
one.  An attention mask hides what follows the beginning in one row from the others, and each token keeps its position in its own row.
:func:`share_prompts` puts the states back in their usual places, so the loss needs no change.  Two pairs of one prompt, with P tokens in
the prompt and C in each text, take P + 4C positions instead of 4P + 4C.
"""

from __future__ import annotations

from itertools import takewhile
from operator import eq
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types that use the caller's attention mask in every layer."""

BY_LAYER = ("gemma3_text",)
"""Model types that take a mask for each type of layer."""


def can_share(model: PreTrainedModel, longest: int) -> bool:
    """Whether every layer of ``model`` is known to accept any attention mask.  The sliding window of a :data:`BY_LAYER` model must hold
    ``longest`` tokens, the most of a row; a model of :data:`FAMILIES` must have no window."""
    config = model.config
    window = getattr(config, "sliding_window", None)
    if config.model_type in BY_LAYER:
        return not window or longest <= window
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    return config.model_type in FAMILIES and set(layers) == {"full_attention"} and not window


def share_prompts(model: PreTrainedModel) -> None:
    """Make the model's backbone compute common beginnings once, by hooks around its forward pass.

    After that, the model takes only batches of a preference trainer: ``input_ids`` and ``attention_mask`` of shape ``[N, L]``, padded on
    the right.
    """
    places: list[torch.Tensor] = []
    by_layer = set(model.config.layer_types) if model.config.model_type in BY_LAYER else None

    def lay_together(backbone: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ids, positions, mask, places[:] = pack(kwargs["input_ids"], kwargs["attention_mask"], next(backbone.parameters()).dtype)
        masks = mask if by_layer is None else dict.fromkeys(by_layer, mask)
        return args, {**kwargs, "input_ids": ids, "position_ids": positions, "attention_mask": masks}

    def take_apart(backbone: Any, args: tuple[Any, ...], outputs: Any) -> Any:
        laid, place = places
        outputs.last_hidden_state = outputs.last_hidden_state[laid.unsqueeze(1), place]
        return outputs

    model.base_model.register_forward_pre_hook(lay_together, with_kwargs=True)
    model.base_model.register_forward_hook(take_apart)


def pack(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """If a row shares its first half or more with an earlier row, append the rest of it to that row.

    Args:
        input_ids: ``[N, L]``, padded on the right.
        attention_mask: ``[N, L]``, 1 for a token.
        dtype: Type of the additive mask.

    Returns:
        Token ids ``[M, W]``, positions ``[M, W]``, additive attention mask ``[M, 1, W, W]``; and the packed row of each input row,
        ``[N]``, with the column of each of its tokens, ``[N, L]``.
    """
    import torch

    rows = [row[:length] for row, length in zip(input_ids.tolist(), attention_mask.sum(1).tolist(), strict=True)]
    place = torch.zeros_like(input_ids)
    firsts: list[list[int]] = []
    together: list[list[tuple[int, int, int, int]]] = []  # per token: id, position, its row, how many tokens of the first row it sees
    laid: list[int] = []
    for number, row in enumerate(rows):
        common = [sum(takewhile(bool, map(eq, first, row))) for first in firsts]
        at = max(range(len(firsts)), key=common.__getitem__, default=0)
        if not firsts or 2 * common[at] < len(row):
            at = len(firsts)
            firsts.append(row)
            together.append([])
            common.append(0)
        shared, behind = common[at], len(together[at])
        together[at] += [(token, position, number, shared) for position, token in enumerate(row)][shared:]
        place[number, :shared] = torch.arange(shared)
        place[number, shared : len(row)] = torch.arange(behind, behind + len(row) - shared)
        laid.append(at)
    width = max(map(len, together))
    # Padding sees itself: a row that sees nothing would give NaN.
    packed = torch.tensor([row + [(0, 0, -1, 0)] * (width - len(row)) for row in together], device=input_ids.device)
    ids, positions, owner, visible = packed.unbind(-1)
    column = torch.arange(width, device=input_ids.device)
    seen = (owner.unsqueeze(2) == owner.unsqueeze(1)) | (column < visible.unsqueeze(2))
    seen &= column <= column.unsqueeze(1)
    mask = torch.zeros(seen.shape, dtype=dtype, device=input_ids.device).masked_fill_(~seen, torch.finfo(dtype).min)
    return ids, positions, mask.unsqueeze(1), [torch.tensor(laid, device=input_ids.device), place]
