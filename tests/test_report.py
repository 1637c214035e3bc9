"""report.md and report.tex: the numbers are those of the files, texts come out as they stand, notes are never lost."""

import itertools
import json
import random
import re
import shutil
import subprocess

import pandas as pd
import pytest
from conftest import run
from test_errors import fill_in
from test_visualize import write_run

import common

NASTY = [
    r"\input{/etc/passwd} \write18{id} ^^5cinput{x} ^^M", "100% of #tags & $5 ~ _under_ }{ \\", "[0pt] a bracket",
    "* a star", "@user 😂👩🏽‍🚀🇩🇪❤️‍🔥 so #funny!!! https://t.co/Ab_c%20d?x=1&y=2#z", "- a dash", "1. one",
    "!`?` ''x'',,",
    "naïve Łódź Đặng ế ẹ́ ß “q” — … € ½ ² ≠ ∑ ĳ ŉ ﬁ", "中文文本没有空格所以需要换行" * 5, "السلام ‮evil‬ हिन्दी አማርኛ ɓ",
    "a" * 300, "W" * 12, "--flag << >> |pipe|", "=cmd|' /C calc'!A1", r"\end{document} % comment", "$x^2$ \\begin{x}",
    "<script>alert(1)</script> &amp; `code` **b** [l](javascript:a) ![i](x)", "tab\tbell\x07\x1b[31m"]
