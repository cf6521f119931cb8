"""One run: the stages that its configuration asks for, and the record that they leave."""

from __future__ import annotations

import contextlib
import functools
import io
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.text import Text

from kdbench.base import endings, outcomes
from kdbench.base.digest import digest, source_digest
from kdbench.base.store import Product
from kdbench.base.terminal import decimals, terminal
from kdbench.configuration.network import architectures
from kdbench.configuration.resolved import resolve
from kdbench.errors import KDBenchError
from kdbench.records.provenance import files_of, provenance
from kdbench.records.record import PREVIEW, RUN, read_record, spec_hash, teacher_of, write_record
from kdbench.records.schema import TAUGHT, Cost, Dataset, Model, Primary, Record, RoleScores, Term, Tuning
from kdbench.runs import vocabularies
from kdbench.runs.report import show
from kdbench.runs.trainings import Trainings
from kdbench.runs.tuning import tune
from kdbench.training.recipe import DEPLOYED, MODEL, PACKED, Recipe

if TYPE_CHECKING:
    from torch import nn

    from kdbench.needs import Artifact
    from kdbench.task import Batch, Task


#: Class of the ``wandb`` module for each kind of ``Task.media``.
MEDIA = {"object3d": "Object3D"}


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        status: ``ok``, ``failed`` or ``diverged``.
        path: Folder of the record.
        record: Its content.
    """

    status: str
    path: Path
    record: Record


#: What the record calls the student that was trained alone for as much compute as the distilled one.
MATCHED = "scratch_matched"


class Run:
    """A configuration on its way to a record.

    Args:
        config: Resolved and checked.
        command: The command that composes it.
        console: Where to report.
        job: Who reports, where several do.
    """

    def __init__(
        self, config: Mapping[str, Any], command: str, console: Console | None = None, job: str | None = None
    ) -> None:
        self.config = config
        self.command = command
        self.console = console or terminal()
        self.label = f"{job} · " if job else ""
        self.started = datetime.now(UTC)
        resolved = resolve(config)
        self.task = resolved.task
        self.trainings = Trainings(resolved, self._follow)
        self.loggers: list[Any] = []
        self.media: dict[str, Callable[[ModuleType], Any]] = {}

    @functools.cached_property
    def spec(self) -> str:
        """Digest that joins the seeds of one specification on one data set."""
        return spec_hash({**self.config, "dataset": self.task.dataset().digest})

    def execute(self) -> Outcome:
        """Trains what is missing, scores, and writes the record; a run that has its record is not run again.

        Raises:
            KDBenchError: Bad input; nothing is written.
        """
        self.task.prepare()
        run_id = f"{self.spec[:10]}-s{self.config['seed']}-{self.trainings.main_recipe.key[:8]}"
        folder = self._folder(run_id)
        if not self.config["rerun"] and (folder / RUN).is_file():
            record = read_record(folder)
            if record.status == "ok" and (MATCHED in record.scores or not self._matches):
                self.console.print(f"{self.label}This run has its record (rerun=true runs it again):")
                show(record, folder, self.console)
                return Outcome("ok", folder, record)
        from kdbench.training.processes import threads

        # Also what is found in the store is measured with the threads that the record names.
        with self._logging(run_id), threads(self.config["trainer"]["threads"], 1):
            outcome = self._attempt(run_id)
            self._publish(outcome)
        if outcome.status == "ok":
            show(outcome.record, outcome.path, self.console)
        return outcome

    def _folder(self, run_id: str) -> Path:
        return Path(self.config["results"]).joinpath(self.config["task"]["name"], self.config["method"]["name"], run_id)

    def _succeeded(self, run_id: str) -> bool:
        """Says whether an earlier run left its record."""
        folder = self._folder(run_id)
        return (folder / RUN).is_file() and read_record(folder).status == "ok"

    def _attempt(self, run_id: str) -> Outcome:
        from kdbench.training.history import Diverged

        try:
            record, files = self._record(run_id)
        except Diverged as error:
            return self._failed(run_id, "diverged", str(error))
        except KDBenchError:
            raise
        except Exception as error:
            endings.check(endings.LATE)
            self.console.print(traceback.format_exc())
            return self._failed(run_id, "failed", f"{type(error).__name__}: {error}")
        path = write_record(Path(self.config["results"]), record, files, replace=True)
        return Outcome("ok", path, record)

    def _follow(self, name: str) -> tuple[list[Any], list[Any]]:
        from kdbench.runs.progress import Bar

        main = self.config["role"] or "student"
        if main == "student" and not self.trainings.distils:
            main = "scratch"
        return [Bar(self.label + name, self.task.selection, self.console)], self.loggers if name == main else []

    @contextlib.contextmanager
    def _logging(self, run_id: str) -> Iterator[None]:
        from kdbench.mirror.loggers import opened
        from kdbench.mirror.wandb_run import RunInfo

        directions = {f"val/{self.task.primary}": self.task.higher_is_better}
        info = RunInfo.of(self.config, run_id=run_id, spec_hash=self.spec, directions=directions)
        with opened(self.config["logger"], info, Path(self.config["results"])) as self.loggers:
            yield

    def _publish(self, outcome: Outcome) -> None:
        """Shows the record where the run was logged; one that failed ends there as failed."""
        from kdbench.mirror.loggers import publish

        for logger in self.loggers:
            publish(logger, outcome.record, outcome.path, self.media)

    # ---- the record -------------------------------------------------------------------------------------------

    def _record(self, run_id: str) -> tuple[Record, dict[str, Path | bytes | str]]:
        role = self.config["role"]
        self.trainings.check_data()
        for key, seen_through in self.trainings.rehearse().items():
            self.console.print(f"{self.label}{key}: {seen_through}", soft_wrap=True)
        _check_machine(self.trainings.main_recipe.trainer)
        _check_writable(Path(self.config["results"]))
        trainings = self.trainings.chosen() if role != "teacher" else self.trainings
        made = {} if role == "student" else {"teacher": trainings.teacher()}
        tuning: Tuning | None = None
        beside: Mapping[str, Product] = {}
        if role != "teacher":
            beside = trainings.scored()
            scratch, tuning = trainings.scratch(), tune(trainings)
            student = scratch if not trainings.distils else trainings.student(tuning.factor if tuning else 1.0)
            made |= {"scratch": scratch, "student": student}
        products = {name: product for name, product in made.items() if product is not None}
        main = products["teacher" if role == "teacher" else "student"]
        if not main.fresh:
            self._replay(main)
        self.console.print(f"{self.label}scores: drawing the picture, measuring the student")
        models, preview, compared, apart = self._look(products, trainings)
        matched, stretched = self._matched(products, models, trainings)
        absent = trainings.absent
        gap, reason, flags = gap_closed(products, self.task, self.config["task"].get("noise"), absent)
        info = self.task.dataset()
        taught = [f"{TAUGHT}{s.given['name']}" for s in trainings.resolved.taught.values()]
        config = OmegaConf.to_yaml(OmegaConf.create(dict(trainings.config)))
        method = self.config["method"]
        record = Record(
            run_id=run_id,
            spec_hash=self.spec,
            code_digest=source_digest(trainings.main_recipe.modules),
            status="ok",
            flags=[*flags, *taught, *trainings.twin_flags, *stretched, *apart, *main.manifest["flags"], *info.notes],
            **self._names(),
            options={k: v for k, v in method.items() if k not in ("name", "_target_")},
            fidelity=self._fidelity(),
            origin="measured",
            command=self.command,
            tuning=tuning,
            dataset=Dataset(
                name=info.name,
                embedded=info.embedded,
                digest=info.digest,
                fold=info.fold,
                sizes=dict(info.sizes),  # type: ignore[arg-type]
                classes=list(info.classes),
                inputs=dict(info.inputs),
            ),
            primary=Primary(name=self.task.primary, higher_is_better=self.task.higher_is_better, unit=self.task.unit),
            scores=_scores(products, compared) | _scores({**beside, **matched}, {}),
            gap_closed=gap,
            gap_reason=reason,
            cost=Cost(**main.manifest["cost"]),
            models=models,
            terms={name: Term(**term) for name, term in main.manifest["terms"].items()},
            provenance=provenance(digest(dict(trainings.config)), self.started, files_of(self.config)),
        )
        files: dict[str, Path | bytes | str] = {
            "config.yaml": config,
            "metrics.csv": main.path / "metrics.csv",
            ("teacher" if role == "teacher" else "student") + ".safetensors": main.path / MODEL,
            PREVIEW: preview,
            **{name: main.path / name for name in main.manifest["pictures"]},
        }
        scored = {name: product.manifest.get("outcomes") for name, product in {**products, **matched}.items()}
        contributed = outcomes.of_files(scored, "teacher" if role == "teacher" else "student")
        files |= {outcomes.OUTCOMES: contributed} if contributed else {}
        if role is None:
            left = [name for name in (DEPLOYED, PACKED) if (main.path / name).is_file()]
            left += [f"{name}.safetensors" for name in main.manifest["beside"]]
            files |= {name: main.path / name for name in left}
        return record, files

    @property
    def _matches(self) -> bool:
        """Whether a compute-matched twin is asked for and can be."""
        asked = bool((self.config.get("scratch") or {}).get("matched"))
        return asked and self.config["role"] is None and self.trainings.distils and not self.trainings.no_twin

    def _matched(
        self, products: Mapping[str, Product], models: Mapping[str, Model], trainings: Trainings
    ) -> tuple[dict[str, Product], list[str]]:
        """Trains the student alone for as much compute as the distilled one had; returns it and a flag that says so."""
        if not self._matches:
            return {}, []
        own, alone = (compute(products[role].manifest["cost"], models) for role in ("student", "scratch"))
        times = own / alone
        product = trainings.matched(times)
        epochs = product.manifest["cost"]["epochs"]
        return {MATCHED: product}, [f"matched:{epochs} epochs, {times:.3g} times the compute of the scratch twin"]

    def _replay(self, product: Product) -> None:
        """Logs the epochs of a training that an earlier run did."""
        if self.loggers:
            from kdbench.mirror.wandb_run import replay

            for logger in self.loggers:
                replay(product.path / "metrics.csv", logger.log_metrics)

    def _fidelity(self) -> str:
        found = {spec.plugin.fidelity for spec in self.trainings.resolved.plugins.values()}
        return "approximate" if "approximate" in found else "equations"

    def _names(self) -> dict[str, Any]:
        return {g: self.config[g]["name"] for g in ("task", "method", "pair", "augment", "quant", "preset")} | {
            "seed": self.config["seed"],
            "networks": architectures(self.config["pair"]),
            "teacher": teacher_of(self.config),
        }

    def _look(
        self, products: Mapping[str, Product], trainings: Trainings
    ) -> tuple[dict[str, Model], bytes, Mapping[str, Mapping[str, float]], list[str]]:
        """Measures the models, draws the preview with all of them side by side, and compares them.

        Returns:
            Sizes, the preview, what the task compares, and flags of what is not as close to its student as it says.
        """
        from kdbench.task import move
        from kdbench.training.fit import pick_device
        from kdbench.training.trained import load_artifacts

        tests = self.task.data(int(self.config["seed"])).test_dataloader()
        batch = next(iter(tests))
        recipes = {
            "teacher": trainings.teacher_recipe,
            "scratch": trainings.scratch_recipe,
            "student": trainings.student_recipe(),
        }

        def load(role: str) -> dict[str, Artifact]:
            recipe = recipes[role]
            assert isinstance(recipe, Recipe)
            names = ("student", *(name for _, of, name, _ in _beside(products) if of == role))
            return load_artifacts(recipe, tasks[role], products[role].path, batch, names=names)

        # A teacher that tells other classes is measured alone.
        alike = vocabularies.alike(self.task, trainings.teacher_task)
        tasks = {role: trainings.teacher_task if role == "teacher" and not alike else self.task for role in recipes}
        left = {role: load(role) for role in products}
        sizes: dict[str, Model] = {}
        for role in {"teacher", "student"} & left.keys():
            main, timed = left[role]["student"], role == "student"
            sizes[role] = self._size(main, products[role].manifest, timed, task=tasks[role])
        left = {role: found for role, found in left.items() if alike or role != "teacher"}
        apart: list[str] = []
        for key, role, name, facts in _beside(products):
            found = left[role][name]
            timed = role != "scratch"  # a twin is as fast
            sizes[key] = self._size(found, facts, timed, left[role]["student"].module if timed else None, tests)
            own, its = (made["test"][self.task.primary] for made in (facts, products[role].manifest["scores"]))
            if found.close is not None and abs(own - its) > found.close:
                said = f"{key} is {abs(own - its):.2f} off the {role} in {self.task.primary}"
                apart.append(f"apart:{said}, expected at most {found.close:g}")
        networks = {role: found["student"].module for role, found in left.items()}
        stream = io.BytesIO()
        self.task.picture(batch, networks).save(stream, format="png")
        if self.loggers:
            media = self.task.media(batch, networks)
            self.media = {k: functools.partial(_medium, MEDIA[k], v) for k, v in media.items()}
        device = pick_device(self.config["trainer"]["accelerator"])
        on_device = {name: network.to(device) for name, network in networks.items()}
        compared = self.task.compare(on_device, (move(batch, device) for batch in tests))
        return sizes, stream.getvalue(), compared, apart

    def _size(
        self,
        found: Artifact,
        facts: Mapping[str, Any],
        timed: bool,
        student: nn.Module | None = None,
        tests: Iterable[Batch] = (),
        task: Task | None = None,
    ) -> Model:
        """Measures what a training left, on the processor, and compares what stands for its student with that."""
        from kdbench.training.measure import alone, count_macs, latency_once

        plan = (found.export or (task or self.task).measured)(found.module)
        packed = facts.get("packed") or {}
        size = Model(params=facts["params"], bytes=facts["bytes"], macs=count_macs(plan), **packed)
        if timed and found.engine == "torch":
            size.latency_ms, size.latency_p90_ms = latency_once(plan, self.trainings.store)
        elif timed and found.engine == "onnxruntime":
            from kdbench.training.exported import agreement, measure_onnx

            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.onnx"
                with alone():
                    file = measure_onnx(plan, path)
                agreed = dict[str, float]()
                if student is not None and found.close is not None:
                    agreed = agreement(path, plan, self.task.measured(student), (batch.inputs for batch in tests))
            size.engine, size.bits = found.engine, file.bits
            size.bytes, size.packed_bytes = file.bytes, file.packed_bytes
            size.latency_ms, size.latency_p90_ms = file.times[found.engine]
            size.agreement, size.openvino_agreement = agreed.get(found.engine), agreed.get("openvino")
            size.openvino_ms, size.openvino_p90_ms = file.times.get("openvino", (None, None))
        return size

    def _failed(self, run_id: str, status: str, reason: str) -> Outcome:
        if self._succeeded(run_id):
            run_id += "-failed"  # what was there stays
        record = Record(
            run_id=run_id,
            spec_hash=self.spec,
            code_digest="",
            status=status,  # type: ignore[arg-type]
            reason=" ".join(reason.split())[:1000],
            **self._names(),
            fidelity=self._fidelity(),
            origin="measured",
            command=self.command,
            provenance=provenance(digest(dict(self.config)), self.started, files_of(self.config)),
        )
        config = OmegaConf.to_yaml(OmegaConf.create(dict(self.config)))
        path = write_record(Path(self.config["results"]), record, {"config.yaml": config}, replace=True)
        self.console.print(
            Text.assemble(self.label, (status, "bold red"), f": {reason}\nrecord: {path}"), soft_wrap=True
        )
        return Outcome(status, path, record)


def _check_machine(trainer: Mapping[str, Any]) -> None:
    """Refuses what Lightning would do in another way without a word."""
    from kdbench.training.fit import pick_device

    if trainer["precision"] == "16-mixed" and pick_device(trainer["accelerator"]).type == "cpu":
        raise KDBenchError("trainer.precision=16-mixed needs a GPU: on a CPU take bf16-mixed or 32-true")


def _check_writable(results: Path) -> None:
    """Finds out before anything trains whether a record can be written."""
    there = next(folder for folder in (results, *results.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise KDBenchError(f"results={results}: no record can be written there: {error.strerror}") from None


def _medium(name: str, content: Any, wandb: ModuleType) -> Any:
    return getattr(wandb, name)(content)


def compute(cost: Mapping[str, Any], models: Mapping[str, Model]) -> float:
    """Returns the multiply-accumulates of all forward passes of a training, the teacher's among them.

    Args:
        cost: Samples seen, and the passes of student and teacher for each.
        models: Sizes of both; a teacher without a network costs nothing.

    Raises:
        KDBenchError: Those of a network are not known.
    """
    total = 0.0
    for role in {"student", "teacher"} & models.keys():
        passes, macs = cost[f"{role}_passes"] or 0.0, models[role].macs
        if passes and not macs:
            raise KDBenchError(f"scratch.matched=true: the multiply-accumulates of the {role} cannot be counted")
        total += cost["samples_seen"] * passes * (macs or 0)
    return total


def gap_closed(
    products: Mapping[str, Product], task: Task, noise: float | None, absent: str = "one role was trained alone"
) -> tuple[float | None, str | None, list[str]]:
    """Computes which share of the gap between scratch student and teacher the distilled student closes.

    Args:
        products: ``teacher``, ``scratch`` and ``student`` where the run has them.
        task: Names the primary metric and its direction.
        noise: Differences below this are not told from chance (``task.noise``).
        absent: Why one of the three is not there.

    Returns:
        The share or None, the reason where it is None, and flags.
    """
    if not {"teacher", "scratch", "student"} <= products.keys():
        return None, absent, []
    if task.aim:
        return None, "the aim is the student trained alone, not the teacher", []
    scores = {name: p.manifest["scores"]["test"][task.primary] for name, p in products.items()}
    sign = 1.0 if task.higher_is_better else -1.0
    gap = sign * (scores["teacher"] - scores["scratch"])
    if noise is None:
        noise = task.standard_error(scores["teacher"], scores["scratch"])
    if gap <= noise:
        return (
            None,
            f"teacher - scratch is {gap:.{decimals(noise or 1)}f}, not above the noise of {noise:.2g}",
            ["no_headroom"],
        )
    return sign * (scores["student"] - scores["scratch"]) / gap, None, []


def _scores(products: Mapping[str, Product], compared: Mapping[str, Mapping[str, float]]) -> dict[str, RoleScores]:
    """Returns the scores of the products and of what else each training left."""
    found = {}
    for name, product in products.items():
        scores = product.manifest["scores"]
        test = {**scores["test"], **compared.get(name, {})}
        found[name] = RoleScores(test=test, best_on_val=scores["best_on_val"])
    return found | {key: RoleScores(test=facts["test"]) for key, _, _, facts in _beside(products)}


def _beside(products: Mapping[str, Product]) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """Yields what trainings left beside their models: its name in the record, its training, its own name, its facts."""
    for role, product in products.items():
        if role != "scratch" or product.path != products["student"].path:
            for name, facts in product.manifest["beside"].items():
                yield name if role == "student" else f"{role}_{name}", role, name, facts
