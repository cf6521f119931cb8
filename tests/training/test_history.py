from __future__ import annotations

from kdbench.training.history import History


def test_terms_are_summed_up_by_first_and_last_epoch():
    history = History()
    history.rows = [
        {"epoch": 0, "train/kd": 2.0, "weight/kd": 0.1, "val/acc": 1.0},
        {"epoch": 1, "train/kd": 1.0, "weight/kd": 0.5, "train/late": 7.0},
    ]
    assert history.terms() == {
        "kd": {"first": 2.0, "last": 1.0, "weight": 0.5},
        "late": {"first": 7.0, "last": 7.0, "weight": 1.0},
    }
    assert history.last_validation == {}
    history.rows.reverse()
    assert history.last_validation == {"acc": 1.0}
    assert History().last_validation == {}


def test_a_term_with_a_weight_that_did_nothing_is_flagged():
    """Zero in every epoch, or one number by a gradient of zero; but not the task's, and not what has no weight."""
    history = History()
    flat = {"train/dead": 0.0, "train/flat": 3.0, "train/late": 0.0, "train/off": 0.0, "train/task.peer": 0.0}
    history.rows = [
        flat | {"weight/off": 0.0, "train/still": 2.0},
        flat | {"weight/off": 0.0, "train/still": 2.0, "train/late": 1e-30},
    ]
    history.moving = ["still"]
    assert history.idle() == ["zero_term:dead", "no_gradient:flat"]
    assert History(before=history).idle() == history.idle()
    assert History().idle() == []


def test_a_stage_continues_the_rows_and_costs_of_the_one_before():
    before = History()
    before.rows, before.passes, before.samples, before.wall = [{"epoch": 0}], {"teacher": 3}, 5, 2.0
    history = History(before=before)
    history.rows.append({"epoch": 1})
    history.passes["teacher"] += 1
    assert history.epochs == 2
    assert (before.rows, before.passes) == ([{"epoch": 0}], {"teacher": 3})
    assert (history.samples, history.wall) == (5, 2.0)


def test_rows_with_other_columns_make_one_table(tmp_path):
    history = History()
    history.rows = [{"epoch": 0, "a": 1.5}, {"epoch": 1, "b": 2.0}]
    history.write(tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_text() == "epoch,a,b\n0,1.5,\n1,,2.0\n"


def test_its_state_is_what_a_checkpoint_may_hold():
    history = History()
    history.rows = [{"epoch": 0, "lr": 0.1}]
    other = History()
    other.load_state_dict(history.state_dict())
    assert other.rows == history.rows
    assert all(isinstance(v, (int, float, list, dict)) for v in history.state_dict().values())
