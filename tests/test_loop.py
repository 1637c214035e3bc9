"""The loop against independent references: stock Trainer, one large batch, an uninterrupted run."""

import inspect
import json
import math
import sys

import datasets
import numpy as np
import pytest
import torch
from conftest import make_arguments, make_dataset, make_model
from safetensors.torch import load_file
from transformers import DefaultDataCollator, Trainer, TrainerCallback

import common
from common import CustomTrainer

EVENTS = [name for name in vars(TrainerCallback) if name.startswith("on_")]


class Recorder(TrainerCallback):
    """Keeps (event, step, epoch) of every callback event, and stops the run after an update."""

    def __init__(self, stop_after=None):
        self.events, self.stop_after = [], stop_after


def _record(name):
    def method(self, args, state, control, **kwargs):
        self.events.append((name, state.global_step, state.epoch))
        if name == "on_step_end" and state.global_step == self.stop_after:
            control.should_save = control.should_training_stop = True
    return method


for _name in EVENTS:
    setattr(Recorder, _name, _record(_name))


class OurOrder(torch.utils.data.Sampler):
    """The order of LengthGroupedBatches as a sampler of single examples, which Trainer cuts into batches itself."""

    def __init__(self, data, batch_size, seed):
        self.batches = common.LengthGroupedBatches(data.lengths, batch_size, seed, data.window)
        self.set_epoch = self.batches.set_epoch

    def __len__(self):
        return len(self.batches.lengths)

    def __iter__(self):
        return (example for batch in self.batches for example in batch)


class StockTrainer(Trainer):
    """Trainer as it is, with our order of the examples, so that only the loops differ."""

    def _get_train_sampler(self, train_dataset=None):
        return OurOrder(self.train_dataset, self._train_batch_size, self.args.seed)

    def evaluate(self, *args, **kwargs):
        with torch.random.fork_rng():  # Trainer's evaluation draws a random number, ours none
            return super().evaluate(*args, **kwargs)


class StockTrainerWithMean(StockTrainer):
    """Trainer told that the head's loss is a mean over the micro-batch, which it divides by the accumulation steps."""

    loss_is_scaled_for_ga = False


def train(trainer_class, folder, dropout=0.1, resume=None, examples=37, scores=None, model=None, more=None, **changes):
    data = make_dataset(examples)
    trainer = trainer_class(
        model=model or make_model(dropout), args=make_arguments(folder, **changes), data_collator=data.collate,
        train_dataset=data, eval_dataset=make_dataset(11, seed=1),
        compute_metrics=(lambda _: {"score": next(scores)}) if scores else None, **(more or {}))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def logs(trainer, *names):
    """The logged values of `names`, without Trainer's clock readings."""
    return [[row[name] for name in names] for row in trainer.state.log_history if all(name in row for name in names)]


def history(trainer):
    """All that history.csv and steps.csv are made of, but for the readings of clocks."""
    clocks = {"seconds", "samples_per_second"}
    return [{name: value for name, value in sorted(row.items())
             if name not in clocks and "runtime" not in name and "_per_second" not in name}
            for row in trainer.state.log_history if "train_runtime" not in row]


def test_the_class_can_be_read_from_a_notebook():
    source = inspect.getsource(CustomTrainer._inner_training_loop)
    assert all(f"# {step}. " in source for step in range(1, 8))
    assert len(source.splitlines()) <= 90


def test_equals_stock_trainer_bit_for_bit(tmp_path):
    ours, stock = Recorder(), Recorder()
    a = train(CustomTrainer, tmp_path / "a", more={"callbacks": [ours]})
    b = train(StockTrainer, tmp_path / "b", more={"callbacks": [stock]})
    assert torch.equal(weights(a), weights(b))
    assert logs(a, "loss", "grad_norm", "learning_rate") == logs(b, "loss", "grad_norm", "learning_rate")
    assert np.allclose(logs(a, "eval_loss"), logs(b, "eval_loss"), rtol=1e-6)  # ours takes the longest examples first
    assert ours.events == [event for event in stock.events if event[0] != "on_prediction_step"]
    assert len(logs(a, "loss")) == 30


