"""What the flags of the five scripts promise: one meaning each, help that is true, and that they reach the training."""

import re

import numpy as np
import pytest
from transformers import EarlyStoppingCallback

import common
import errors
import evaluate
import llm_compare
import train
import visualize

SCRIPTS = (train, evaluate, errors, llm_compare, visualize)
# With these a run may go on although they were others when it began: they change where, how fast and what is written.
FREE_ON_RESUME = {
    "list", "run", "runs_dir", "data_dir", "overwrite", "resume", "seeds", "keep_epochs", "save_steps", "logging_steps",
    "per_device_eval_batch_size", "report_to", "activation_checkpointing", "compile"}


def actions():
    """(flag, action) of every script."""
    return [(flag, action) for script in SCRIPTS for action in script.build_parser()._actions
            for flag in action.option_strings]


def test_no_flag_is_true_for_any_text():
    """argparse's type=bool would take --flag False for True."""
    assert [flag for flag, action in actions() if action.type is bool] == []


def test_a_flag_of_two_scripts_is_the_same_in_both():
    found = {}
    for flag, action in actions():
        meaning = type(action), action.type, str(action.choices), action.metavar, action.nargs
        found.setdefault(flag, set()).add(meaning)
    assert {flag: kinds for flag, kinds in found.items() if len(kinds) > 1} == {}
    assert len(found) > 50


def test_every_flag_of_train_py_is_fixed_on_resume_or_free():
    assert {*train.FIXED_ON_RESUME} | FREE_ON_RESUME == set(vars(train.build_parser().parse_args([])))
    assert not {*train.FIXED_ON_RESUME} & FREE_ON_RESUME


@pytest.mark.parametrize("name", ["num_train_epochs", "learning_rate"])
def test_help_names_the_value_of_a_flag_that_is_left_out(name):
    says = next(action.help for action in train.build_parser()._actions if action.dest == name)
    for flags, place in (([], r"off: ([\d.e-]+)"), (["--sample"], r"own model ([\d.e-]+)"),
                         (["--sample", "--model", "x"], r"off: ([\d.e-]+)")):
        args = train.build_parser().parse_args(["--dataset", "mrpc", *flags])
        train.complete(args)
        assert getattr(args, name) == float(re.search(place, says)[1])


def test_help_names_the_tokens_that_an_llm_may_write():
    says = next(action.help for action in llm_compare.build_parser()._actions if action.dest == "max_new_tokens")
    label, text = map(int, re.findall(r"\d+", says))
    assert llm_compare.LabelAnswer.max_new_tokens == label
    assert {form.max_new_tokens for form in llm_compare.ANSWERS.values()} == {label, text}


def test_flags_reach_the_trainer(tmp_path, monkeypatch):
    """Each with a value that is no default."""
    seen = []

    def stop(trainer, resume_from_checkpoint):
        seen.append(trainer)
        raise KeyboardInterrupt

    monkeypatch.setattr(common.CustomTrainer, "train", stop)
    values = {"num_train_epochs": 5, "learning_rate": 0.25, "per_device_train_batch_size": 3, "weight_decay": 0.125,
              "gradient_accumulation_steps": 7, "max_grad_norm": 0.5, "warmup_steps": 9.0, "seed": 11,
              "per_device_eval_batch_size": 13, "logging_steps": 15.0, "lr_scheduler_type": "cosine", "optim": "sgd"}
    flags = [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    flags += ["--dataset", "mrpc", "--sample", "--early-stopping-patience", "4", "--no-group-by-length", "--save-steps",
              "6", "--precision", "bf16"]
    assert train.main([*flags, "--run", str(tmp_path)]) == 130
    [trainer] = seen
    assert {name: getattr(trainer.args, name) for name in values} == values
    assert trainer.args.bf16 and not trainer.args.fp16
    assert trainer.train_dataset.window == 1
    assert trainer.args.load_best_model_at_end and trainer.args.greater_is_better
    [stopping] = [callback for callback in trainer.callback_handler.callbacks
                  if isinstance(callback, EarlyStoppingCallback)]
    assert stopping.early_stopping_patience == 4
    [log] = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, common.RunLog)]
    assert log.save_steps == 6


def test_balanced_class_weights_equal_scikit_learns(capsys):
    from sklearn.utils.class_weight import compute_class_weight

    args = train.build_parser().parse_args(["--dataset", "mrpc", "--sample", "--class-weights", "balanced"])
    data = common.load_data(args)
    weights = train.class_weights(args, data)
    labels = data.splits["train"]["label"].to_numpy()
    assert weights.tolist() == pytest.approx(compute_class_weight("balanced", classes=np.array([0, 1]), y=labels))
    assert "class weights: not_equivalent 1.538, equivalent 0.741" in capsys.readouterr().out
