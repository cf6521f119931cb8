"""The keys of a configuration and their types; options of tasks, data and plugins are checked by who reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, WrapValidator

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+=,-]*$")]
Whole = Annotated[int, Field(strict=True)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class OptimizerConfig(BaseModel):
    """An optimizer by its class; its options stand beside."""

    model_config = ConfigDict(extra="allow", serialize_by_alias=True)

    target: str = Field(alias="_target_")


class TrainerConfig(_Strict):
    """``trainer``."""

    epochs: Whole = Field(ge=1)
    val_every: Whole = Field(ge=1)
    optimizer: dict[str, Any]
    optimizers: dict[str, OptimizerConfig]
    scheduler: dict[str, Any]
    clip: Real | None = Field(gt=0)
    accumulate: Whole = Field(ge=1)
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]
    channels_last: bool
    compile: bool
    accelerator: Literal["auto", "cpu", "gpu", "cuda"]
    devices: Whole = Field(ge=1)
    strategy: Literal["auto", "ddp"]  # several devices are always DDP
    threads: Whole | None = Field(ge=1)
    max_minutes: Real | None = Field(gt=0)
    manual: bool


class CorpusConfig(_Strict):
    """``teacher.corpus``: what the teacher writes before the student is trained."""

    texts: Whole = Field(ge=1)
    temperature: Real | None = Field(1.0, gt=0)
    seed: Seed = 0
    beside: bool = False


class TeacherConfig(BaseModel):
    """``teacher``; options of a network of the user's own stand beside."""

    model_config = ConfigDict(extra="allow")

    seed: Seed
    init_from: str | list[str] | None
    answers: str | None
    replay: Whole | None = Field(ge=1)
    replay_limit: Real = Field(gt=0)
    replay_dtype: Literal["float32", "float16"]
    corpus: dict[str, Any] = {}
    expect: Real | None
    tolerance: Real = Field(ge=0)
    trainer: dict[str, Any]
    data: dict[str, Any]
    augment: dict[str, Any]


class StudentConfig(BaseModel):
    """``student``; options of a network of the user's own stand beside."""

    model_config = ConfigDict(extra="allow")

    init_from: str | None
    trainer: dict[str, Any]


class ScratchConfig(_Strict):
    """``scratch``: of the student trained alone."""

    matched: bool = False


def _one_or_several(value: Any, check: Callable[[Any], int]) -> Any:
    """Takes a seed, or several different ones."""
    if not isinstance(value, list | tuple):
        return check(value)
    seeds = [check(one) for one in value]
    if len(set(seeds)) < max(2, len(seeds)):
        raise ValueError("expected one seed, or several different ones in brackets")
    return seeds


class TuningConfig(_Strict):
    """``tuning``."""

    trials: Whole = Field(ge=0)
    factors: list[Annotated[Real, Field(gt=0)]] = Field(min_length=1)
    length: Real = Field(gt=0, le=1)
    seed: Annotated[Seed, WrapValidator(_one_or_several)]


class TaskConfig(BaseModel):
    """``task``: what the engine reads of it; its own options stand beside."""

    name: Name
    noise: Real | None = Field(0.0, ge=0)


class ChoiceConfig(BaseModel):
    """``pair``, ``preset`` or ``logger``: what every one has."""

    name: str


class OwnerConfig(BaseModel):
    """``method``, ``augment`` or ``quant``: what the engine reads of it; its own options stand beside."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]  # as the record keeps them

    name: Name
    weights: dict[str, Any] | None = None
    bind: dict[str, str | list[str] | None] | None = None
    optimizer: OptimizerConfig | None = None
    optimizers: dict[str, OptimizerConfig] | None = None


class SideConfig(BaseModel):
    """``pair.student`` or ``pair.teacher``: what the engine reads of it."""

    architecture: dict[str, Any] | None
    taps: dict[str, str] | None = None
    parts: dict[str, str] | None = None
    init_from: str | list[str] | None = None


class TwinConfig(_Strict):
    """``pair.twin``: what the student alone has otherwise than the distilled one."""

    trainer: dict[str, Any]


class Config(_Strict):
    """The whole configuration, resolved."""

    task: dict[str, Any]
    data: dict[str, Any]
    pair: dict[str, Any]
    method: dict[str, Any]
    augment: dict[str, Any]
    quant: dict[str, Any]
    trainer: TrainerConfig
    logger: dict[str, Any]
    preset: dict[str, Any]
    seed: Seed
    results: str
    cache: str | None
    rerun: bool
    role: Literal["student", "teacher"] | None
    teacher: TeacherConfig
    student: StudentConfig
    scratch: ScratchConfig = ScratchConfig()
    tuning: TuningConfig
