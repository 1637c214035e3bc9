"""The report: text comes out as it stands, numbers are those of the CSV files, what a person wrote is never lost."""

import html
import re
import shutil
import subprocess

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import common
import errors
import evaluate
import llm_compare
import train
import visualize
from common import UserError
from visualize import (
    Figure,
    Heading,
    Note,
    Table,
    Text,
    column_widths,
    escape_latex,
    escape_markdown,
    write_report,
)

NASTY = [
    r"\input{/etc/passwd} \write18{id} ^^5cinput{x} ^^M", "100% of #tags & $5 ~ _under_ }{ \\", "[0pt] a bracket",
    "* a star", "@user 😂👩🏽‍🚀🇩🇪❤️‍🔥 so #funny!!! https://t.co/Ab_c%20d?x=1&y=2#z",
    "naïve Łódź Đặng ế ẹ́ ß “q” — … € ½ ² ≠ ∑", "中文文本没有空格所以需要换行" * 5, "السلام ‮evil‬ हिन्दी አማርኛ ɓ",
    "a" * 300, "W" * 12, "--flag ,, '' `` << >> !` |pipe|",
    "line1\n\nline2\ttab\x00\x07\x1b[31m", "", "  ", "\ud83d half \udc00", r"\end{document} % comment", "- a dash",
    "<script>alert(1)</script> &amp; `code` **b** [l](javascript:a) ![i](x)", "1. one", "$x^2$ \\begin{verbatim}"]
TEXTS = st.text(st.characters() | st.sampled_from("\\&%$#_{}~^<>|\"'`-[]*\n\u0301\u0323é"), max_size=40)
COMMAND = re.compile(r"\\(?:[A-Za-z]+|`)\{\}|\\[#$%&_]|\\-|(?<=([-,']))\{\}(?=\1)")
ACCENT = re.compile(r"\\(?:[`'^~=.\"]|[Hbcdkruv])\{[A-Za-z]?\}")


def unaccented(text):
    """`text` without its accents, from the inner ones to the outer ones."""
    while ACCENT.search(text):
        text = ACCENT.sub("", text)
    return text


@given(TEXTS, st.sampled_from([12, 16]))
def test_latex_has_no_character_that_means_anything(text, longest):
    escaped = escape_latex(text, longest)
    assert escaped.isascii() and (escaped.isprintable() or not escaped)
    assert not set("\\&%$#_{}~^<>|\"`") & set(unaccented(COMMAND.sub("", escaped)))
    assert not re.search("--|,,|''", escaped)


@pytest.mark.parametrize(("text", "latex"), [
    ("a_b & 5 %", r"a\_b \& 5 \%"), (r"\x{^~}", r"\textbackslash{}x\textbraceleft{}\textasciicircum{}\textasciitilde{}"
     r"\textbraceright{}"), ("--x", "-{}-x"), ("é e\u0301 Đặng ẹ́", r"\'{e} \'{e} \DJ{}\d{\u{a}}ng \d{\'{e}}"),
    ("ﬁ 𝓗 Ｆ", "fi H F"), ("😂\ufe0f!", "[face with tears of joy]!"), ("a\u202eb\x07", r"ab\lacking{}"),
    ("中文", r"\lacking{}\lacking{}"), ("so\n\n so", "so so"),
    ("sentence-transformers/all-MiniLM-L6-v2", r"sentence-\allowbreak{}transformers/\allowbreak{}all-\allowbreak{}"
     r"MiniLM-\allowbreak{}L6-\allowbreak{}v2"), ("x" * 30, "x" * 15 + r"\-" + "x" * 15)])
def test_latex_of_hand_written_cases(text, latex):
    assert escape_latex(text) == latex


@given(TEXTS)
def test_markdown_shows_the_text_as_it_stands(text):
    escaped = escape_markdown(text)
    assert html.unescape(re.sub(r"\\(.)", r"\1", escaped)) == " ".join(text.split())
    bare = re.sub(r"\\.|&#?\w+;", "", escaped)
    assert not re.search(r"[<>$~`*_\[\]#|\\]|^[-+]( |$)|^\d+[.)]( |$)", bare)


