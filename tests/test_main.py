"""The command line from outside: refusals of one line, exit codes, and what lies under results/ afterwards."""

from __future__ import annotations

import base64
import hashlib
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdbench.base.startup import own_imports, written_over
from kdbench.training.history import History
from tests import toy
from tests.cli import ROOT, CliToy, CommandLine, install


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capsys) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


def outside(*arguments: str, folder: Path, python: tuple[str, ...] = ("-m", "kdbench")) -> subprocess.CompletedProcess:
    site = folder / "site" if (folder / "site").exists() else install(folder / "site")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    return subprocess.run(
        [sys.executable, *python, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


# ---- refusals before anything is trained ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("task=tou",), "task=tou: there is no such task: did you mean 'toy'?"),
        (("method=fitnets",), "method=fitnets: there is no such method: did you mean 'fitnet' or 'tinybert'?"),
        (("pair=toi",), "pair=toi: there is no such pair: did you mean 'toy'?"),
        (("preset=smok",), "preset=smok: there is no such preset: did you mean 'smoke'?"),
        (("data=toyy",), "data=toyy: there is no such data: did you mean 'toy'?"),
        (("logger=wandbb",), "logger=wandbb: there is no such logger: did you mean 'wandb'?"),
        (("experiment=mine",), "experiment=mine: there is no such experiment"),
        (("sed=1",), "sed: unknown key: did you mean 'seed'?"),
        (("trainer.epoch=3",), "trainer.epoch: unknown key: did you mean 'epochs'?"),
        (("method.temprature=3",), "method.temprature: unknown key: did you mean 'temperature'?"),
        (("teacher.trainer.epoch=3",), "teacher.trainer.epoch: unknown key: did you mean 'epochs'?"),
        (("trainer.optimizer.rl=1",), "trainer.optimizer.rl: unknown key: did you mean 'lr'?"),
        (("method.weights.dk=1",), "method.weights.dk: unknown key: did you mean 'kd'?"),
        (("+foo=1",), "foo: unknown key"),
        (("seed=abc",), "seed=abc: input should be a valid integer"),
        (("seed=-1",), "seed=-1: input should be greater than or equal to 0"),
        (("seed=true",), "seed=True: input should be a valid integer"),
        (("seed=4294967296",), "seed=4294967296: input should be less than 4294967296"),
        (("teacher.seed=-1",), "teacher.seed=-1: input should be greater than or equal to 0"),
        (("tuning.seed=true",), "tuning.seed=True: input should be a valid integer"),
        (("tuning.factors=[1,-0.3]",), "tuning.factors.1=-0.3: input should be greater than 0"),
        (("trainer.epochs=true",), "trainer.epochs=True: input should be a valid integer"),
        (("trainer.clip=inf",), "trainer.clip=inf: input should be a finite number"),
        (("teacher.tolerance=nan",), "teacher.tolerance=nan: input should be"),
        (("task.noise=-1",), "task.noise=-1.0: input should be greater than or equal to 0"),
        (("task.noise=true",), "task.noise=True: input should be a valid number"),
        (("method.name='my method'",), "method.name=my method: string should match pattern"),
        (("pair.name=3",), "pair.name=3: input should be a valid string"),
        (("trainer.optimizer.lr=1e-3x",), "trainer.optimizer.lr: found '1e-3x'; input should be a valid number"),
        (("student.trainer.optimizer.lr=x",), "trainer.optimizer.lr: found 'x'; input should be a valid number"),
        (("trainer.scheduler.warmup=x",), "trainer.scheduler.warmup: found 'x'; input should be a valid number"),
        (("method.temperature=true",), "method.temperature: found True; input should be a valid number"),
        (("trainer.epochs=x",), "trainer.epochs=x: input should be a valid integer"),
        (("teacher.trainer.epochs=x",), "teacher.trainer.epochs=x: input should be a valid integer"),
        (("trainer.epochs=0",), "trainer.epochs=0: input should be greater than or equal to 1"),
        (("trainer.max_minutes=0",), "trainer.max_minutes=0: input should be greater than 0"),
        (
            ("method=fitnet", "method.weights.hint=abc"),
            "weight of term 'hint' is 'abc': expected a number or {value, ramp}",
        ),
        (("student._target_=os.getcwd",), "the student's architecture makes a str, expected a torch.nn.Module"),
        (("trainer.precision=8",), "trainer.precision=8: input should be "),
        (("method.temperature=abc",), "method.temperature: found 'abc'; input should be a valid number"),
        (("role=teacher",), "role=teacher trains one role alone and goes with method=none"),
        (("role=pupil", "method=none"), "role=pupil: input should be 'student' or 'teacher'"),
        (("data=pointcloud",), "data=kitti belongs to task pointcloud, not to toy: leave data= out"),
        (("pair=pointpillars_4x",), "pair=pointpillars_4x belongs to task pointcloud, not to toy"),
        (("data.fault=data",), "data.root: it is damaged"),
        (("seed",), "seed: missing EQUAL"),
        (("method=kd,fitnet",), "method=kd,fitnet: several take a sweep: python -m kdbench -m method=kd,fitnet"),
        (("data.labells=3",), "data.labells: unknown key: available: fault, name, root, task (data=toy)"),
        (("trainer.optimizer._target_=sgd",), "trainer.optimizer._target_=sgd: expected package.module.Name"),
        (("student.init_from=/nowhere/w.safetensors",), "student.init_from=/nowhere/w.safetensors: there is no such"),
        (
            ("pair.student.taps.body=boddy", "method=fitnet"),
            "Net has no module 'boddy' for a tap or part: did you mean 'body'",
        ),
        (("pair.teacher.taps.stem='stem[7]'", "method=fitnet"), "stem[7]"),
        (("pair.teacher.taps.stem=stem[7]",), "pair.teacher.taps.stem=stem[7]: mismatched input '['"),
        (("method=toy_mixed",), "Mixed requires mixable, which task toy lacks"),
        (("student._target_=tests.toy.Nett",), "tests.toy has no 'Nett': did you mean 'Net'?"),
        (("student.widht=4",), "pair.architecture.widht: unknown key: did you mean 'width'?"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(kdbench, arguments, line):
    assert line in kdbench("method=kd", *arguments).error
    assert not kdbench.results.exists()
    assert not kdbench.manifests()


def test_missing_data_root(kdbench):
    ran = kdbench("task=pointcloud", "data.root=/nowhere")
    assert "data.root=/nowhere: there is no such folder" in ran.error
    assert not kdbench.results.exists()


def test_an_accelerator_that_is_not_there_is_one_line(kdbench, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "trainer.accelerator=gpu: there is no GPU" in kdbench("method=kd", "trainer.accelerator=gpu").error
    assert not kdbench.results.exists()
    assert not kdbench.manifests()


class Trap:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_weights_are_never_unpickled(kdbench, tmp_path):
    path = tmp_path / "weights.pt"
    for content in (pickle.dumps(Trap()), b"not a file of weights"):
        path.write_bytes(content)
        line = kdbench("method=kd", f"student.init_from={path}").error
        assert f"{path} is not a weights file that can be read without pickle" in line
    torch.save(Trap(), path)
    assert str(path) in kdbench("method=kd", f"teacher.init_from={path}").error
    assert not (ROOT / "unpickled").exists()
    assert not kdbench.results.exists()


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_weights_of_another_shape(kdbench, tmp_path, side):
    path = tmp_path / "weights.safetensors"
    save_file({"stem.0.weight": torch.zeros(1)}, path)
    line = kdbench("method=kd", f"{side}.init_from={path}").error
    assert "'stem.0.weight' has shape (1,), Net expects" in line
    assert not kdbench.results.exists()
    assert not kdbench.manifests()


def test_a_teacher_of_no_numbers_ends_the_run_before_anything_trains(kdbench, tmp_path):
    path = tmp_path / "teacher.pth"
    torch.save({name: tensor * float("nan") for name, tensor in toy.Net(8).state_dict().items()}, path)
    assert (
        "'stem.0.weight' holds 216 values that are no numbers"
        in kdbench("method=kd", f"teacher.init_from={path}").error
    )
    assert not kdbench.results.exists()
    assert not kdbench.manifests()


def test_a_teacher_out_of_a_training_of_elsewhere_is_taken_and_what_was_stripped_is_said(kdbench, tmp_path):
    path = tmp_path / "teacher.pth"
    state = toy.Net(8).state_dict()
    both = {
        "model": {f"module.{name}": tensor for name, tensor in state.items()},
        "ema": {**state, "head.bias": state["head.bias"] + 1},
    }
    torch.save({**both, "best_acc": torch.tensor(72.5)}, path)
    line = kdbench("method=kd", f"teacher.init_from={path}").error
    assert line.endswith(f"fit Net: model, ema: choose one, e.g. init_from={path}::ema")
    ran = kdbench("method=kd", f"teacher.init_from={path}::ema")
    assert "teacher.init_from: entry 'ema'" in ran.out
    other = kdbench("method=kd", f"teacher.init_from={path}::model")
    assert "teacher.init_from: entry 'model', names without 'module.'" in other.out
    assert sum(manifest["role"] == "teacher" for manifest in kdbench.manifests().values()) == 2


# ---- outcomes -------------------------------------------------------------------------------------------------


def test_a_teacher_below_its_score_ends_the_run(kdbench):
    line = kdbench("method=kd", "teacher.expect=2", "teacher.tolerance=0.5").error
    assert "the teacher's accuracy is 0." in line
    assert "expected 2.00 within 0.5 (teacher.expect)" in line
    assert not kdbench.results.exists()


def test_no_headroom_is_flagged(kdbench):
    ran = kdbench("method=kd", "task.noise=1")
    assert ran.code == 0
    (record,) = kdbench.records()
    assert record.flags == ["no_headroom"]
    assert record.gap_closed is None
    assert "not above the noise of 1" in str(record.gap_reason)
    assert str(record.gap_reason) in ran.out


def test_a_second_run_finds_its_record_and_rerun_trains_again(kdbench):
    assert "student: epoch 2/2" in kdbench("method=kd").out
    (first,) = kdbench.records()
    again = kdbench("method=kd")
    assert again.code == 0
    assert "epoch 1" not in again.out
    assert "This run has its record" in again.out
    forced = kdbench("method=kd", "rerun=true")
    assert "student: epoch 2/2" in forced.out
    assert "teacher: epoch" not in forced.out
    (second,) = kdbench.records()
    assert second.provenance.started > first.provenance.started
    assert second.scores == first.scores


def test_rerun_of_a_role_alone_trains_that_role(kdbench):
    assert kdbench("method=none").code == 0
    forced = kdbench("method=none", "rerun=true")
    assert forced.out.count("scratch: epoch 1/2") == 1
    assert "teacher: epoch" not in forced.out
    assert kdbench("method=none", "role=teacher").code == 0
    assert kdbench("method=none", "role=teacher", "rerun=true").out.count("teacher: epoch 1/2") == 1


def test_divergence_leaves_a_record_of_it(kdbench):
    ran = kdbench("method=kd", "student.trainer.optimizer.lr=1e38")
    assert ran.code == 1
    (record,) = kdbench.records()
    assert record.status == "diverged"
    assert "is not finite" in str(record.reason)
    assert "\n" not in str(record.reason)
    assert str(record.reason) in ran.out


def test_an_unexpected_error_leaves_a_record_that_the_next_good_run_replaces(kdbench, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(CliToy, "picture", lambda *_: 1 / 0)
        ran = kdbench("method=kd")
    assert ran.code == 1
    (record,) = kdbench.records()
    assert (record.status, record.reason) == ("failed", "ZeroDivisionError: division by zero")
    assert "Traceback" in ran.out
    assert kdbench("method=kd").code == 0
    (replaced,) = kdbench.records()
    assert (replaced.run_id, replaced.status) == (record.run_id, "ok")


def test_a_rerun_that_fails_leaves_the_record_that_was_there(kdbench, monkeypatch):
    kdbench("method=kd")
    (good,) = kdbench.records()
    with monkeypatch.context() as patch:
        patch.setattr(CliToy, "picture", lambda *_: 1 / 0)
        for _ in range(2):
            assert kdbench("method=kd", "rerun=true").code == 1
    kept, failed = sorted(kdbench.records(), key=lambda record: len(record.run_id))
    assert kept == good
    assert (failed.run_id, failed.status) == (f"{good.run_id}-failed", "failed")
    assert "This run has its record" in kdbench("method=kd").out


def test_sigterm_ends_with_a_code_of_its_own_and_the_next_run_goes_on(kdbench, monkeypatch):
    def terminate(history, trainer, *_):
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_batch_end", terminate)
        ended = kdbench("method=none", "role=teacher")
    assert signal.getsignal(signal.SIGTERM) == before
    assert ended.err == "kdbench: terminated: the same command continues\n"
    assert ended.code == 128 + signal.SIGTERM
    assert not kdbench.results.exists()
    assert not kdbench.manifests()
    again = kdbench("method=none", "role=teacher")
    assert again.code == 0
    assert "teacher: epoch 1/2" not in again.out
    assert "teacher: epoch 2/2" in again.out


@pytest.mark.parametrize("place", ["training", "before"])
def test_ctrl_c_ends_with_one_line_and_a_code_of_its_own(kdbench, monkeypatch, place):
    def interrupt(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(*{"training": (History, "on_train_batch_end"), "before": (CliToy, "prepare")}[place], interrupt)
        ended = kdbench("method=none", "role=teacher")
    assert signal.getsignal(signal.SIGINT) == before
    assert ended.code == 128 + signal.SIGINT
    assert ended.err == "kdbench: interrupted: the same command continues\n"
    assert not kdbench.results.exists()
    assert kdbench("method=none", "role=teacher").code == 0


def test_an_error_while_training_is_recorded_too(kdbench):
    assert kdbench("method=kd", "data.fault=loss").code == 1
    (record,) = kdbench.records()
    assert (record.status, record.reason) == ("failed", "ZeroDivisionError: a bug in two lines")


def test_options_for_own_work(kdbench, tmp_path):
    """A model of the user's own class, from weights of the user's own, under overrides of one role's training."""
    assert kdbench("method=none", "role=teacher").code == 0
    (teacher,) = kdbench.results.rglob("teacher.safetensors")
    ran = kdbench(
        "method=kd",
        f"teacher.init_from={teacher}",
        "student._target_=tests.toy.Net",
        "student.width=6",
        "student.dropout=0.1",
        "student.trainer.optimizer.lr=0.01",
    )
    assert ran.code == 0
    assert "teacher: epoch" not in ran.out  # it is taken as it is
    assert "student: epoch 2/2" in ran.out


# ---- as a process of its own ----------------------------------------------------------------------------------


def test_help_says_what_there_is(tmp_path):
    ran = outside("--help", folder=tmp_path, python=("-X", "importtime", "-m", "kdbench"))
    assert ran.returncode == 0
    for text in ("python -m kdbench -m task=", "method: ", "toy_mutual", "tuning.trials=0 ", "kdbench.matrix"):
        assert text in ran.stdout, text
    imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
    assert "hydra.main" in imported
    assert not imported & {"torch", "lightning", "torchmetrics", "wandb"}


def test_records_are_read_without_torch(tmp_path):
    code = (
        "import sys, kdbench.records.record, kdbench.runs.trainings, kdbench.base.store, kdbench.training.recipe; "
        "import kdbench.configuration.config, kdbench.runs.run; "
        "print('torch' in sys.modules)"
    )
    ran = outside(folder=tmp_path, python=("-c", code))
    assert ran.stdout.strip() == "False", ran.stderr


def test_a_refusal_by_the_real_process(tmp_path):
    options = ("task=toy", "preset=smoke", "method=kd", "cache=cache")
    refused = outside(*options, "trainer.epochs=x", folder=tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("kdbench: error: trainer.epochs=x: ")
    assert refused.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"site"}


@pytest.mark.slow
def test_code_of_the_folder_is_found_where_pythonpath_names_it(tmp_path):
    (tmp_path / "flatnet.py").write_text("from tests.toy import Net\n")
    (tmp_path / "tasks.py").write_text("")
    site = install(tmp_path / "site")
    own = ("task=toy", "preset=smoke", "method=none", "role=student", "cache=cache", "student._target_=flatnet.Net")

    def start(*path: object) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
        command = [sys.executable, "-m", "kdbench", *own, "student.width=3"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert start(site, ROOT, ".").returncode == 0
    assert "there is no module 'flatnet': expected one that can be imported (PYTHONPATH=." in start(site, ROOT).stderr
    assert "kdbench: error: the package 'tasks' found is" in start(".", site, ROOT).stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["leaderboard", *(f"kdbench.{name}" for name in ("doctor", "matrix", "predict", "export", "wandb_sync"))]
)
def test_every_command_works_beside_another_tasks_and_refuses_to_import_it(tmp_path, module):
    (tmp_path / "tasks.py").write_text("raise RuntimeError('the wrong tasks')\n")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("wrong: conf\n")

    def start(*path: object) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
        command = [sys.executable, "-m", module, "--help"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    fine, other = start(ROOT), start(".", ROOT)
    assert (fine.returncode, fine.stderr) == (0, "")
    assert other.returncode == 1
    assert other.stderr.startswith(
        f"kdbench: error: the package 'tasks' found is {tmp_path / 'tasks.py'}, expected the"
    )
    assert other.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["tasks", "leaderboard"])
def test_a_package_that_another_distribution_wrote_over_is_one_line(tmp_path, monkeypatch, name):
    file = tmp_path / name / "__init__.py"
    file.parent.mkdir()
    file.write_text("# as installed\n")
    about = install(tmp_path, "kdbench") / "kdbench-1.0.dist-info"
    digest = base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).rstrip(b"=").decode()
    (about / "RECORD").write_text(f"{name}/__init__.py,sha256={digest},15\nkdbench-1.0.dist-info/RECORD,,\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        assert written_over(tmp_path) == []
        file.write_text("# of another distribution\n")
        assert written_over(tmp_path) == [file]
        assert written_over(ROOT) == []  # what is installed elsewhere is not what runs
    monkeypatch.setattr("kdbench.base.startup.written_over", lambda _: [file])
    with pytest.raises(SystemExit, match=f"kdbench: error: {file} is not the file that kdbench installed"):
        own_imports()


def test_a_terminal_without_utf_8_ends_no_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    ran = outside("task=toy", "preset=smoke", "method=kd", "cache=cache", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "? scratch" in ran.stdout


def test_a_sweep_that_cannot_be_written_or_composed_is_one_line(kdbench):
    assert (
        "results=/proc/nope: no record can be written there" in kdbench("-m", "method=kd", "results=/proc/nope").error
    )
    ran = kdbench("-m", "task=toy,pointcloud", "method=kd", "data.fault=null")
    assert ran.error.startswith("data.fault: unknown key: ")
    assert not kdbench.results.exists()


def test_every_unknown_group_option_in_a_sweep_is_refused_at_once(kdbench):
    assert "method=kb: there is no such method: did you mean 'kd' " in kdbench("-m", "method=kd,kb").error
    assert "sed: unknown key: did you mean 'seed'?" in kdbench("-m", "method=kd", "sed=0,1").error
    assert not kdbench.results.exists()
