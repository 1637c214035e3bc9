"""GQA: questions about images. The kinds `answers`, of the questions alone, and `visual`, which sees the images."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
import transformers
from torch import Tensor

from common import (
    Array,
    Counts,
    Kind,
    Table,
    Task,
    TokenDataset,
    keep,
    label_text,
    loading,
    pad_values,
    read_hub,
    tokenize,
)


class Answers(Kind):
    """One answer of a closed set of hundreds. label: the answer's text, so that one outside the set stays readable."""

    takes_class_weights = False
    confidence_is = "softmax probability of the predicted answer"
    METRICS = {"accuracy": lambda counts, task: counts.all_right}

    def read_labels(self, column: pd.Series, task: Task) -> pd.Series:
        """The answers as text; None where there is none."""
        return column.map(lambda answer: label_text(answer) or None)

    def targets(self, table: Table, task: Task) -> Array:
        """int64 (examples,): positions in task["labels"]; -2 for an answer outside it."""
        numbers = {label: number for number, label in enumerate(task["labels"])}
        return table["label"].map(lambda answer: numbers.get(answer, -2)).to_numpy(dtype=np.int64)

    def strata(self, table: Table, task: Task) -> Array:
        """The answers."""
        return table["label"].to_numpy()

    def predict(self, logits: Array, table: Table, task: Task, dataset: TokenDataset) -> Table:
        """As for a small closed set, but without a column per answer; an answer outside the set has probability 0."""
        predictions = super().predict(logits, table, task, dataset).loc[:, :"margin"]
        known = self.targets(table, task) >= 0
        return predictions.assign(gold=table["label"].to_numpy(),
                                  gold_confidence=predictions["gold_confidence"].where(known, 0.0))

    def figures(self, predictions: Table, task: Task, weights: Array) -> dict[str, Array]:
        """The share of right answers."""
        right = predictions["correct"].to_numpy()[:, None]
        return {"accuracy": Counts(right | True, right, weights).all_right}

    # What llm_compare.py asks an LLM for, and how it reads the first line of the answer.
    answer_form = {"request": "Answer with a single word or a short phrase and nothing else.",
                   "parse": lambda line: (line, "text") if any(map(str.isalnum, line)) else (None, "no word")}


class ImageDataset(TokenDataset):
    """Questions with the image of each: an image is opened when its example is asked for, so memory stays flat.

    columns, labels, pads: as TokenDataset's; names: per example, the id of its image; images: id -> PIL image.
    """

    def __init__(self, columns: dict[str, Any], labels: Array, pads: dict[str, int], names: list[str], images: Any):
        super().__init__(columns, labels, pads)
        self.names, self.images = names, images
        self.processor = transformers.ViltImageProcessorPil()  # PIL and numpy, without torchvision

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The question's tokens, pixel_values (float32 (3, height, width), the shorter edge 384) and the label."""
        pixels = self.processor([self.images[self.names[index]]], return_tensors="np")["pixel_values"][0]
        return {**super().__getitem__(index), "pixel_values": pixels}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """TokenDataset's tensors, pixel_values (batch, 3, height, width) and pixel_mask, 0 on the padding."""
        pixels = [torch.from_numpy(example["pixel_values"]) for example in examples]
        height, width = (max(image.shape[axis] for image in pixels) for axis in (1, 2))
        values = torch.zeros(len(pixels), 3, height, width)
        mask = torch.zeros(len(pixels), height, width, dtype=torch.int64)
        for i, image in enumerate(pixels):
            values[i, :, :image.shape[1], :image.shape[2]] = image
            mask[i, :image.shape[1], :image.shape[2]] = 1
        return {**super().collate(examples), "pixel_values": values, "pixel_mask": mask}


class Visual(Answers):
    """A question about an image, whose id stands in the column task["image"]; ViLT reads both."""

    auto_class = "AutoModelForVisualQuestionAnswering"
    model_types = ("vilt",)  # BLIP writes its answers out
    sample_config = "ViltConfig"
    images: Any = None  # those of the questions that read() returned last

    def encode(self, table: Table, task: Task, tokenizer: Any, max_length: int) -> ImageDataset:
        """The questions as tokens, the images as they are asked for."""
        columns = tokenize(tokenizer, table[task["text"][0]].tolist(), None, max_length)
        return ImageDataset(columns, self.targets(table, task), pad_values(tokenizer), table[task["image"]].tolist(),
                            self.images)

    def sample_llm(self, tokenizer: Any, config: Any) -> tuple[Any, Any]:
        """Processor and model of --sample's vision-language model: a LLaVA of `config` that sees through a CLIP."""
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
        vision = transformers.CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                               num_attention_heads=2, image_size=32, patch_size=8)
        model = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(
            vision_config=vision, text_config=config, image_token_id=tokenizer.convert_tokens_to_ids("<image>")))
        pixels = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        template = tokenizer.chat_template.replace("message.content", "'<image>\n' + message.content[1].text")
        return transformers.LlavaProcessor(
            pixels, tokenizer, patch_size=8, num_additional_image_tokens=1, chat_template=template,
            vision_feature_select_strategy="default"), model


KINDS = {"answers": Answers(), "visual": Visual()}


class Images:
    """The images of a datasets.Dataset with the columns id and image, by id, opened when asked for."""

    def __init__(self, source: Any):
        self.source, self.places = source, {str(name): row for row, name in enumerate(source["id"])}

    def __getitem__(self, name: str) -> Any:
        """The image as PIL's RGB."""
        with self.source[self.places[name]]["image"] as image:
            return image.convert("RGB")


def read(data_dir: Path, task: Task) -> dict[str, Table]:
    """The questions by the hub's splits; KINDS["visual"].images are theirs, task["max_images"] of each split at most.

    Images are the hub's, or those in DIR/<hub id>/images.parquet, of all splits together; task["revision"] is set.
    """
    local, tables = data_dir / task["hub"] / "images.parquet", []
    for name in sorted(set(task["splits"].values())) if not local.is_file() else ():
        with loading(f"the images of {task['hub']}"):
            rows = datasets.load_dataset(task["hub"], task["images"][name], split=name, revision=task.get("revision"),
                                         streaming=task["max_images"] is not None)
            if task["max_images"] is not None:  # as they stand in their files: decoded, they take ten times the memory
                some = list(rows.cast_column("image", datasets.Image(decode=False)).take(task["max_images"]))
                rows = datasets.Dataset.from_list(some).cast_column("image", datasets.Image())
        tables.append(rows.select_columns(["id", "image"]))
    if not tables:
        tables = [datasets.Dataset.from_pandas(pd.read_parquet(local)).cast_column("image", datasets.Image())]
    images = KINDS["visual"].images = Images(datasets.concatenate_datasets(tables))
    questions, task["revision"] = read_hub(task, data_dir)
    return {name: keep(table, table[task["image"]].astype(str).isin([*images.places]), "without an image")
            for name, table in questions.items()}