@given(st.lists(st.lists(TEXTS, min_size=2, max_size=7), min_size=1, max_size=5), st.sampled_from([48, 112]))
def test_columns_share_the_line(rows, line):
    cells = [[" ".join(text.split()) for text in (row * 7)[:len(rows[0])]] for row in rows]
    columns, gaps = list(zip(*cells, strict=True)), 1.5 * (len(cells[0]) - 1)
    most = [max(map(visualize.text_width, column)) for column in columns]
    least = [max([0, *(visualize.text_width(piece) for text in column for word in text.split()
                       for piece in visualize.word_pieces(word, visualize.CELL_WORD))]) for column in columns]
    widths = column_widths(cells, line)
    assert all(low - 1e-9 <= width <= high + 1e-9 for low, width, high in zip(least, widths, most, strict=True))
    assert sum(widths) + gaps <= max(line, sum(least) + gaps) + 1e-9
    if sum(most) + gaps <= line:
        assert widths == pytest.approx(most)


@pytest.mark.parametrize(("cite", "authors", "year", "title", "label"), [
    ("Dolan and Brockett (2005), A Corpus", ("Dolan", "Brockett"), "2005", "A Corpus", "Dolan and Brockett (2005)"),
    ("Kang, van Zuylen and Hovy (2018), PeerRead (a set)", ("Kang", "van Zuylen", "Hovy"), "2018", "PeerRead (a set)",
     "Kang et al. (2018)"),
    ("Devlin et al. (2019), BERT", ("Devlin", "others"), "2019", "BERT", "Devlin et al. (2019)"),
    ("Beno (2025)", ("Beno",), "2025", "", "Beno (2025)"),
    ("EDOS leaderboard (Kirk et al., 2023)", (), "", "EDOS leaderboard (Kirk et al., 2023)",
     "EDOS leaderboard (Kirk et al., 2023)")])
def test_what_the_catalog_cites_becomes_a_reference(cite, authors, year, title, label):
    found = visualize.reference(cite, "https://a.b/c d{")
    assert (found.authors, found.year, found.title, found.label) == (authors, year, title, label)
    assert found.url == "https://a.b/c%20d%7B"
    assert re.fullmatch("[a-z0-9-]{1,60}", found.key)


def test_every_citation_of_the_catalog_has_a_key_of_its_own():
    cites = {(cited["cite"], cited.get("url", cited.get("source"))) for entry in common.catalog().values()
             for cited in [entry, *entry["scores"]]}
    references = {visualize.reference(*cite) for cite in cites}
    texts = {(reference.key, reference.label, reference.title) for reference in references}
    assert len({key for key, *_ in texts}) == len(texts)


def test_bibtex_escapes_what_is_cited():
    entry = visualize.to_bibtex(visualize.reference("O'Neil, Müller and {x} (2020), 50% of $\\alpha$ }{", "https://a.b"))
    assert entry.splitlines()[1:] == [
        r"  author = {{O'Neil} and {M\"{u}ller} and {\textbraceleft{}x\textbraceright{}}},",
        r"  title = {{50\% of \$\textbackslash{}alpha\$ \textbraceright{}\textbraceleft{}}},", "  year = {2020},",
        "  url = {https://a.b},", "}"]


# ---- A run through all five scripts ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """The run folder after all five scripts, and report.md after each of them, by the script's name."""
    runs = tmp_path_factory.mktemp("runs")
    flags, folder = ["--dataset", "mrpc", "--sample", "--runs-dir", str(runs)], runs / "mrpc/sample/seed42"
    reports, extra = {}, {train: ["--precision", "fp32", "--num-train-epochs", "2", "--keep-epochs", "0", "2",
                     "--max-train-samples", "60"]}
    for script in (train, evaluate, errors, visualize, llm_compare):
        assert script.main([*flags, *extra.get(script, [])]) == 0
        reports[script.__name__] = (folder / "report.md").read_text(encoding="utf-8")
    return folder, reports


@pytest.fixture
def folder(stages, tmp_path):
    """A copy of that run folder."""
    return shutil.copytree(stages[0], tmp_path / "run")


