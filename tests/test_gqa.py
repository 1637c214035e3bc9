"""GQA's own kinds: one answer of an open set of hundreds, and images, opened one by one."""

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from toys import batch_of, pictures, table_of, task_of

import common
from catalog import gqa

ANSWERS, VISUAL = gqa.KINDS["answers"], gqa.KINDS["visual"]


def test_an_answer_outside_the_set_counts_as_wrong():
    task, table = task_of("answers"), pd.DataFrame({"label": ["dog", "zebra"]})
    predictions = ANSWERS.predict(np.array([[0.0, 1, 0], [0.0, 1, 0]]), table, task, None)
    assert predictions[["gold", "predicted", "correct"]].to_numpy().tolist() == [
        ["dog", "dog", True], ["zebra", "dog", False]]
    assert predictions["gold_confidence"][1] == 0
    assert not any(name.startswith("prob_") for name in predictions)  # a column for each of hundreds
    assert ANSWERS.metrics(predictions, task) == {"accuracy": 0.5}


def test_images_are_opened_one_by_one_and_padded(monkeypatch):
    opened = []
    monkeypatch.setattr(VISUAL, "images", type("", (dict,), {
        "__getitem__": lambda self, name: (opened.append(name), self.get(name))[1]})(pictures()))
    dataset = VISUAL.encode(table_of("visual"), task_of("visual"), common.word_tokenizer(["a"]), 14)
    assert opened == []
    batch, _ = batch_of(dataset, [0, 1])
    assert opened == ["0", "1"]
    # 40 x 80 becomes 320 x 608: the longer edge is at most 639, and both are multiples of 32
    assert batch["pixel_values"].shape == (2, 3, 384, 608)
    assert batch["pixel_mask"].sum(dim=(1, 2)).tolist() == [384 * 384, 320 * 608]
    assert (batch["pixel_values"][0][:, :, 384:] == 0).all()


@pytest.mark.parametrize(("max_images", "there"), [(None, 3), (2, 2)])
def test_questions_without_an_image_are_left_out_and_counted(monkeypatch, tmp_path, max_images, there):
    """--max-images takes the first ones of each split from a stream, so that the others are never fetched."""
    def load_dataset(hub, config, split, revision, streaming=False):
        names = [f"{split}-{i}" for i in range(3)]
        if config == "questions":
            questions = datasets.Dataset.from_dict({
                "imageId": [*names, "nowhere"], "question": ["what?"] * 4, "answer": ["dog"] * 4})
            questions.info.download_checksums = {}
            return questions
        assert streaming == (max_images is not None)
        images = datasets.Dataset.from_dict({"id": names, "image": [Image.new("L", (4, 4), 255)] * 3}).cast_column(
            "image", datasets.Image())
        return images.to_iterable_dataset() if streaming else images

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    tables = gqa.read(tmp_path, {
        "key": "x", "hub": "a/b", "splits": {"train": "train", "test": "val"}, "config": "questions",
        "image": "imageId", "images": {"train": "t", "val": "v"}, "max_images": max_images})
    assert {name: len(table) for name, table in tables.items()} == {"train": there, "val": there}
    assert tables["val"].attrs["dropped"] == {"without an image": 4 - there}
    assert VISUAL.images["val-0"].getpixel((0, 0)) == (255, 255, 255)  # RGB, whatever it was