ALPHABET = "\\&%$#_{}~^<>|\"'`-[]*!()+=:/.,0123456789 \t\u0301\u0323éßŁ中م😂\u200d\u2028\u00a0\x07\x1b" + "abc" * 8


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run after all five scripts, with an annotated sheet and figures of three seeds."""
    runs = tmp_path_factory.mktemp("runs")
    flags, folder = ["--dataset", "mrpc", "--sample", "--runs-dir", runs], runs / "mrpc/sample/seed42"
    for script, more in {"train": ["--num-train-epochs", 2, "--keep-epochs", 0, 2, "--max-train-samples", 60],
                         "evaluate": ["--baselines"], "errors": [], "llm_compare": ["--max-samples", 16]}.items():
        assert run(script, *flags, *more) == 0
    sheet = common.read_csv(folder / "errors.csv")
    fill_in(folder, cause=["surface pattern | over-generalisation", "surface pattern"] + [""] * (len(sheet) - 2),
            solution="more data: pairs that share most words")
    common.write_csv(folder.parent / "seeds.csv", pd.DataFrame({
        "metric": ["accuracy", "f1"], "mean": [0.7123, 0.8234], "sd": [0.0125, 0.0238], "n": 3}))
    shutil.copy(folder / "confusion.png", folder / "embedding_tsne.png")  # t-SNE takes its time
    for script, more in {"errors": [], "visualize": ["--method", "pca"]}.items():
        assert run(script, *flags, *more) == 0
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    shutil.copy(finished.parent / "seeds.csv", tmp_path)
    return shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("model"))


def visualize(folder):
    return run("visualize", "--run", folder, "--method", "pca")


def reports(folder):
    return [(folder / f"report.{ending}").read_text(encoding="utf-8") for ending in ("md", "tex")]


# ---- Numbers and references -----------------------------------------------------------------------------------------


def test_every_decimal_in_prose_and_tables_is_a_number_of_the_run(finished):
    prose = re.sub(r"\(http\S*\)", "", reports(finished)[0].split("## References")[0])
    prose = prose.replace(r"\-", "-").replace(r"\+", "+")
    files = [path for path in [*finished.glob("*.csv"), finished.parent / "seeds.csv"]
             if path.name not in ("predictions.csv", "steps.csv")]
    known = [float(cell) for path in files for row in pd.read_csv(path, dtype=str).to_numpy() for cell in row
             if isinstance(cell, str) and re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", cell)]

    def leaves(value):
        return itertools.chain(*map(leaves, value.values() if isinstance(value, dict) else value)) if isinstance(
            value, dict | list) else [value] if isinstance(value, float | int) else []

    seconds = [number for name, number in common.read_run(finished)["training"].items() if "seconds" in name]
    known += [*leaves(common.read_run(finished)), *(number / 60 for number in seconds)]
    found = re.findall(r"(?<![\w.])[-+]?\d[\d,]*\.\d+(?:e-?\d+)?(?!\d|\.\d)", prose)
    assert len(found) > 100
    for text in found:
        places = len(text.split("e")[0].split(".")[1]) - int([*text.split("e"), "0"][1])
        assert any(abs(scale * number - float(text.replace(",", ""))) <= 0.51 * 10 ** -places
                   for number in known for scale in (1, 100)), text


def test_each_paper_is_listed_once_and_all_is_referred_to(finished):
    markdown, latex = reports(finished)
    entries = re.findall(r"(?m)^\d+\. (.*)$", markdown.split("## References")[1].split("## Appendix")[0])
    links = re.findall(r"<(http\S+)>", "\n".join(entries))
    assert len(entries) == len(set(entries)) > 9 and len(links) == len(set(links)) == len(entries) - 1
    assert sum("BERT: Pre-training" in entry for entry in entries) == 1  # the model's, and of a published score
    assert set(re.findall(r"\\bibitem\{(\d+)\}", latex)) == {
        number for cited in re.findall(r"\\cite\{([\d,]+)\}", latex) for number in cited.split(",")} == {
        str(number) for number in range(1, len(entries) + 1)}
    assert set(re.findall(r"\\label\{(.*?)\}", latex)) == set(re.findall(r"\\ref\{(.*?)\}", latex))
    names = set(re.findall(r"includegraphics\[.*?\]\{(.*?)\.png\}", latex))
    assert names == set(re.findall(r"!\[.*?\]\((.*?)\.png\)", markdown)) and all(
        (finished / f"{name}.png").is_file() for name in names)
    assert {"learning_curve", "confusion", "calibration", "embedding_pca", "embedding_epochs", "llm_compare"} <= names
    for what in ("Figure", "Table"):
        numbered = re.findall(rf"(?m)^\*{what} (\d+): ", markdown)
        assert numbered == [str(number) for number in range(1, len(numbered) + 1)]
        assert set(re.findall(rf"(?<!\*){what}\s(\d+)(?!\d|: )", markdown)) == set(numbered)


def test_a_run_of_which_little_is_known_has_a_report(tmp_path):
    """No dropout (Gemma 3 has none), no sheet, no LLM, no label."""
    its = common.read_run(write_run(tmp_path))
    its["model_info"]["dropout"] = {}
    common.write_json(tmp_path / "run.json", its)
    assert visualize(tmp_path) == 0
    for report in reports(tmp_path):
        assert "sheet of errors is still TO WRITE" in report and "TO WRITE: no LLM has been asked yet" in report


# ---- What a person writes -------------------------------------------------------------------------------------------


def test_what_a_person_wrote_stands_in_both_reports_and_is_never_overwritten(folder):
    notes = ("junk\r\n## Author \r\nÅsa & Co\r\n##  How the training went ##\r\nWell.\r\n\r\n- a_b\r\n- c <!-- x -->"
             "\r\n## Mine: 100%\r\n### too\r\n## What was hardest\r\n<!-- still\r\n\r\nto come -->")
    (folder / "report_notes.md").write_bytes(notes.encode("utf-16"))
    assert run("errors", "--run", folder) == visualize(folder) == 0
    assert (folder / "report_notes.md").read_bytes() == notes.encode("utf-16")
    markdown, latex = reports(folder)
    assert r"Åsa \& Co" in markdown and r"\author{Åsa \uc{26} Co}" in latex and "junk" not in markdown + latex
    for report, parts in ((markdown, ["Well.", r"\- a\_b", r"\- c"]), (latex, ["Well.", r"\uc{2D} a", r"\uc{2D} c"])):
        assert [report.index(part) for part in parts] == sorted(report.index(part) for part in parts)
        assert "TO WRITE: Author" not in report and "TO WRITE: How the training" not in report
        assert "TO WRITE: What was hardest" in report
    assert "## Mine: 100%\n" in markdown and r"\section{Mine: 100\uc{25}}" in latex


# ---- Hostile texts, and LaTeX ---------------------------------------------------------------------------------------


def plain(text):
    return " ".join(re.split(r"[\s\x00-\x1f\x7f-\x9f]+", text)).strip()


def from_markdown(line):
    bare = re.sub(r"\\.", "x", line)
    assert not re.search(r"[<>$~`*_\[\]#|\\&]|^[-+=]|^\d+[.)]( |$)", bare), line
    return re.sub(r"\\(.)", r"\1", line).strip()


def from_latex(line):
    line = re.sub(r"\\mbox\{(.*?\})\}", r"\1", line.replace(r"\allowbreak{}", ""))
    assert not set("\\{}$&#%_~^<>|\"'`[]") & set(re.sub(r"\\uc\{[0-9A-F]+\}", "", line)), line
    return re.sub(r"\\uc\{([0-9A-F]+)\}", lambda found: chr(int(found[1], 16)), line).strip()


@pytest.fixture(scope="module")
def hostile(finished, tmp_path_factory):
    """A run of whose texts none is what it should be; also what stands under `## Mine` in its notes."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("hostile") / "run")
    n = len(common.read_csv(folder / "errors.csv"))
    texts = [*NASTY, "\ud83d half \udc00"] * n
    fill_in(folder, **{name: pd.Series(texts[shift:shift + n], dtype=object)
                       for shift, name in enumerate(("input", "cause", "solution", "llm_prediction", "gold"))})
    its = common.read_run(folder)
    its["task"] |= {"title": NASTY[1], "labels": NASTY[:6], "cite": f"{NASTY[1]} and Röttger (2020), {NASTY[1]}"}
    its["data"] |= {"source": NASTY[4], "labels": {"test": dict.fromkeys(NASTY, 3)}}
    common.write_json(folder / "run.json", {**its, "model": "evil/\\input{x}_%#$&~^"})
    chance = random.Random(0)
    texts = [*NASTY, *("".join(chance.choices(ALPHABET, k=chance.randrange(1, 60))) for _ in range(400))]
    texts = [text for text in texts if plain(text) and "<!--" not in text and not text.startswith("##")]
    notes = "".join(f"## {title}\n" + "\n\n".join(part) + "\n" for title, part in (
        ("Author", NASTY[:3]), ("What was hardest", NASTY), ("Mine", texts), ("50%", ["x"])))
    (folder / "report_notes.md").write_text(notes, encoding="utf-8")
    assert visualize(folder) == 0
    return folder, texts