@pytest.mark.parametrize("changes", [
    {"max_steps": 5}, {"num_train_epochs": 1.5}, {"max_grad_norm": 0.0},
    {"lr_scheduler_type": "cosine", "warmup_steps": 4},
    {"weight_decay": 0.1, "eval_strategy": "steps", "eval_steps": 4}])
def test_equals_stock_trainer_with_other_arguments(tmp_path, changes):
    a, b = (train(trainer, tmp_path / trainer.__name__, **changes) for trainer in (CustomTrainer, StockTrainer))
    assert torch.equal(weights(a), weights(b))
    assert a.state.global_step == b.state.global_step
    assert np.allclose(logs(a, "eval_loss"), logs(b, "eval_loss"), rtol=1e-6)


def test_accumulation_equals_stock_trainer_with_the_right_scale(tmp_path):
    # 36 examples: no short micro-batch, so that a mean of means is the mean
    a = train(CustomTrainer, tmp_path / "a", gradient_accumulation_steps=3, examples=36)
    b = train(StockTrainerWithMean, tmp_path / "b", gradient_accumulation_steps=3, examples=36)
    assert (weights(a) - weights(b)).abs().max() < 1e-5
    assert np.allclose(logs(a, "loss"), logs(b, "loss"), atol=1e-6)


@pytest.mark.parametrize("examples", [36, 37, 41])  # whole groups; a short micro-batch; a short group
def test_accumulation_equals_one_large_batch(tmp_path, examples, monkeypatch):
    def order(self):  # the same examples in each update
        whole = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.lengths))
        return iter([whole[first:first + self.batch_size].tolist() for first in range(0, examples, self.batch_size)])

    monkeypatch.setattr(common.LengthGroupedBatches, "__iter__", order)
    many = train(CustomTrainer, tmp_path / "a", dropout=0.0, examples=examples, gradient_accumulation_steps=4)
    one = train(CustomTrainer, tmp_path / "b", dropout=0.0, examples=examples, per_device_train_batch_size=16)
    assert (weights(many) - weights(one)).abs().max() < 1e-5
    assert np.allclose(logs(many, "loss", "grad_norm"), logs(one, "loss", "grad_norm"), rtol=1e-4)


def test_stock_trainer_is_k_times_too_large(tmp_path):
    """The reason for owning compute_loss: github.com/huggingface/transformers/issues/47688."""
    settings = {"gradient_accumulation_steps": 4, "examples": 16, "dropout": 0.0, "num_train_epochs": 1,
                "max_grad_norm": 0.0}
    ours, stock = (train(trainer, tmp_path / trainer.__name__, **settings) for trainer in (CustomTrainer, StockTrainer))
    ratio = np.array(logs(stock, "loss", "grad_norm")) / np.array(logs(ours, "loss", "grad_norm"))
    assert ratio == pytest.approx(np.full((1, 2), 4.0), rel=1e-4)


@pytest.fixture(scope="module", params=[1, 3])
def whole(request, tmp_path_factory):
    """An uninterrupted run of two epochs, 10 or 4 updates, and its settings."""
    settings = {"gradient_accumulation_steps": request.param, "logging_steps": 3, "num_train_epochs": 2, "examples": 17}
    return train(CustomTrainer, tmp_path_factory.mktemp("whole"), **settings), settings


@pytest.mark.parametrize("stop_after", range(1, 10))
def test_resume_at_any_step_equals_the_uninterrupted_run(whole, tmp_path, stop_after):
    whole, settings = whole
    if stop_after >= whole.state.max_steps:
        pytest.skip("the run is shorter")
    train(CustomTrainer, tmp_path, more={"callbacks": [Recorder(stop_after)]}, **settings)
    torch.manual_seed(99)  # the state that a new process happens to have must not matter
    np.random.seed(99)  # noqa: NPY002
    resumed = train(CustomTrainer, tmp_path, resume=str(tmp_path / f"checkpoint-{stop_after}"), **settings)
    assert torch.equal(weights(whole), weights(resumed))
    assert history(whole) == history(resumed)
    mine, theirs = (trainer.optimizer.state_dict()["state"] for trainer in (whole, resumed))
    assert all(torch.equal(mine[number][name], theirs[number][name]) for number in mine for name in mine[number])


