"""The loop against independent references: stock Trainer, an uninterrupted run; one large batch is test_kinds.py's."""

import inspect
import sys
from functools import partial
from itertools import chain

import datasets
import numpy as np
import pytest
import torch
from conftest import make_arguments, make_dataset, make_model
from safetensors.torch import load_file
from transformers import DefaultDataCollator, Trainer, TrainerCallback

import common
from common import CustomTrainer

PAIR = torch.tensor([0.5, 3.0])  # how much the examples of each label weigh


class Recorder(TrainerCallback):
    """Keeps (event, step, epoch) of every callback event, and stops the run after an update."""

    def __init__(self, stop_after=None):
        self.events, self.stop_after = [], stop_after

    def __getattribute__(self, name):
        return partial(self.record, name) if name.startswith("on_") else super().__getattribute__(name)

    def record(self, event, args, state, control, **_):
        self.events.append((event, state.global_step, state.epoch))
        if event == "on_step_end" and state.global_step == self.stop_after:
            control.should_save = control.should_training_stop = True


class OurOrder(common.LengthGroupedBatches):
    """Our order as a sampler of single examples, which Trainer cuts into batches itself."""

    def __len__(self):
        return len(self.lengths)

    def __iter__(self):
        return chain.from_iterable(super().__iter__())


class StockTrainer(Trainer):
    """Trainer as it is, with our order of the examples, so that only the loops differ."""

    def _get_train_sampler(self, train_dataset=None):
        return OurOrder(self.train_dataset.lengths, self._train_batch_size, self.args.seed)

    def evaluate(self, *args, **kwargs):
        with torch.random.fork_rng():  # Trainer's evaluation draws a random number, ours none
            return super().evaluate(*args, **kwargs)


def train(trainer_class, folder, dropout=0.1, resume=None, examples=37, more=None, **changes):
    """A trainer after its training; `more` is what it is given, `changes` are of its TrainingArguments."""
    data = make_dataset(examples)
    trainer = trainer_class(args=make_arguments(folder, **changes), **{
        "model": make_model(dropout), "data_collator": data.collate, "train_dataset": data,
        "eval_dataset": make_dataset(11, seed=1), **(more or {})})
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def train_both(folder, more=({}, {}), **changes):
    """Our trainer and Trainer as it is, trained in the same way."""
    return [train(trainer, folder / trainer.__name__, more=one, **changes)
            for trainer, one in zip((CustomTrainer, StockTrainer), more, strict=True)]


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def logs(trainer, *names):
    """The logged values of `names`, without Trainer's clock readings."""
    return [[row[name] for name in names] for row in trainer.state.log_history if all(name in row for name in names)]


def history(trainer):
    """All that history.csv and steps.csv are made of, but for the readings of clocks."""
    return [{name: value for name, value in row.items() if "second" not in name and "runtime" not in name}
            for row in trainer.state.log_history if "train_runtime" not in row]


def test_the_class_can_be_read_from_a_notebook():
    source = inspect.getsource(CustomTrainer._inner_training_loop)
    assert all(f"# {step}. " in source for step in range(1, 8))
    assert len(source.splitlines()) <= 90


@pytest.mark.parametrize("changes", [
    {}, {"max_steps": 5}, {"num_train_epochs": 1.5}, {"max_grad_norm": 0.0},
    {"lr_scheduler_type": "cosine", "warmup_steps": 4},
    {"weight_decay": 0.1, "eval_strategy": "steps", "eval_steps": 4}])
def test_equals_stock_trainer_bit_for_bit(tmp_path, changes):
    recorders = Recorder(), Recorder()
    ours, stock = train_both(tmp_path, [{"callbacks": [recorder]} for recorder in recorders], **changes)
    assert torch.equal(weights(ours), weights(stock))
    names = ("loss", "grad_norm", "learning_rate")
    assert logs(ours, *names) == logs(stock, *names) != []
    assert np.allclose(logs(ours, "eval_loss"), logs(stock, "eval_loss"), rtol=1e-6)  # ours: longest examples first
    assert recorders[0].events == [event for event in recorders[1].events if event[0] != "on_prediction_step"]


def test_accumulation_equals_stock_trainer_with_the_right_scale(tmp_path, monkeypatch):
    """As it is it is k times too large: why we own compute_loss (github.com/huggingface/transformers/issues/47688)."""
    ours, stock = train_both(tmp_path, gradient_accumulation_steps=4, examples=16, dropout=0.0, num_train_epochs=1,
                             max_grad_norm=0.0)
    ratio = np.array(logs(stock, "loss", "grad_norm")) / np.array(logs(ours, "loss", "grad_norm"))
    assert ratio == pytest.approx(np.full((1, 2), 4.0), rel=1e-4)
    monkeypatch.setattr(StockTrainer, "loss_is_scaled_for_ga", False)  # the head's loss is a micro-batch's mean
    ours, stock = train_both(tmp_path, gradient_accumulation_steps=3, examples=36)  # no short one: a mean of means
    assert (weights(ours) - weights(stock)).abs().max() < 1e-5
    assert np.allclose(logs(ours, "loss"), logs(stock, "loss"), atol=1e-6)


