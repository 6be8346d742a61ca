"""The whole config of a run, section by section."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from cluster.config.alerts import AlertConfig
from data_pipeline import storage
from data_pipeline.config import DataConfig, TokensConfig
from data_pipeline.images.views import check_fit
from data_pipeline.sources.nesting import refuse_nesting, refuse_overlap, refuse_writing_into
from data_pipeline.storage.places import InputPlace, OutputPlace
from model.config import Section
from trainer.config import (
    LONGEST_WAIT,
    EvaluationConfig,
    GeneratorStageConfig,
    GeneratorValidationConfig,
    SamplingConfig,
    TeacherConfig,
    TokenizerStageConfig,
    TrackingConfig,
    ValidationConfig,
)
from trainer.config.workers import Workers
from trainer.registry import FOLDERS, STAGES, TRAINING, stage_in


def _read_gpus(value: Any) -> int:
    """The GPUs of a worker: none or one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in {0, 1}:
        raise ValueError(
            f"{value} GPUs per worker: give 1, or 0 for CPUs. A worker has its GPU for itself; for more GPUs give more "
            "workers (cluster.workers for training, tokens.max_workers for tokenize)"
        )
    return int(value)


Gpus = Annotated[int, PlainValidator(_read_gpus), WithJsonSchema({"enum": [0, 1]})]


class ClusterConfig(Section):
    """Where and how widely stages run. Only this and the precision differ between a laptop and a cluster."""

    address: str | None = None
    """HOST:PORT of a Ray cluster's head, `auto` for the one that runs on this machine, or `local` for one that the
    command starts here and ends; null uses the one in RAY_ADDRESS, or else `local`."""
    workers: Workers = 1
    """Training workers (processes): a number, or MIN:MAX for a stage that goes on with those that are left when some
    are lost, and takes more when there is room. The global batch stays; see docs/elastic.md."""
    grow_seconds: float = Field(60, gt=0, le=LONGEST_WAIT)
    """With MIN:MAX: seconds between looks for room for more workers."""
    cpus_per_worker: float = Field(1, gt=0, le=4_096)
    """CPUs that each worker reserves; each uses as many threads."""
    gpus_per_worker: Gpus = 0
    """GPUs that each worker of training and of tokenize reserves: 0 for CPUs, also where the machine has GPUs, or 1.
    More GPUs are more workers. `sample` and `evaluate` use a GPU if this is 1 and they see one."""
    peak_tflops: float | None = Field(None, gt=0, le=1_000_000)
    """TFLOP/s that one device could do in the precision of training, for MFU; null takes a known device's from a table.
    Without either, MFU is left out."""
    max_failures: int = Field(3, ge=-1, le=1_000_000)
    """Times that Ray restarts a stage whose worker died, without a new checkpoint in between; -1 for no limit."""
    preflight: Literal["auto", "always", "never"] = "auto"
    """Check the nodes before the first step of a training (docs/clusters/doctor.md): versions, disks, storage, network,
    speed. What is broken or slow is left out where there are spare nodes; else an error ends the command. auto: where
    workers may be on more than one machine."""

    @property
    def fewest_workers(self) -> int:
        """The number of workers, or the least of them."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """The number of workers, or the most of them."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def is_elastic(self) -> bool:
        """Whether the number may change while a stage runs."""
        return not isinstance(self.workers, int)


class InputsConfig(Section):
    """What a run takes from elsewhere, and does not make: finished products of another run, or imported ones.

    Each is the URI of the run that made it, or of the product itself: a folder of shards, an export. Nothing is ever
    written there.
    """

    images: InputPlace | None = None
    """Image shards, in place of `data.source`. If the run held images out, its validation images are taken, too."""
    teacher: InputPlace | None = None
    """A trained teacher, in place of the section `teacher`."""
    proxy: InputPlace | None = None
    """A trained tokenizer whose codes the one that is trained learns to predict (TiTok's stage 1)."""
    judge: InputPlace | None = None
    """A trained judge, in place of `evaluation.judge`."""
    tokenizer: InputPlace | None = None
    """A trained tokenizer, in place of the section `tokenizer`, which may then be left out."""
    tokens: InputPlace | None = None
    """Token shards that this tokenizer has made, in place of what `tokenize` makes."""
    held_out_tokens: InputPlace | None = None
    """Tokens of images that nothing is trained on, which `generator.validation` looks at: a set of token shards, or the
    run that made one. Null: those that lie beside the tokens, where `tokenize` puts them (`held_out/`)."""
    generator: InputPlace | None = None
    """A trained generator to sample from and to evaluate, in place of the section `generator`."""