def test_evaluating_saving_and_callbacks_are_not_counted_as_training(tmp_path, monkeypatch):
    """On a clock that a step moves by 1 and all else by 1000, an epoch of ten steps takes 10 seconds."""
    now = [0.0]
    monkeypatch.setattr(common.time, "time", lambda: now[0])

    class Clock(TrainerCallback):
        def _move(self, _args, _state, _control, **_):
            now[0] += 1000

        on_train_begin = on_epoch_begin = on_epoch_end = on_evaluate = _move

        def on_optimizer_step(self, _args, _state, _control, **_):
            now[0] += 1

    trainer = train(CustomTrainer, tmp_path, more={"callbacks": [Clock()]}, save_strategy="steps", save_steps=4,
                    eval_strategy="steps", eval_steps=3)
    rows = [row for row in trainer.state.log_history if "epoch_train_loss" in row]
    assert [row["seconds"] for row in rows] == [10, 10, 10]
    assert [row["samples_per_second"] for row in rows] == [3.7, 3.7, 3.7]
    assert json.loads((tmp_path / "checkpoint-8/sums.json").read_text())["seconds"] == 8
    sums = tmp_path / "checkpoint-8/sums.json"  # the seconds before a checkpoint count
    sums.write_text(sums.read_text().replace('"seconds": 8', '"seconds": 500'))
    resumed = train(CustomTrainer, tmp_path, resume=str(tmp_path / "checkpoint-8"), more={"callbacks": [Clock()]})
    assert [row["seconds"] for row in resumed.state.log_history if "seconds" in row] == [502, 10, 10]


def test_best_epoch_is_kept_and_not_overwritten_by_a_worse_one(tmp_path):
    trainer = train(CustomTrainer, tmp_path, scores=iter([0.5, 0.9, 0.1, 0.2]), num_train_epochs=4,
                    save_strategy="epoch", save_total_limit=2, load_best_model_at_end=True,
                    metric_for_best_model="score", greater_is_better=True)
    assert trainer.state.best_metric == 0.9
    best = load_file(tmp_path / "checkpoint-20" / "model.safetensors")
    assert all(torch.equal(best[name], tensor) for name, tensor in trainer.model.state_dict().items() if name in best)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-20", "checkpoint-40"]


class OutOfMemory:
    """Stands in for a model's forward: micro-batches of more than `limit` examples do not fit from call `first` on."""

    def __init__(self, model, limit, first=0):
        self.forward, self.limit, self.first, self.sizes = model.forward, limit, first, []

    def __call__(self, *args, **inputs):
        self.sizes.append(len(inputs["input_ids"]))
        if self.sizes[-1] > self.limit and len(self.sizes) > self.first:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.forward(*args, **inputs)


@pytest.mark.parametrize(("accumulation", "first"), [(1, 0), (3, 4)])  # at once; in the middle of the second update
def test_too_little_memory_makes_micro_batches_smaller_and_leaves_the_result(tmp_path, capsys, accumulation, first):
    settings = {"gradient_accumulation_steps": accumulation, "logging_steps": 3, "eval_strategy": "no"}
    whole = train(CustomTrainer, tmp_path / "a", dropout=0.0, **settings)
    model = make_model(0.0)
    model.forward = forward = OutOfMemory(model, limit=1, first=first)
    cut = train(CustomTrainer, tmp_path / "b", model=model, **settings)
    assert cut.cuts == 4
    assert max(forward.sizes[first + 3:]) == 1
    assert (weights(cut) - weights(whole)).abs().max() < 1e-5
    for names in (("loss", "grad_norm"), ("epoch_train_loss", "epoch_train_accuracy")):
        assert np.allclose(logs(cut, *names), logs(whole, *names), rtol=1e-4)
    assert "out of memory with 4 examples in a micro-batch: going on with 2" in capsys.readouterr().out