@pytest.mark.parametrize(("accumulation", "updates"), [(1, 10), (3, 4)])
def test_resume_at_any_step_equals_the_uninterrupted_run(tmp_path, accumulation, updates):
    settings = {"gradient_accumulation_steps": accumulation, "logging_steps": 3, "num_train_epochs": 2, "examples": 17}
    whole = train(CustomTrainer, tmp_path, **settings)
    assert whole.state.global_step == updates
    for stop_after in range(1, updates):
        train(CustomTrainer, tmp_path, more={"callbacks": [Recorder(stop_after)]}, **settings)
        torch.manual_seed(99)  # the state that a new process happens to have must not matter
        np.random.seed(99)  # noqa: NPY002
        resumed = train(CustomTrainer, tmp_path, resume=str(tmp_path / f"checkpoint-{stop_after}"), **settings)
        assert torch.equal(weights(whole), weights(resumed)), stop_after
        assert history(whole) == history(resumed)
        mine, theirs = (trainer.optimizer.state_dict()["state"] for trainer in (whole, resumed))
        assert all(torch.equal(mine[number][name], theirs[number][name]) for number in mine for name in mine[number])


def test_evaluating_saving_and_callbacks_are_not_counted_as_training(tmp_path, monkeypatch):
    """On a clock that a step moves by 1 and all else by 1000, an epoch of ten steps takes 10 seconds."""
    now, moves = [0.0], {"on_optimizer_step": 1, **dict.fromkeys(
        ("on_train_begin", "on_epoch_begin", "on_epoch_end", "on_evaluate"), 1000)}
    monkeypatch.setattr(common.time, "time", lambda: now[0])

    class Clock(Recorder):
        def record(self, event, *_, **__):
            now[0] += moves.get(event, 0)

    trainer = train(CustomTrainer, tmp_path, more={"callbacks": [Clock()]}, save_strategy="steps", save_steps=4,
                    eval_strategy="steps", eval_steps=3)
    assert logs(trainer, "seconds", "samples_per_second") == [[10, 3.7]] * 3
    resumed = train(CustomTrainer, tmp_path, resume=str(tmp_path / "checkpoint-8"), more={"callbacks": [Clock()]})
    assert logs(resumed, "seconds") == [[10], [10], [10]]  # those before the checkpoint count