def tables(markdown):
    """{caption: rows as dicts} of the tables of a Markdown text."""
    found = {}
    for block in markdown.split("\n\n*")[1:]:
        caption, _, rest = block.partition("*\n\n")
        rows = [[cell.strip().replace("\\", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
                for line in rest.split("\n\n")[0].splitlines() if line.startswith("|")]
        if rows:
            found[caption] = [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
    return found


def test_every_script_writes_the_report_anew(stages):
    _, reports = stages
    assert "\n\nmetrics.csv is not there yet: evaluate.py writes it" in reports["train"]
    assert "![learning_curve](learning_curve.png)" in reports["train"]
    assert "![confusion](confusion.png)" in reports["evaluate"] and "\nmetrics.csv" not in reports["evaluate"]
    assert "Types of errors by frequency" in reports["errors"] and "## Wrong samples" not in reports["evaluate"]
    assert "(embedding_tsne.png)" not in reports["errors"] and "(embedding_tsne.png)" in reports["visualize"]
    assert "llm\\_metrics.csv is not there yet: llm\\_compare.py writes it" in reports["visualize"]
    assert "(llm_compare.png)" in reports["llm_compare"] and "llm\\_metrics.csv is" not in reports["llm_compare"]
    assert "Sampled: 60 of 80 train examples, each label in proportion" in reports["train"]


def test_numbers_are_those_of_the_files(stages):
    folder, reports = stages
    found, run = tables(reports["llm_compare"]), common.read_json(folder / "run.json")
    metrics = pd.read_csv(folder / "metrics.csv").set_index("metric")
    scores = {row["metric"]: row for row in found["Scores on test, 48 examples."]}
    assert list(scores) == ["accuracy", "f1", "macro_f1", "weighted_f1", "macro_recall", "aurc", "ece",
                            "ece_temperature"]
    for name, row in scores.items():
        assert row["value"] == f"{metrics['value'][name]:.3f}"
        assert row["95 % interval"] == f"{metrics['ci_low'][name]:.3f} to {metrics['ci_high'][name]:.3f}"
    assert [row["recall"] for row in found["Precision, recall and F1 of each label."]] == [
        f"{metrics['value'][f'recall_{label}']:.3f}" for label in ("not_equivalent", "equivalent")]
    published = found["Ours and published scores; the gap is ours less theirs, in points."]
    assert published[3] == {"metric": "", "by": "paper: BERT-large, unchecked", "value": "0.893",
                            "gap": f"{100 * metrics['value']['f1'] - 89.3:+.1f}"}
    counts = {row[""]: row for row in found["Examples of each split, and those used by label."]}
    assert counts["used"] == {"": "used", "train": "60", "validation": "24", "test": "48"}
    assert int(counts["equivalent"]["test"]) == run["data"]["labels"]["test"]["equivalent"]
    settings = {row[""]: row["value"] for row in found["Model, settings and hardware."]}
    assert settings["parameters"] == f"{run['model_info']['parameters']:,}"
    assert settings["learning rate"] == "0.002, schedule linear, warm-up 0"
    epochs = pd.read_csv(folder / "history.csv")
    assert [row["validation loss"] for row in found["Mean losses, score and time of each epoch."]] == [
        f"{loss:.3f}" for loss in epochs["eval_loss"]]
    llm = found["Model and LLM on the same samples; answers that name no label (unread) count as wrong."]
    theirs = pd.read_csv(folder / "llm_metrics.csv").set_index(["who", "metric"])["value"]
    assert {row["by"] for row in llm} == {"model", "generated", "likelihood"}
    for row in llm:
        who = row["by"] if row["by"] == "model" else f"llm_{row['by']}"
        assert row["value"] == f"{theirs[who, row['metric']]:.3f}"


def test_what_others_write_is_taken_up(folder):
    common.write_csv(folder / "baselines.csv", pd.DataFrame([
        {"baseline": name, "metric": metric, "value": 0.25, "ci_low": 0.2, "ci_high": 0.3, "n": 48}
        for name in ("majority", "TF-IDF") for metric in ("accuracy", "f1", "macro_f1")]))
    common.write_csv(folder.parent / "seeds.csv", pd.DataFrame([
        {"metric": "accuracy", "mean": 0.71, "sd": 0.0123, "n": 3, "min": 0.7, "max": 0.72, "seeds": "1 2 3"}]))
    run = common.read_json(folder / "run.json")
    common.write_json(folder / "run.json", {**run, "leakage": {"train and test": 7}})
    write_report(folder)
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert "Leakage between the splits: train and test 7." in report
    assert tables(report)["Baselines on the same splits: what fine-tuning has to rise above."] == [
        {"baseline": name, "accuracy": "0.250", "f1": "0.250"} for name in ("majority", "TF-IDF")]
    assert tables(report)["Test scores of the runs that differ in the seed alone."] == [
        {"metric": "accuracy", "mean": "0.710", "sd": "0.012", "least": "0.700", "most": "0.720", "runs": "3"}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_what_a_person_wrote_stands_in_both_reports(folder, encoding):
    notes = ("junk\r\n## author \r\nÅsa & Co\r\n##  HOW the training went ##\r\nWell.\r\n\r\n- a_b\r\n- c <!-- x -->"
             "\r\n## Mine: 100%\r\n### too")
    (folder / "report_notes.md").write_bytes(notes.encode(encoding))
    write_report(folder)
    assert (folder / "report_notes.md").read_bytes() == notes.encode(encoding)
    markdown, latex = ((folder / f"report.{ending}").read_text(encoding="utf-8") for ending in ("md", "tex"))
    assert "Åsa &amp; Co\n\n## Task" in markdown and "\\r{A}sa \\& Co}" in latex
    assert "**How the training went**\n\nWell.\n\n\\- a\\_b\n\n\\- c\n\n## Results" in markdown
    assert "\\paragraph{How the training went.}\n\nWell.\n\n- a\\_b\n\n- c\n\n\\section{Results}" in latex
    assert "## Mine: 100%\n\n\\#\\#\\# too" in markdown and "\\section{Mine: 100\\%}" in latex
    assert "TO WRITE: Author" not in markdown + latex and "TO WRITE: What the model struggles with" in markdown


def test_the_notes_ask_for_what_only_a_person_can_write(folder):
    written = (folder / "report_notes.md").read_text(encoding="utf-8")
    assert re.findall("^## (.+)$", written, re.MULTILINE) == list(visualize.NOTES)
    assert set(visualize.read_notes(folder / "report_notes.md").values()) == {""}
    latex = (folder / "report.tex").read_text(encoding="utf-8")
    assert re.findall(r"TO WRITE: ([^.]+)", latex) == list(visualize.NOTES)


def test_a_report_that_was_changed_by_hand_stays(folder, capsys):
    for name in ("report.tex", "report.md"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace("Task", "My task"), encoding="utf-8")
    before = {name: (folder / name).read_bytes() for name in ("report.tex", "report.md")}
    (folder / "report.bib").write_text((folder / "report.bib").read_text().splitlines()[0])
    write_report(folder)
    assert before == {name: (folder / name).read_bytes() for name in before}
    assert capsys.readouterr().out.count("was changed by hand and stays as it is; move it away") == 3
    for name in ("report.tex", "report.md", "report.bib"):
        (folder / name).unlink()
    write_report(folder)
    write_report(folder)
    assert "changed by hand" not in capsys.readouterr().out


def test_the_same_files_make_the_same_report(folder):
    before = {name: (folder / name).read_bytes() for name in ("report.md", "report.tex", "report.bib")}
    write_report(folder)
    assert before == {name: (folder / name).read_bytes() for name in before}


def test_a_sheet_that_a_spreadsheet_spoilt_is_left_out(folder, capsys):
    (folder / "errors.csv").write_text("id;input\n1;a\n")
    write_report(folder)
    assert "left out of the report" in capsys.readouterr().out
    assert "Wrong samples" not in (folder / "report.md").read_text(encoding="utf-8")


def test_a_run_on_another_data_set_has_a_report_of_its_own(tmp_path):
    flags = ["--sample", "--precision", "fp32", "--num-train-epochs", "1", "--run", str(tmp_path)]
    assert train.main(["--dataset", "winogrande-xs", *flags]) == 0
    assert evaluate.main(["--run", str(tmp_path), "--dataset", "wsc273"]) == 0
    report = (tmp_path / "on-wsc273" / "report.md").read_text(encoding="utf-8")
    assert "sample was fine-tuned on winogrande-xs" in report and "Scores on test, " in report
    assert "metrics.csv is not there yet" in (tmp_path / "report.md").read_text(encoding="utf-8")
    for script in (errors, visualize, llm_compare):
        assert script.main(["--run", str(tmp_path), "--dataset", "wsc273"]) == 0
    written = {path.name for path in (tmp_path / "on-wsc273").iterdir()}
    assert {"errors.csv", "embedding_pca.png", "learning_curve.png", "llm_metrics.csv"} <= written


# ---- LaTeX ----------------------------------------------------------------------------------------------------------


def compile_report(folder):
    """Pages of report.tex, compiled with BibTeX; fails on an error, an overfull box, a lost character or reference."""
    if not shutil.which("pdflatex") or not shutil.which("bibtex"):
        pytest.skip("pdflatex and bibtex are not installed (Debian: texlive-latex-extra, texlive-fonts-recommended)")
    latex = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "report"]
    for command in (latex, ["bibtex", "report"], latex, latex):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        assert done.returncode == 0, done.stdout[-3000:]
    log = (folder / "report.log").read_text(encoding="utf-8", errors="replace")
    assert not re.search(r"^!|Overfull|Missing character|undefined", log, re.MULTILINE), log
    return int(re.search(r"Output written on report.pdf \((\d+) page", log)[1])


def test_the_report_of_a_run_fits_six_pages(folder):
    sheet = errors.read_sheet(folder / "errors.csv")
    common.write_csv(folder / "errors.csv", sheet.assign(
        cause="surface pattern | over-generalisation", solution="more data: pairs that share most words"))
    shutil.copy(folder / "confusion.png", folder / "calibration.png")
    assert errors.main(["--run", str(folder)]) == 0
    assert len(sheet) >= 12
    assert compile_report(folder) <= 6


def test_hostile_text_compiles_and_comes_out_as_text(folder):
    sheet = errors.read_sheet(folder / "errors.csv")
    for shift, name in enumerate(("input", "cause", "solution", "llm_prediction", "gold")):
        sheet[name] = pd.Series((NASTY[shift:] + NASTY)[:len(sheet)], dtype=object)
    common.write_csv(folder / "errors.csv", sheet)
    run = common.read_json(folder / "run.json")
    run["task"] |= {"title": NASTY[1], "labels": NASTY[:6], "cite": f"{NASTY[1]} and Röttger (2020), {NASTY[1]}"}
    common.write_json(folder / "run.json", {**run, "model": "evil/\\input{x}_%#$&~^"})
    titles = ("Author", *list(visualize.NOTES)[1:], "50%")
    notes = "".join(f"## {title}\n" + "\n\n".join(NASTY) + "\n" for title in titles)
    (folder / "report_notes.md").write_text(notes.encode("utf-8", "replace").decode(), encoding="utf-8")
    write_report(folder)
    compile_report(folder)
    if shutil.which("pdftotext"):
        text = subprocess.run(["pdftotext", "report.pdf", "-"], cwd=folder, capture_output=True, check=True).stdout
        assert rb"\input{/etc/passwd}" in text and b"root:" not in text


def test_blocks_compile_wherever_they_begin(tmp_path):
    references = (visualize.reference(text, "https://a.b/%20_#~x") for text in NASTY if text.strip())
    cited = {one.key: one for one in references}
    blocks = [visualize.Title("[x]", "*y", "[z]"), *(block for text in NASTY for block in (
        Heading(text[:40]), Text(text), Table([{text: text, "": ""}], text), Note("Author", text)))]
    blocks += [Text("All of", list(cited.values())), visualize.References([]), Heading("Wide", appendix=True)]
    blocks += [Table([{text: text, "": f"{number}"}] * 9, text, wide=True) for number, text in enumerate(NASTY)]
    parts = [visualize.PREAMBLE, *map(visualize.to_latex, blocks), "\\end{document}"]
    (tmp_path / "report.tex").write_text("\n\n".join(parts), encoding="ascii")
    (tmp_path / "report.bib").write_text("\n".join(map(visualize.to_bibtex, cited.values())), encoding="ascii")
    compile_report(tmp_path)


def test_a_figure_is_named_with_its_caption():
    block = Figure("confusion.png", "a | b_c", wide=True)
    assert visualize.to_markdown(block) == "![confusion](confusion.png)\n\n*a \\| b\\_c*"
    assert "\\begin{figure*}" in visualize.to_latex(block) and "{a \\textbar{} b\\_c}" in visualize.to_latex(block)


def test_run_json_has_to_be_there(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        write_report(tmp_path)
