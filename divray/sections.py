"""Every setting, with its default, its bounds and its meaning."""

from os.path import expanduser
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, HttpUrl, model_validator
from typing_extensions import TypedDict

from divray.relations import as_name


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"the least, {pair[0]:g}, is more than the most, {pair[1]:g}")
    return pair


def _usable(text: str) -> str:
    """Refuse what no file system and no model hub can name."""
    if "\0" in text:
        raise ValueError("a null character")
    if text.startswith("~") and expanduser(text) == text:
        raise ValueError(f"no home folder {text.split('/')[0]!r}")
    return text


Name = Annotated[str, Field(min_length=1), AfterValidator(_usable)]
Count = Annotated[int, Field(ge=1)]


class VllmArguments(TypedDict, total=False):
    """The common arguments of vLLM's engine, and those that divray relies on; any other is allowed, too."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    tensor_parallel_size: Count
    pipeline_parallel_size: Count
    max_model_len: Count
    max_num_seqs: Count
    max_num_batched_tokens: Count
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)]
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"]
    trust_remote_code: Literal[False]


class TaskConfig(Section):
    """The relations and the real data."""

    name: Name = Field(description="Name of the task, as it stands in the report.")
    format: Literal["divray", "semeval", "tacred", "fewrel", "jsonl", "huggingface"] = "divray"
    relations: Name = Field(description="YAML list of relations: name, description, head_type, tail_type, examples; relative to this file.")
    data: Name | None = Field(None, description="Folder that the paths below are relative to; default: the config's folder.")
    train: Name | None = Field(None, description="Human examples from which the seeds are drawn; default: the examples in `relations`.")
    test: Name | None = Field(None, description="Human test examples; default: `test_per_relation` of the training file held out.")
    negatives: Name | None = Field(
        None, description="Human sentences whose head and tail have none of the relations, labelled `none`; to count false positives."
    )
    unlabelled: Name | None = Field(
        None, description="Sentences with marked entities for self-training of the RE model, which reads no labels in them."
    )
    test_per_relation: int | None = Field(None, ge=1)
    seeds_per_relation: int = Field(5, ge=1, description="K seed examples a relation.")
    fewer_seeds: bool = Field(False, description="A relation with fewer than K examples gives those it has; otherwise that is an error.")
    none_label: Annotated[Name, AfterValidator(as_name)] | None = Field(None, description="The label that means: none of the relations.")
    metric: Literal["micro", "macro", "semeval"] = Field(
        "micro", description="F1 that leaves `none_label` out; `semeval`: the official directed macro-F1."
    )


class ModelsConfig(Section):
    """Each is a hub id (`ID@COMMIT` pins it), a folder, a URI, `embedded:smollm2` or `embedded:minilm`; `llm` may be `endpoint`."""

    llm: Name = "embedded:smollm2"
    encoder: Name = "embedded:minilm"


class PromptsConfig(Section):
    """How a relation becomes requests."""

    style: Literal["completion", "chat"] = Field("completion", description="`chat` renders the model's own chat template.")
    strategies: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {"independent": 1.0}, min_length=1, description="Strategy -> share of the candidates."
    )
    pairs: Literal["with", "first"] = Field(
        "with", description="The LLM writes head and tail `with` the sentence, or a pool of pairs `first` and then a sentence for each."
    )
    pairs_file: Name | None = Field(None, description="Your own pairs, relative to this file: .jsonl with relation, head, tail.")
    demonstrations: int = Field(5, ge=1, description="Seed examples shown in a prompt.")
    attributes: bool = Field(
        False, description="Name a topic and a length in each prompt (AttrPrompt, arXiv 2306.15895); for LLMs that follow instructions."
    )
    candidates_per_prompt: int = Field(8, ge=1, description="Candidates that share one prompt text.")


class SamplingConfig(Section):
    """How many candidates, and how they are decoded."""

    candidates_per_relation: int = Field(64, ge=1, description="Candidates a relation and round.")
    naive_candidates_per_relation: int = Field(32, ge=0, description="Candidates of the naive baseline prompt, round 0.")
    temperature: float = Field(0.9, gt=0)
    min_p: float = Field(0.1, ge=0, le=1)
    max_tokens: int = Field(96, ge=8, description="Limit for one record.")
    waves: int | None = Field(None, ge=1, description="Passes of a round, each planned from those before; default: 1, or 6 with `quota`.")
    quota: int | None = Field(None, ge=1, description="A relation with so many accepted samples in a round gets no more requests.")

    @property
    def most_waves(self) -> int:
        return self.waves or (6 if self.quota else 1)


class DiversityConfig(Section):
    """Near-duplicates and diversity scores."""

    seed_threshold: ClassVar[float] = 0.5
    """A sample with at least this Jaccard similarity to a seed example is a copy of it."""

    threshold: float = Field(0.7, gt=0, le=1, description="Jaccard similarity from which two sentences are near-duplicates.")
    mask_entities: bool = Field(True, description="Compare structure, not names and numbers.")
    guard_test: bool = Field(False, description="Drop every sample that is a near-duplicate of a test sentence.")


class CorrectnessConfig(Section):
    """Does the sentence say its relation, in its direction?"""

    llm: Name | None = Field(
        None,
        description="The judge adds this LLM's log-odds of yes, less those for the examples. Hub id, folder, `embedded:…` or `endpoint`.",
    )
    fluency: Name | None = Field(
        "embedded:smollm2",
        description="Small local LLM that reads each sentence for the gate; the default reads best; null: only the encoder judges.",
    )
    reader: Name = Field("embedded:gemma3-270m", description="Another small LLM; from its reading the report says how many are right.")
    threshold: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = Field(
        0.8, description="Least score of the judge for a sample to pass; `auto`: from the answers to `divray review --of scored`."
    )

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.reader == self.fluency:
            raise ValueError("reader and fluency are one LLM, but the report's figure needs a different LLM from the gate's")
        return self


class PreferencesConfig(Section):
    """How pairs are made."""

    mode: Literal["mined", "paper"] = "mined"
    max_pairs_per_relation: int = Field(32, ge=1, description="Half of them are of different chosen texts, where there are so many.")


class AlignmentConfig(Section):
    """DPO with TRL under DeepSpeed ZeRO."""

    method: Literal["lora", "full"] = "lora"
    lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = Field(16, description="The ranks that vLLM takes.")
    learning_rate: float | None = Field(None, gt=0, description="Default: 5e-5 for `lora`, a hundredth of it for `full`.")
    beta: float = Field(0.3, gt=0, description="How near the policy stays to the LLM; at 0.1 its texts become too similar.")
    sft_weight: float = Field(
        0.2, ge=0, description="Weight of the chosen texts' likelihood, which DPO's loss alone may lower (arXiv 2404.19733)."
    )
    epochs: float = Field(1.0, gt=0)
    pairs_per_step: int = Field(8, ge=1, description="Pairs a step over all workers, which share them evenly.")
    batch_size: int = Field(4, ge=1, description="Most pairs that a worker computes at once; changes memory, not the result.")
    max_length: int = Field(512, ge=32, description="Tokens of prompt + completion.")
    zero_stage: int = Field(2, ge=0, le=3)
    precision: Literal["bf16", "fp32"] = Field("bf16", description="A CPU that is faster in fp32 or a GPU without bf16 makes all use fp32.")
    gradient_checkpointing: bool | None = Field(
        None, description="Saves memory for about a third more computing; default: on from 3 B parameters."
    )


class SelectionConfig(Section):
    """Which samples make the data set."""

    k: int = Field(16, ge=1, description="Samples a relation.")
    diversity_weight: float = Field(0.5, ge=0, le=1, description="0: by correctness alone; 1: by diversity alone.")


class ExtractionConfig(Section):
    """The RE model: a linear discriminant on an encoder's spans, in closed form; with `epochs` a tuned network votes beside it."""

    generated_weight: float = Field(
        0.125, ge=0, description="Weight of a relation's samples together, where its examples have 1; one counts at most half an example."
    )
    epochs: int = Field(0, ge=0, description="Of the tuned network; a minute for 300 rows on two cores. The search tries 0 and 12.")
    learning_rate: float = Field(2e-4, gt=0, description="For a small encoder; large ones need about 3e-5.")
    trials: int = Field(
        8, ge=0, description="Trials of the search by cross-validation on the human examples; the first has the usual values; 0: no search."
    )