def test_prediction_takes_smaller_batches_where_memory_does_not_suffice():
    model, data, kind = make_model(), make_dataset(), common.KINDS["classification"]
    whole = common.predict(model, data, kind, 16)
    model.forward = forward = OutOfMemory(model, limit=5)
    smaller = common.predict(model, data, kind, 16)
    assert np.allclose(whole.logits, smaller.logits, atol=1e-6)
    assert np.allclose(whole.vectors, smaller.vectors, atol=1e-6)
    assert sum(size for size in forward.sizes if size <= 5) == len(data)


def test_train_loss_and_accuracy_are_over_examples(tmp_path):
    """Learning rate 0, no dropout: the epoch's figures are those of the whole training set at once."""
    trainer = train(CustomTrainer, tmp_path, dropout=0.0, learning_rate=0.0, num_train_epochs=1)
    data = make_dataset()
    batch = data.collate([data[i] for i in range(len(data))])
    labels = batch.pop("labels")
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(**batch).logits
    (loss, accuracy), = logs(trainer, "epoch_train_loss", "epoch_train_accuracy")
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(-1) == labels).double().mean().item(), abs=1e-7)


def test_class_weights_weigh_training_and_evaluation(tmp_path):
    pair, data = torch.tensor([0.5, 3.0]), make_dataset(11, seed=1)
    trainer = CustomTrainer(model=make_model(0.0), args=make_arguments(tmp_path), class_weights=pair, eval_dataset=data)
    batch = data.collate([data[i] for i in range(11)])
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=11)
    logits = trainer.model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    by_hand = sum(pair[y] * -torch.log_softmax(row, -1)[y] for row, y in zip(logits, batch["labels"], strict=True)) / 11
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(by_hand.item(), rel=1e-5)


def test_a_loss_function_of_ones_own_is_given_the_examples_of_the_update(tmp_path):
    """Of a model's outputs, labels and their number, as Trainer's compute_loss_func; evaluation takes it too."""
    def loss(outputs, labels, num_items_in_batch):
        return torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    a = train(CustomTrainer, tmp_path, gradient_accumulation_steps=3)
    b = train(CustomTrainer, tmp_path, gradient_accumulation_steps=3, more={"compute_loss_func": loss})
    c = train(CustomTrainer, tmp_path, more={"compute_loss_func": lambda *given, **named: 2 * loss(*given, **named)})
    assert torch.equal(weights(a), weights(b))
    assert logs(a, "eval_loss") == logs(b, "eval_loss")
    assert logs(c, "eval_loss")[0][0] > 1.5 * logs(b, "eval_loss")[0][0]


@pytest.mark.parametrize("changes", [{"label_smoothing_factor": 0.1}, {"lr_scheduler_type": "reduce_lr_on_plateau"}])
def test_what_the_loop_does_without_is_refused(tmp_path, changes):
    with pytest.raises(NotImplementedError, match=next(iter(changes))):
        CustomTrainer(model=make_model(), args=make_arguments(tmp_path, **changes), eval_dataset=make_dataset())


def test_no_wait_for_the_device_between_logs(tmp_path, monkeypatch):
    """Tensor.item, bool(tensor) and the like make the host wait; between two logs none of them is called."""
    waits = []
    for name in ("item", "tolist", "__bool__", "__float__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *a, _o=original, _n=name, **k: (
            waits.append((_n, sys._getframe(1).f_code.co_name)), _o(self, *a, **k))[1])
    train(CustomTrainer, tmp_path, logging_steps=1000, eval_strategy="no", num_train_epochs=1)
    in_loop = {"_inner_training_loop", "compute_loss", "loss_of", "_count", "_cut_smaller", "<listcomp>"}
    assert not [wait for wait in waits if wait[1] in in_loop]
    assert ("tolist", "_close_epoch") in waits  # the probe works