def test_best_epoch_is_kept_and_not_overwritten_by_a_worse_one(tmp_path):
    scores = iter([0.5, 0.9, 0.1, 0.2])
    trainer = train(CustomTrainer, tmp_path, more={"compute_metrics": lambda _: {"score": next(scores)}},
                    num_train_epochs=4, save_strategy="epoch", save_total_limit=2, load_best_model_at_end=True,
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
    cut = train(CustomTrainer, tmp_path / "b", more={"model": model}, **settings)
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


def loss_by_hand(outputs, labels, num_items_in_batch):
    """Cross-entropy that weighs the labels by PAIR, given to Trainer as compute_loss_func."""
    return sum(PAIR[label] * -torch.log_softmax(row, -1)[label]
               for row, label in zip(outputs["logits"], labels, strict=True)) / num_items_in_batch


@pytest.mark.parametrize("more", [{}, {"class_weights": PAIR}, {"compute_loss_func": loss_by_hand}])
def test_losses_are_means_over_examples_in_training_and_evaluation(tmp_path, more):
    """Learning rate 0, no dropout: an epoch's figures are those of the whole set at once, by hand or by torch."""
    trainer = train(CustomTrainer, tmp_path, dropout=0.0, learning_rate=0.0, num_train_epochs=1, more=more,
                    gradient_accumulation_steps=3)
    trainer.model.eval()
    for part, data in (("epoch_train_", make_dataset()), ("eval_", make_dataset(11, seed=1))):
        batch = data.collate([data[i] for i in range(len(data))])
        labels = batch.pop("labels")
        with torch.no_grad():
            outputs = trainer.model(**batch)
        loss = loss_by_hand(outputs, labels, len(data)) if more else torch.nn.functional.cross_entropy(
            outputs.logits, labels)
        assert logs(trainer, f"{part}loss") == [[pytest.approx(loss.item(), rel=1e-5)]]
        if part == "epoch_train_":
            accuracy = (outputs.logits.argmax(-1) == labels).double().mean().item()
            assert logs(trainer, "epoch_train_accuracy") == [[pytest.approx(accuracy, abs=1e-7)]]


@pytest.mark.parametrize("changes", [{"label_smoothing_factor": 0.1}, {"lr_scheduler_type": "reduce_lr_on_plateau"}])
def test_what_the_loop_does_without_is_refused(tmp_path, changes):
    with pytest.raises(NotImplementedError, match=next(iter(changes))):
        CustomTrainer(model=make_model(), args=make_arguments(tmp_path, **changes), eval_dataset=make_dataset())


def test_no_wait_for_the_device_between_logs(tmp_path, monkeypatch):
    """Tensor.item, bool(tensor) and the like make the host wait: twice the steps call none of them more often."""
    waits, counts = [], []
    for name in ("item", "tolist", "__bool__", "__float__", "cpu", "numpy"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *a, _real=real, **k: (
            waits.append(sys._getframe(1).f_code.co_filename), _real(self, *a, **k))[1])
    for examples in (37, 73):
        waits.clear()
        train(CustomTrainer, tmp_path, examples=examples, logging_steps=1000, eval_strategy="no", num_train_epochs=1)
        counts.append(waits.count(common.__file__))
    assert counts[0] == counts[1] > 0


def test_a_notebook_needs_no_more_than_trainers_own_arguments(tmp_path):
    """Any data set, nothing but Trainer's arguments: the same weights, logs and events as Trainer's, a resume too."""
    rng, recorders = np.random.default_rng(0), [Recorder(), Recorder()]
    rows = datasets.Dataset.from_dict({  # 6 batches
        "input_ids": [rng.integers(1, 50, size=6).tolist() for _ in range(22)], "label": [0, 1] * 11,
        "unused": ["text"] * 22})

    def train_plainly(trainer_class, recorder, resume=None):
        more = {"train_dataset": rows, "eval_dataset": rows, "data_collator": DefaultDataCollator(),
                "callbacks": [recorder]}
        return train(trainer_class, tmp_path, resume=resume, more=more, remove_unused_columns=True)

    ours, stock = map(train_plainly, (CustomTrainer, Trainer), recorders)
    assert torch.equal(weights(ours), weights(stock))
    for names in (("loss", "grad_norm", "learning_rate"), ("eval_loss",)):
        assert logs(ours, *names) == logs(stock, *names) != []
    assert recorders[0].events == recorders[1].events
    assert np.array_equal(*(trainer.predict(rows).predictions for trainer in (ours, stock)))
    for stop_after in (6, 8):  # at the end of the first epoch, within the second
        train_plainly(CustomTrainer, Recorder(stop_after))
        resumed = train_plainly(CustomTrainer, Recorder(), str(tmp_path / f"checkpoint-{stop_after}"))
        assert torch.equal(weights(ours), weights(resumed))
        assert history(ours) == history(resumed)


def make_batches(seed=1, epoch=0, window=50, examples=1003, process=0, processes=1):
    lengths = np.random.default_rng(0).integers(3, 100, size=examples)
    batches = common.LengthGroupedBatches(lengths, 16, seed, window, process, processes)
    batches.set_epoch(epoch)
    return batches


def test_batches_hold_every_example_once_and_hang_on_seed_and_epoch():
    found = list(make_batches())
    assert sorted(chain.from_iterable(found)) == list(range(1003))
    assert [len(batch) for batch in found] == [16] * 62 + [11]
    assert found == list(make_batches())
    assert found not in (list(make_batches(epoch=1)), list(make_batches(seed=2)))


def test_batches_hold_like_lengths():
    sorted_ones, shuffled = (
        sum(len(batch) * batches.lengths[batch].max() for batch in batches) / batches.lengths.sum()
        for batches in (make_batches(), make_batches(window=1)))
    assert sorted_ones < 1.1 < 1.5 < shuffled  # tokens, padding included, per token


@pytest.mark.parametrize("examples", [1003, 994, 7])  # a remainder of 11, of 2, which joins a batch, and of 7
def test_processes_share_each_batch(examples):
    parts = [list(make_batches(examples=examples, process=process, processes=4)) for process in range(4)]
    assert {len(part) for part in parts} == {len(make_batches(examples=examples, processes=4))}
    shares = list(chain.from_iterable(parts))
    assert all(shares)
    assert sorted(chain.from_iterable(shares)) == list(range(examples))
    assert max(sum(map(len, batch)) for batch in zip(*parts, strict=True)) - 16 < 4
