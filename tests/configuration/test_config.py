from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.configuration.resolved import resolve
from kdbench.errors import KDBenchError
from kdbench.records.record import spec_hash
from tests.cli import install


@pytest.fixture(autouse=True)
def toybox(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install(tmp_path / "site"))


def load(*overrides):
    return config.load(["task=toy", "preset=smoke", *overrides])


def test_every_task_composes_with_every_preset():
    """And with every method in tests/test_matrix.py."""
    for task in set(config.options("task")) - {"toy", "dense"}:
        for preset in config.options("preset"):
            assert config.load([f"task={task}", f"preset={preset}"])["trainer"]["epochs"] > 0


@pytest.mark.parametrize("path", sorted((config.folder() / "recipe").rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_is_of_a_task_and_a_method_and_counts(path):
    task, _, method = path.stem.partition("_")
    preset = "quick"
    if path.parent.name == "preset":
        method, _, preset = method.rpartition("_")
    composed = config.load([f"task={task}", f"method={method}", f"preset={preset}"])
    assert composed["method"]["name"] == method
    recipe = OmegaConf.load(path)
    assert recipe
    assert OmegaConf.to_container(OmegaConf.merge(composed, recipe), resolve=True) == composed


def test_options_of_other_packages_stand_beside_our_own():
    assert {"kd", "none", "toy_mutual"} <= set(config.options("method"))
    assert "toy" in config.options("task")
    assert load("method=toy_mutual")["method"]["_target_"] == "tests.plugins.Mutual"


def test_a_recipe_changes_a_method_for_one_task_and_the_command_line_comes_last():
    plain = config.load(["task=toy", "preset=smoke", "method=kd"])["method"]
    own = config.load(["task=pointcloud", "method=kd"])["method"]
    assert plain["temperature"] == 4.0
    assert own["temperature"] == 1.0
    assert config.load(["task=pointcloud", "method=kd", "method.temperature=2"])["method"]["temperature"] == 2


def test_a_role_changes_the_optimizer_that_both_share():
    trainer = load("teacher.trainer.optimizer.lr=0.5", "teacher.trainer.epochs=7")["teacher"]["trainer"]
    assert trainer == {"epochs": 7, "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.5, "momentum": 0.9}}
    other = load("student.trainer.optimizer={_target_: torch.optim.Adam, lr: 1}")["student"]["trainer"]
    assert other == {"optimizer": {"_target_": "torch.optim.Adam", "lr": 1}}
    assert load()["teacher"]["trainer"] == {}


def test_a_whole_number_is_a_float_where_one_stood():
    given = {key: load("method=kd", f"method.temperature={key}", "trainer.epochs=7") for key in ("3", "3.0", "3.5")}
    assert spec_hash(given["3"]) == spec_hash(given["3.0"]) != spec_hash(given["3.5"])
    assert type(given["3"]["method"]["temperature"]) is float
    assert type(given["3"]["trainer"]["epochs"]) is int


def test_keys_that_only_a_signature_knows_need_no_plus():
    loaded = load("method=fitnet", "trainer.optimizer.nesterov=true", "method.bind.feature=stem", "student.width=6")
    assert loaded["trainer"]["optimizer"]["nesterov"] is True
    assert loaded["method"]["bind"] == {"feature": "stem"}
    assert loaded["pair"]["student"]["architecture"] == {"_target_": "tests.toy.Net", "width": 6}
    assert config.load(["data.simulator.rings=3", "preset=paper"])["data"]["simulator"] == {"rings": 3}
    for closed in ("trainer.epoch=3", "pair.student.tap.body=x", "data.rot=x", "method.weights.dk=1"):
        with pytest.raises(KDBenchError, match=r"^[\w.]+: unknown key: did you mean"):
            load(closed)


@pytest.mark.parametrize(
    ("overrides", "where", "value"),
    [
        (["teacher.trainer.precision=bf16-mixed"], "teacher.trainer.precision", "bf16-mixed"),
        (["data.transforms.flip=0.2"], "data.transforms.flip", 0.2),
        (["data.simulator.rings=3"], "data.simulator.rings", 3),
        (["task.thresholds.Car=[0.5,0.3]"], "task.thresholds.Car", [0.5, 0.3]),
        (["task=classification", "preset=paper", "student.trainer.epochs=3"], "student.trainer.epochs", 3),
        (["task=classification", "pair.student.kinds.body=tokens"], "pair.student.kinds.body", "tokens"),
        (["pair.student.taps.head=head"], "pair.student.taps.head", "head"),
    ],
)
def test_a_mapping_that_a_preset_fills_stays_open(overrides, where, value):
    assert OmegaConf.select(OmegaConf.create(config.load(overrides)), where) == value


def test_an_unknown_key_in_an_open_mapping_is_refused_by_its_reader(tmp_path):
    for key, line in (("teacher.trainer.epoch=3", "did you mean 'epochs'"), ("student.trainer.clp=3", "'clip'")):
        with pytest.raises(KDBenchError, match=line):
            config.load(["task=pointcloud", key])
    for key, line in (
        ("task.thresholds.Cra=[0.5,0.3]", "task.thresholds.Cra: there is no such class: did you mean 'Car'"),
        ("method.bind.featre=neck", "method.bind.featre: unknown need: did you mean 'feature'"),
    ):
        with pytest.raises(KDBenchError, match=line):
            resolve(config.load(["task=pointcloud", "method=fitnet", key]), Store(tmp_path))


def test_names_of_the_users_own_replace_those_of_the_pair():
    student = load("pair.student.taps={whole: body}", "pair.student.parts={}")["pair"]["student"]
    assert (student["taps"], student["parts"]) == ({"whole": "body"}, {})
    assert load("pair.student.taps=null")["pair"]["student"]["taps"] is None
    assert load()["pair"]["student"]["taps"].keys() == {"stem", "body", "pooled"}


def test_home_is_expanded_where_a_value_begins(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert load("data.root=~/kitti")["data"]["root"] == "/home/me/kitti"
    given = ["cache=~", "results=a~/b", "x=~user/a", "~y", "--cfg", "teacher.init_from=~/a=b"]
    assert config.at_home(given) == ["cache=/home/me", *given[1:-1], "teacher.init_from=/home/me/a=b"]


def test_the_nearest_name_is_of_what_was_chosen():
    for overrides, line in (
        (["task=classification", "data.labells=10"], r"'labels' .*\(data=classification\)"),
        (["method=none", "method.temperature=2"], r"available: name \(method=none\)"),
        (["logger=wandb", "logger.projct=p"], "did you mean 'project'"),
    ):
        with pytest.raises(KDBenchError, match=line):
            config.load(overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["task=toy", "preset=smoke", "method.temperature=3", "method=kd", "trainer.optimizer.nesterov=true"],
        ["trainer.clip=null", "data.simulator.rings=3", "data.root='a,b'", "teacher.trainer.epochs=7", "+cache=x"],
        ["task=classification", "teacher.augment=mixup", "teacher.augment.alpha=0.4", "tuning.factors=[1, 2]"],
        ["task=toy", "student={_target_: my.Net, depth: 3}", "student.trainer.epochs=${teacher.trainer.epochs}"],
        ["task=classification", "student=timm/resnet18", "pair.student.taps={whole: body}", "~data.transforms"],
        ["task=toy", "pair.student={taps: null}", "hydra.job.name=other", "method.optimizer._target_=torch.optim.SGD"],
    ],
)
def test_keys_are_changed_as_hydra_changes_them(monkeypatch, overrides):
    overrides = config.in_place(overrides)
    with monkeypatch.context() as patch:
        patch.setattr(config, "_changed", lambda _: None)
        expected, by_hydra = config.composed(overrides)
    found, own = config.composed(overrides)
    assert OmegaConf.to_container(found) == OmegaConf.to_container(expected)
    assert OmegaConf.is_struct(found)
    assert own.overrides == by_hydra.overrides
    assert own.runtime.choices == by_hydra.runtime.choices
    assert config._composed(overrides) == found


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("method", "dkd"),
        ("method", "toy_mutual"),
        ("pair", "context_l"),
        ("pair", "pointpillars_4x"),
        ("data", "streets"),
    ],
)
def test_an_option_alone_is_what_hydra_composes(monkeypatch, group, name):
    found = config.option(group, name)
    assert found["name"]
    monkeypatch.setattr(config, "file_of", lambda *_: None)
    assert config.option(group, name) == found


def test_a_data_set_names_its_pair(monkeypatch):
    """Another one can be chosen; a data set that names none is one line."""
    given = ["task=toy", "preset=smoke"]
    assert config.load(given)["pair"]["name"] == "toy"
    assert config.load([*given, "pair=sided"])["pair"]["name"] == "sided"
    composed = config._composed(given)
    OmegaConf.set_struct(composed, False)
    del composed["pair"]
    with pytest.raises(KDBenchError, match="data=toy names no pair: its YAML says '- /pair@_global_.pair: NAME'"):
        config.check(composed)


def test_every_choice_of_a_sweep_is_composed_before_it_starts():
    config.each_choice(["task=toy,pointcloud", "method=none,kd", "preset=smoke", "trainer.epochs=1,2"])
    for overrides, line in (
        (["task=toy,pointcloud", "preset=smoke", "data.fault=null"], r"data.fault: .*\(data=pointcloud\)"),
        (["method=kd,none", "method.temperature=2"], r"method.temperature: .*\(method=none\)"),
    ):
        config.load(config.first(overrides))
        with pytest.raises(KDBenchError, match=line):
            config.each_choice(overrides)


def test_options_of_a_group_are_listed_once(monkeypatch):
    asked: list[str] = []

    def options(group: str) -> list[str]:
        asked.append(group)
        return ["kd", "none"]

    monkeypatch.setattr(config, "options", options)
    config.choices(["method=kd,none"], sweep=True)
    assert asked == ["method"]
    with pytest.raises(KDBenchError, match="method=kd,none: several take a sweep: python -m kdbench -m method=kd,none"):
        config.choices(["method=kd,none"], sweep=False)


def test_a_model_of_the_users_own_replaces_the_students():
    own = load("student._target_=my.Net", "student.depth=3")["pair"]
    assert own["student"]["architecture"] == {"_target_": "my.Net", "depth": 3}
    assert own["student"]["taps"] is None
    assert own["teacher"] == load()["pair"]["teacher"]


def test_overrides_of_a_sweep_are_checked_by_their_first_job():
    overrides = ["method=none,kd", "seed=range(3,5)", "trainer.optimizer.lr=0.1,0.2", "student.init_from='a,b'"]
    assert config.first(overrides) == [
        "method=none",
        "seed=3",
        "trainer.optimizer.lr=0.1",
        "student.init_from='a,b'",
    ]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("trainer.max_minutes=soon",), "trainer.max_minutes=soon: input should be a valid number"),
        (("rerun=perhaps",), "rerun=perhaps: input should be a valid boolean"),
        (("tuning.factors=[]",), r"tuning.factors=\[\]: list should have at least 1 item"),
        (("tuning.factors=[a]",), r"tuning.factors.0=a: input should be a valid number"),
        (("tuning.trials=3", "tuning.factors=[1, 2]"), "tuning.trials=3: there are 2 in tuning.factors"),
        (("method=kd", "method.weights=3"), "method.weights=3: input should be a valid dictionary"),
        (("pair.student.taps=3",), "pair.student.taps=3: input should be a valid dictionary"),
        (("pair.student.taps.stem=[1]",), r"pair.student.taps.stem=\[1\]: input should be a valid string"),
        (("trainer.clip=0",), "trainer.clip=0: input should be greater than 0"),
        (("trainer.threads=-1",), "trainer.threads=-1: input should be greater than or equal to 1"),
        (("trainer.accelerator=foo",), "trainer.accelerator=foo: input should be 'auto', 'cpu'"),
        (("method=kd", "+method.optimizer={lr: 1}"), "method.optimizer._target_=.*: field required"),
        (("data=pointcloud",), "data=kitti belongs to task pointcloud, not to toy: leave data= out"),
        (("role=student", "method=kd"), "role=student trains one role alone and goes with method=none"),
        (("seed=${nowhere}",), "nowhere"),
        (("=3",), "must be a string"),
        (("data.root=~me/kitti",), "data.root=~me/kitti: '~' cannot stand there; expected \"data.root='~me/kitti'\""),
        (("trainer.optimizer._target_=sgd",), "trainer.optimizer._target_=sgd: expected package.module.Name"),
    ],
)
def test_what_is_wrong_is_one_line(overrides, line):
    with pytest.raises(KDBenchError, match=line) as error:
        load(*overrides)
    assert "\n" not in str(error.value)


def test_command_line_can_be_pasted_into_a_shell():
    line = config.command_line(["task=toy", "pair.student.taps.body='body[0]'", "tuning.factors=[1, 2]"])
    assert line == """python -m kdbench task=toy 'pair.student.taps.body='"'"'body[0]'"'"'' 'tuning.factors=[1, 2]'"""


def test_unique_names_are_of_a_configuration():
    config.register()
    first, second = (OmegaConf.create({"a": "${kdbench_unique:}", "b": "${kdbench_unique:}"}) for _ in range(2))
    assert first.a == first.b
    assert first.a != second.a
