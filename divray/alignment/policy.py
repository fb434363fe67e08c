"""Turn trained weights into a policy folder that vLLM and transformers can load."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from divray.run_folder import RunFolder


def publish_policy(run: RunFolder, name: str, base: str, reference: str, trained: Path, lora: bool) -> None:
    """Write the policy of one round to folder ``name`` of the run: safetensors, JSON and tokenizer.

    The weights keep the dtype of the base model.  A LoRA adapter is merged into them
    (``W + alpha / r * B A``, arXiv 2106.09685) and also saved on its own in ``adapter/``.

    Args:
        base: The base model as this process reads it (a folder or hub id).
        reference: The base model as the run names it, written into the adapter's configuration.
        trained: Folder of the trained weights: the adapter, or the full model.
        lora: Whether ``trained`` is an adapter.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # else ZeRO-3 shards the model below, which is loaded only to be saved
    dtype = getattr(AutoConfig.from_pretrained(base), "dtype", None) or torch.float32
    with tempfile.TemporaryDirectory(dir=trained.parent) as temporary:  # the next try removes what a killed one leaves there
        folder = Path(temporary)
        model = AutoModelForCausalLM.from_pretrained(base if lora else trained, dtype=dtype)
        if lora:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(trained)).merge_and_unload()
            _copy_adapter(trained, folder / "adapter", reference)
        model.save_pretrained(folder, max_shard_size="2GB")  # several files go to and from an object store at the same time
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
        run.upload(folder, name)


def _copy_adapter(trained: Path, folder: Path, reference: str) -> None:
    folder.mkdir()
    shutil.copy(trained / "adapter_model.safetensors", folder)
    settings = json.loads((trained / "adapter_config.json").read_text())
    settings |= {"base_model_name_or_path": reference, "target_modules": sorted(settings["target_modules"])}
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