class EvaluationConfig(Section):
    """What is compared on the test set."""

    draws: int = Field(10, ge=1, description="Draws of the human examples: the run's own, and others where there are more than K.")
    llm: bool = Field(True, description="Let the LLM do RE itself, constrained to the labels.")
    llm_test_limit: int | None = Field(None, ge=1, description="Test sentences (a seeded sample) given to the LLM; default: all.")


class EndpointConfig(Section):
    """An OpenAI-compatible server; `models.llm: endpoint` sends the requests there."""

    url: HttpUrl = Field(description="Base URL, including `/v1`.")
    model: Name = Field(description="Name of the model on that server.")
    key_variable: str = Field(
        "OPENAI_API_KEY", pattern=r"^[A-Za-z_]\w*$", description="Environment variable of the driver that holds the key; may be unset."
    )
    concurrency: int = Field(32, ge=1, description="Requests in flight, at most.")
    max_retries: int = Field(6, ge=0, description="Retries after 408, 409, 429, 5xx or a lost connection, with growing waits.")
    timeout: float = Field(120, gt=0, description="Seconds for one try.")
    vllm: bool = Field(True, description="The server is vLLM: it takes `min_p` and the decoding constraint.")


class EngineConfig(Section):
    """How the LLM is served."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    concurrency: Count | Annotated[tuple[Count, Count], Field(strict=False), AfterValidator(_ordered)] = Field(  # YAML has no tuples
        1, description="Number of engine actors; [min, max]: a run needs room for min, and starts up to max where it has room."
    )
    cpus: float | None = Field(None, gt=0, description="Ray CPUs of an engine actor; default: 4 where it runs on GPUs, else 0.5.")
    batch_size: int | None = Field(
        None, ge=1, description="Candidates in a batch, which comes back as a whole; null: from the engine's capacity."
    )
    vllm: VllmArguments = Field(VllmArguments(), description="Any vLLM engine argument.")
    endpoint: EndpointConfig | None = None

    @property
    def pool(self) -> tuple[int, int]:
        """The engine actors that the cluster must have room for, and those that are asked of it."""
        return (self.concurrency, self.concurrency) if isinstance(self.concurrency, int) else self.concurrency


class ClusterConfig(Section):
    """What Ray is given."""

    address: Name | None = Field(
        None, description="HOST:PORT of a head, or `auto`; default: RAY_ADDRESS, else a cluster of this machine's own."
    )
    train_workers: int = Field(1, ge=1, description="Ray Train workers for DPO.")
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float | None = Field(None, ge=0, description="Of a DPO worker; default: 1 where the LLM runs on GPUs, else 0.")
    worker_cpus: float = Field(0.5, gt=0, description="Ray CPUs of a scoring or RE training task.")
    worker_gpus: float | None = Field(
        None, ge=0, description="GPUs of an encoder, judge or RE training task; default: 0.25 where the LLM runs on GPUs, else 0."
    )
    environment: list[str] = Field(
        [],
        description="Further variables of the driver to pass to workers; the dashboard shows them in plain text, in the job's runtime env.",
    )


HOW_SECTIONS = ("engine", "cluster")
"""These may change between two calls on a run folder; all others say *what* to make, and identify the run."""


class Config(Section):
    """Everything that a run needs to know."""

    task: TaskConfig
    seed: int = Field(13, ge=0, lt=2**31, description="Of every random choice.")
    rounds: int = Field(2, ge=1, le=99, description="Sampling rounds; a DPO pass stands between two rounds.")
    models: ModelsConfig = ModelsConfig()
    prompts: PromptsConfig = PromptsConfig()
    sampling: SamplingConfig = SamplingConfig()
    diversity: DiversityConfig = DiversityConfig()
    correctness: CorrectnessConfig = CorrectnessConfig()
    preferences: PreferencesConfig = PreferencesConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    selection: SelectionConfig = SelectionConfig()
    extraction: ExtractionConfig = ExtractionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    engine: EngineConfig = EngineConfig()
    cluster: ClusterConfig = ClusterConfig()

    def what(self) -> dict[str, Any]:
        """The settings that identify a run, as plain JSON values."""
        return self.model_dump(mode="json", exclude=set(HOW_SECTIONS))
