"""One pass over the prompt for both sides of a preference pair.

DPO scores ``prompt + chosen`` and ``prompt + rejected``.  A causal model gives equal tokens in an
equal context equal hidden states, so the common beginning needs to be computed once: a pair becomes
the row ``beginning, rest of chosen, rest of rejected`` with an attention mask that hides the rest
of one side from the other, and positions that count from the beginning for both.  The states come
back in their usual places, so that the loss doesn't notice.  With a prompt of P and completions of
C tokens this computes P + 2C positions instead of 2P + 2C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose every layer attends through a mask that the caller may give."""

BY_LAYER = ("gemma3_text",)
"""Model types that take a mask for each type of layer."""


def can_share(model: PreTrainedModel, longest: int) -> bool:
    """Whether ``model`` is known to take an attention mask of any shape in each of its layers, with sides of up to ``longest`` tokens,
    which a sliding window must hold."""
    config = model.config
    window = getattr(config, "sliding_window", None)
    if config.model_type in BY_LAYER:
        return not window or longest <= window
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    return config.model_type in FAMILIES and set(layers) == {"full_attention"} and not window


def share_prompts(model: PreTrainedModel) -> None:
    """Make the model's backbone compute common beginnings once, by hooks around its forward pass.

    From then on its batches must be those of a preference trainer: ``input_ids`` and
    ``attention_mask`` of shape ``[2B, L]``, padded on the right, row ``i`` and row ``B + i`` the two
    sides of one pair.
    """
    import torch

    places: list[torch.Tensor] = []
    by_layer = set(model.config.layer_types) if model.config.model_type in BY_LAYER else None

    def lay_together(backbone: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ids, positions, mask, places[:] = pack(kwargs["input_ids"], kwargs["attention_mask"].bool(), next(backbone.parameters()).dtype)
        masks = mask if by_layer is None else dict.fromkeys(by_layer, mask)
        return args, {**kwargs, "input_ids": ids, "position_ids": positions, "attention_mask": masks}

    def take_apart(backbone: Any, args: tuple[Any, ...], outputs: Any) -> Any:
        hidden = outputs.last_hidden_state
        sides = [hidden.gather(1, place.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])) for place in places]
        outputs.last_hidden_state = torch.cat(sides)
        return outputs

    model.base_model.register_forward_pre_hook(lay_together, with_kwargs=True)
    model.base_model.register_forward_hook(take_apart)


def pack(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Lay the two sides of each pair into one row.

    Args:
        input_ids: ``[2B, L]``, chosen sides first, padded on the right.
        attention_mask: ``[2B, L]`` booleans.
        dtype: Type of the additive mask.

    Returns:
        Token ids ``[B, W]``, positions ``[B, W]``, additive attention mask ``[B, 1, W, W]``, and for
        each side the place in ``W`` of each of its ``L`` tokens, ``[B, L]``.
    """
    import torch

    (chosen, rejected), (real, real_rejected) = input_ids.chunk(2), attention_mask.chunk(2)
    shared = ((chosen == rejected) & real & real_rejected).long().cumprod(1).sum(1, keepdim=True)
    length, rest = real.sum(1, keepdim=True), real_rejected.sum(1, keepdim=True) - shared
    width, columns = int((length + rest).max()), input_ids.shape[1]

    place = torch.arange(width, device=input_ids.device).unsqueeze(0)
    first = place < length
    second = ~first & (place < length + rest)
    positions = torch.where(first, place, torch.where(second, place - length + shared, 0))
    source = positions.clamp(max=columns - 1)
    ids = torch.where(first, chosen.gather(1, source), rejected.gather(1, source))

    row, column = place.unsqueeze(2), place.unsqueeze(1)
    other = second.unsqueeze(2) & first.unsqueeze(1) & (column >= shared.unsqueeze(2))
    seen = (column <= row) & (first | second).unsqueeze(1) & ~other
    seen |= row == column  # a padding row that sees nothing would give NaN
    mask = torch.zeros(seen.shape, dtype=dtype, device=input_ids.device).masked_fill_(~seen, torch.finfo(dtype).min)

    token = torch.arange(columns, device=input_ids.device).unsqueeze(0).expand(chosen.shape[0], -1)
    moved = torch.where(token < shared, token, token - shared + length)
    return ids, positions, mask.unsqueeze(1), [token.clamp(max=width - 1), moved.clamp(max=width - 1)]