def test_any_text_comes_out_as_it_stands(hostile):
    folder, texts = hostile
    markdown, latex = reports(folder)
    for report, begin, end, decode in ((markdown, "## Mine\n", "## 50", from_markdown),
                                       (latex, r"\section{Mine}", r"\section{50", from_latex)):
        part = report.split(begin)[1].split(end)[0]
        lines = [line for line in part.split("\n") if line.strip()]
        assert [decode(line) for line in lines] == [plain(text) for text in texts]


def compile_report(folder, engine, passes):
    """Pages of report.pdf; fails on an error, a lost character or, of two passes, a wide box or a lost reference."""
    if not shutil.which(engine):
        pytest.skip(f"{engine} is not installed (Debian: texlive-latex-recommended, lmodern, texlive-xetex)")
    for _ in range(passes):
        done = subprocess.run([engine, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "report.tex"],
                              cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        assert done.returncode == 0, done.stdout[-3000:]
    log = (folder / "report.log").read_text(encoding="utf-8", errors="replace")
    assert not re.search(r"(?m)^!|Missing character" + "|undefined" * (passes > 1), log)
    assert passes == 1 or [width for width in re.findall(r"Overfull \\hbox \((\d+)", log) if int(width) > 5] == []
    return int(re.search(r"report\.pdf \((\d+) page", log.replace("\n", ""))[1])


@pytest.mark.parametrize("engine", ["pdflatex", "xelatex"])
def test_the_report_of_a_run_compiles_and_fits_six_pages(folder, engine):
    notes = re.sub("<!--.*?-->", "Some words.", (folder / "report_notes.md").read_text(encoding="utf-8"), flags=re.S)
    (folder / "report_notes.md").write_text(notes, encoding="utf-8")
    visualize(folder)
    assert compile_report(folder, engine, 2) <= 6
    assert not any("TO WRITE" in report for report in reports(folder))


@pytest.mark.parametrize("engine", ["pdflatex", "xelatex"])
def test_hostile_text_compiles_and_is_printed(hostile, engine):
    folder, _ = hostile
    compile_report(folder, engine, 1)
    if shutil.which("pdftotext"):
        text = subprocess.run(["pdftotext", "report.pdf", "-"], cwd=folder, capture_output=True, check=True).stdout
        assert rb"\input{/etc/passwd}" in text and b"root:" not in text and b"[U+1F602]" in text
        assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["model"].encode()[:9] in text