# What we take from Trainer's inside, with the parameters that we rely on; a new version has to be read again.
def make_notebook_trainer(trainer_class, folder, recorder):
    """A trainer as in a notebook: a data set of the library datasets, 6 batches, and Trainer's arguments alone."""
    rng = np.random.default_rng(0)
    rows = datasets.Dataset.from_dict({
        "input_ids": [rng.integers(1, 50, size=6).tolist() for _ in range(22)], "label": [0, 1] * 11,
        "unused": ["text"] * 22})
    return trainer_class(model=make_model(), args=make_arguments(folder, remove_unused_columns=True),
                         train_dataset=rows, eval_dataset=rows, data_collator=DefaultDataCollator(),
                         callbacks=[recorder])


def test_a_notebook_needs_no_more_than_trainers_own_arguments(tmp_path):
    """Any data set, nothing but Trainer's arguments: the same weights, logs and events as Trainer's, a resume too."""
    recorders, trainers = [Recorder(), Recorder()], []
    for trainer_class, recorder in zip((CustomTrainer, Trainer), recorders, strict=True):
        trainers.append(make_notebook_trainer(trainer_class, tmp_path / trainer_class.__name__, recorder))
        output = trainers[-1].train()
        assert output.global_step == 18
        assert math.isfinite(output.training_loss)
    ours, stock = trainers
    assert torch.equal(weights(ours), weights(stock))
    for names in (("loss", "grad_norm", "learning_rate"), ("eval_loss",)):
        assert logs(ours, *names) == logs(stock, *names)
    assert recorders[0].events == recorders[1].events
    assert np.array_equal(*(trainer.predict(trainer.eval_dataset).predictions for trainer in trainers))
    for stop_after in (6, 8):  # at the end of the first epoch, within the second
        folder = tmp_path / f"part{stop_after}"
        make_notebook_trainer(CustomTrainer, folder, Recorder(stop_after)).train()
        resumed = make_notebook_trainer(CustomTrainer, folder, Recorder())
        resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{stop_after}"))
        assert torch.equal(weights(ours), weights(resumed))
        assert history(ours) == history(resumed)


class TestLengthGroupedBatches:
    def batches(self, seed=1, epoch=0, window=50, examples=1003, process=0, processes=1):
        lengths = np.random.default_rng(0).integers(3, 100, size=examples)
        batches = common.LengthGroupedBatches(lengths, 16, seed, window, process, processes)
        batches.set_epoch(epoch)
        return batches

    def test_every_example_once_and_a_function_of_seed_and_epoch(self):
        found = list(self.batches())
        assert sorted(example for batch in found for example in batch) == list(range(1003))
        assert [len(batch) for batch in found] == [16] * 62 + [11]
        assert found == list(self.batches())
        assert found not in (list(self.batches(epoch=1)), list(self.batches(seed=2)))

    def test_batches_hold_like_lengths(self):
        def padding(window):
            batches = self.batches(window=window)
            lengths = batches.lengths
            return sum(len(batch) * lengths[batch].max() for batch in batches) / lengths.sum()
        assert padding(50) < 1.1 < 1.5 < padding(1)

    @pytest.mark.parametrize("examples", [1003, 994, 7])  # a remainder of 11, of 2, which joins a batch, and of 7
    def test_processes_share_each_batch(self, examples):
        parts = [list(self.batches(examples=examples, process=process, processes=4)) for process in range(4)]
        assert {len(part) for part in parts} == {len(self.batches(examples=examples, processes=4))}
        found = [example for part in parts for batch in part for example in batch]
        assert sorted(found) == list(range(examples))
        assert all(batch for part in parts for batch in part)
        sizes = [sum(map(len, shares)) for shares in zip(*parts, strict=True)]
        assert max(sizes) - 16 < 4