class RunConfig(Section):
    """A run: from raw images to generated ones."""

    run: OutputPlace
    """Folder of the run, at any URI. Each stage has its own folder below it."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of everything that is random."""
    inputs: InputsConfig = InputsConfig()
    """What it takes from other runs and imports."""
    data: DataConfig = DataConfig()
    """From raw images to image shards."""
    teacher: TeacherConfig | None = None
    """The frozen teacher."""
    tokenizer: TokenizerStageConfig | None = None
    """The image tokenizer. Null where `inputs` names one, or tokens alone."""
    tokens: TokensConfig = TokensConfig()
    """From image shards to token shards."""
    generator: GeneratorStageConfig | None = None
    """The generator. Null in a run that makes a tokenizer or tokens for others."""
    sampling: SamplingConfig = SamplingConfig()
    """How images are drawn."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How the result is judged."""
    tracking: TrackingConfig = TrackingConfig()
    """Who is shown its metrics."""
    alerts: tuple[AlertConfig, ...] = Field((), max_length=16)
    """Who is told when it stalls, spikes, slows down, fails or is finished."""
    cluster: ClusterConfig = ClusterConfig()
    """Where it runs."""
    accept_changes: bool = False
    """Let a stage go on with other settings of its optimizer than it was begun with: learning rate and its schedule,
    steps, decay, clipping, precision, spikes. A finished stage goes on only with more steps, from its last checkpoint.
    What has changed, and at which step, is an event in events.jsonl."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_inputs()
        loss = self.tokenizer.loss if self.tokenizer and not self.inputs.tokenizer else None
        if loss and loss.needs_teacher and not self.has("teacher"):
            named = " and ".join(f"tokenizer.loss.{term}" for term in loss.terms_with_teacher)
            raise ValueError(
                f"a teacher is missing, through which {named} looks: add the section teacher, name a trained one as "
                "inputs.teacher, or leave that out"
            )
        self._check_proxy()
        if self.generator and not self.inputs.generator:
            self.sampling.order_of(self.generator.model)
        check_fit(self.data.fit, self.tokens.views)
        self._check_validation()
        self._check_places()
        return self

    def _check_validation(self) -> None:
        """What is looked at while a tokenizer or a generator trains has to be held out."""
        looks = self.tokenizer is not None and self.tokenizer.validation is not None and not self.inputs.tokenizer
        held_out = self.data.validation_samples or self.data.validation_source or self.given("images")
        if looks and self.data.source and not held_out:
            raise ValueError(
                "tokenizer.validation looks at images that nothing is trained on, and none are held out: set "
                "data.validation_samples or data.validation_source, or tokenizer.validation to null"
            )
        asked = self.generator.validation if self.generator and not self.inputs.generator else None
        self._check_distances(self.tokenizer.validation if looks and self.tokenizer else None, asked)
        if asked and asked.distance and self.data.source and not held_out:
            raise ValueError(
                "generator.validation.distance compares samples with images that nothing is trained on, and none are "
                "held out: set data.validation_samples or data.validation_source, or generator.validation.distance to "
                "null"
            )
        held_out = held_out or self.given("tokens") or self.inputs.held_out_tokens
        if asked and asked.samples and self.data.source and not held_out:
            raise ValueError(
                "generator.validation looks at tokens of images that nothing is trained on, and none are held out: set "
                "data.validation_samples or data.validation_source, generator.validation.samples to 0 for pictures "
                "alone, or generator.validation to null"
            )

    def _check_distances(self, tokenizer: ValidationConfig | None, generator: GeneratorValidationConfig | None) -> None:
        """What images are compared by is there."""
        for stage, asked in (("tokenizer", tokenizer), ("generator", generator)):
            if asked and asked.distance and asked.distance.network is None and not self.has("teacher"):
                key = f"{stage}.validation.distance"
                raise ValueError(
                    f"{key} compares images in the features of the run's own teacher, and there is none: name another "
                    f"network as {key}.network, a trained teacher as inputs.teacher, or set {key} to null"
                )

    def _check_inputs(self) -> None:
        """What the run makes has its section, and what is given is not asked for twice."""
        given = self.inputs
        if not (given.images or given.tokens or self.data.source):
            raise ValueError("data.source is missing: say where raw images are, or name image shards: inputs.images")
        if not (given.tokenizer or given.tokens or self.tokenizer):
            raise ValueError("tokenizer is missing: add that section, or name a trained one: inputs.tokenizer")
        for stage in STAGES:
            if stage.place and self.given(stage.folder) and self.section(stage.place):
                raise ValueError(
                    f"inputs.{stage.folder} says where the {stage.folder} are, and {stage.place} where this run puts "
                    "its own: set one of them"
                )
        if given.teacher and self.teacher and self.teacher.timm:
            raise ValueError("inputs.teacher and teacher.timm both name a teacher: set one of them to null")

    def _check_proxy(self) -> None:
        """A tokenizer that learns from a proxy has one."""
        trained = None if self.inputs.tokenizer else self.tokenizer
        if trained is not None and trained.model.needs_proxy and self.inputs.proxy is None:
            raise ValueError(
                "tokenizer.model learns to predict the codes of a proxy, and none is given: name a trained tokenizer, "
                "its run or its export, as inputs.proxy"
            )

    def with_classes(self, present: int) -> RunConfig:
        """The same with the number of classes of the data, wherever `num_classes` is null."""
        config = self
        for path, section in self.class_sections().items():
            model = section.model.with_classes(present)
            config = _replaced(config, path.split("."), section.model_copy(update={"model": model}))
        return config

    def class_sections(self) -> dict[str, Any]:
        """The sections, by their dotted paths, of the networks that know the classes of the data."""
        found = {stage.section: self.section(stage.section) for stage in TRAINING}
        return {path: section for path, section in found.items() if section and hasattr(section.model, "with_classes")}

    def section(self, path: str) -> Any:
        """The section at a dotted path; None if this config has none."""
        return functools.reduce(lambda at, key: at and getattr(at, key), path.split("."), self)

    def _check_places(self) -> None:
        """No data set lies in another, or in a source."""
        written = {name: self.folder(name) for name in FOLDERS if not self.given(name)}
        written = {self._place_name(name): uri for name, uri in written.items()}
        refuse_overlap(written)
        given = {f"inputs.{name}": uri for name in (*FOLDERS, "proxy", "held_out_tokens") if (uri := self.given(name))}
        refuse_writing_into(given, written, self.run)
        cache = self.data.reading.cache_dir
        refuse_nesting(self.data, written, {"run": self.run} | ({"data.reading.cache_dir": cache} if cache else {}))

    def given(self, product: str) -> str | None:
        """Where a product of a stage (`trainer.registry.FOLDERS`) comes from, if the run does not make it."""
        return getattr(self.inputs, product, None)

    def has(self, product: str) -> bool:
        """Whether the run makes a product, or is given it."""
        stage = stage_in(product)
        needed = "data.source" if stage.folder == "images" else stage.section
        return self.given(product) is not None or self.section(needed) is not None

    def product(self, name: str) -> str:
        """URI of a finished product: of image shards for training, of token shards, of a network's export.

        A given one has been looked for before (cluster/stages/inputs.py): until then it may be the URI of its run.
        """
        below = stage_in(name).finished
        return self.given(name) or (storage.join(self.folder(name), below) if below else self.folder(name))

    def folder(self, name: str) -> str:
        """URI of a folder of this run (`trainer.registry.FOLDERS`)."""
        return self._place(name) or storage.join(self.run, name)

    def _place_name(self, name: str) -> str:
        return stage_in(name).place if self._place(name) else f"{name} of the run"

    def _place(self, name: str) -> str | None:
        """Where the config puts what belongs in a folder of the run, if elsewhere."""
        path = stage_in(name).place
        return self.section(path) if path else None


def _replaced(section: Any, path: Sequence[str], value: Any) -> Any:
    """A section with another value at a path."""
    key, *rest = path
    return section.model_copy(update={key: _replaced(getattr(section, key), rest, value) if rest else value})
