import argparse
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import common
from common import KINDS, UserError, clean, fetch, read_files, read_raw, read_strings, write_sample_files

SHARED = Path(__file__).parents[2] / "shared"
needs_shared = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="../shared/data, the real files, is not here")
NLI4CT = ("nli4ct/training_data.zip", "nli4ct/gold_test.json")
DYNASENT = "dynasent/dynasent-v1.1.zip"
SBIC = [f"sbic/SBIC.v2.{name}.csv" for name in ("trn", "dev", "tst")]


def task_of(reader, *paths, **fields):
    return {"key": reader, "reader": reader, "source": f"{reader}.example", "files": [{"path": path} for path in paths],
            **fields}


def rows_of(file, *rows):
    return [{"file": file, "row": row} for row in rows]


def lines_of(file, *lines):
    return [{"file": file, "line": line} for line in lines]


def read(folder, lines, task):
    write_sample_files(lines, folder)
    return read_files(task, folder)


def sizes(tables):
    return {name: len(table) for name, table in tables.items()}


# --- Real files: the row counts that their publishers and ../shared state -------------------------------------------


@needs_shared
@pytest.mark.parametrize(("label", "train", "dev", "test", "labels"), [
    ("label_sexist", 14000, 2000, 4000, 2), ("label_category", 3398, 486, 970, 4),
    ("label_vector", 3398, 486, 970, 11)])
def test_edos_keeps_sexist_rows_alone_for_b_and_c(label, train, dev, test, labels):
    path = "edos/edos_labelled_aggregated.csv"
    tables = read_files(task_of("edos", path, label=label), SHARED / "data")
    assert sizes(tables) == {"train": train, "dev": dev, "test": test}
    assert tables["train"].attrs["dropped"] == {"not sexist": 14000 - train}
    assert {name: table[label].nunique() for name, table in tables.items()} == dict.fromkeys(tables, labels)
    whole = read_strings(SHARED / "data" / path)  # the index is the row of the file
    assert whole.loc[tables["test"].index, "text"].tolist() == tables["test"]["text"].tolist()


@needs_shared
@pytest.mark.parametrize(("language", "train", "dev", "test"), [("hau", 14172, 2677, 5303), ("pcm", 5121, 1281, 4154)])
def test_afrisenti(language, train, dev, test):
    paths = [f"afrisenti/{language}/{name}.tsv" for name in ("train", "dev", "test")]
    tables = read_files(task_of("afrisenti", *paths), SHARED / "data")
    assert sizes(tables) == {"train": train, "dev": dev, "test": test}
    assert all(set(table["label"]) == {"negative", "neutral", "positive"} for table in tables.values())


@needs_shared
def test_nli4ct():
    tables = read_files(task_of("nli4ct", *NLI4CT), SHARED / "data")
    assert sizes(tables) == {"train": 1700, "dev": 200, "test": 5500}
    assert (tables["test"]["label"] == "Contradiction").sum() == 3659
    assert tables["test"]["premise"].str.contains(" Secondary trial: ").sum() == 2947  # the comparisons
    assert tables["train"]["premise"].str.startswith("Primary trial: ").all()


@needs_shared
@pytest.mark.parametrize(("config", "train", "dev", "test"), [
    ("round01-yelp", 2700, 900, 3600), ("round02-dynabench", 540, 180, 720)])
def test_dynasent(config, train, dev, test):
    tables = read_files(task_of("dynasent", DYNASENT, config=config), SHARED / "data")
    assert sizes(tables) == {"train": train, "dev": dev, "test": test}
    assert tables["test"]["gold_label"].value_counts().tolist() == [test // 3] * 3


@needs_shared
@pytest.mark.parametrize(("domain", "rows", "quarter"), [("wikipedia", 4353, 1089), ("stack-exchange", 6603, 1651)])
def test_politeness_quartiles_are_the_domains_own(domain, rows, quarter):
    path = f"politeness/{domain}.annotated.csv"
    whole = read_files(task_of("politeness", path, label="Normalized Score"), SHARED / "data")["all"]
    assert len(whole) == rows
    outer = read_files(task_of("politeness", path, label="quartile"), SHARED / "data")["all"]
    assert outer["quartile"].value_counts().to_dict() == {"impolite": quarter, "polite": quarter}
    assert outer.attrs["dropped"] == {"in the middle half": rows - 2 * quarter}
    scores = whole["Normalized Score"].drop(outer.index)
    low = outer["quartile"] == "impolite"
    assert outer["Normalized Score"][low].max() < scores.min() <= scores.max() < outer["Normalized Score"][~low].min()


# --- The same readers, and those without real files, on small files in the publishers' layout -----------------------


def test_nli4ct_joins_both_trials_and_passes_by_the_macs_own_files(tmp_path):
    row = {"Type": "Comparison", "Section_id": "Results", "Primary_id": "NCT1", "Secondary_id": "NCT2",
           "Statement": "It holds.", "Label": "Entailment"}
    single = {key: value for key, value in row.items() if key != "Secondary_id"}
    lines = [{"file": f"{NLI4CT[0]}!{name}", "json": content} for name, content in {
        "train.json": {"a": row}, "dev.json": {"b": single}, "__MACOSX/._train.json": "not a split",
        "CT json/NCT1.json": {"Results": ["Outcome: ", "  1 of 2"]},
        "CT json/NCT2.json": {"Results": ["Outcome: ", "  2 of 2"]}}.items()]
    tables = read(tmp_path, [*lines, {"file": NLI4CT[1], "json": {"c": single}}], task_of("nli4ct", *NLI4CT))
    assert tables["train"].to_dict("records") == [{
        "premise": "Primary trial: Outcome: 1 of 2 Secondary trial: Outcome: 2 of 2", "hypothesis": "It holds.",
        "label": "Entailment"}]
    assert tables["dev"]["premise"].tolist() == tables["test"]["premise"].tolist() == ["Primary trial: Outcome: 1 of 2"]


def test_dynasent_counts_mixed_and_null(tmp_path):
    labels = ["positive", None, "mixed", "neutral", None]
    lines = [line for name in ("train", "dev", "test") for line in rows_of(
        f"{DYNASENT}!dynasent-v1.1/dynasent-v1.1-round01-yelp-{name}.jsonl",
        *({"sentence": f"s {label}\u2028.", "gold_label": label} for label in labels))]
    train = read(tmp_path, lines, task_of("dynasent", DYNASENT, config="round01-yelp"))["train"]
    assert train["gold_label"].tolist() == ["positive", "neutral"]
    assert train.attrs["dropped"] == {"without a majority label": 2, "labelled mixed": 1}


def test_afrisenti_keeps_quotation_marks_and_odd_line_ends(tmp_path):
    tweets = ['"so', "a\u2028b\x85c", 'no "end', "NA"]
    lines = rows_of("afrisenti/hau/train.tsv", *({"tweet": tweet, "label": "neutral"} for tweet in tweets))
    tables = read(tmp_path, lines, task_of("afrisenti", "afrisenti/hau/train.tsv"))
    assert tables["train"]["tweet"].tolist() == tweets


def test_isarcasm_finds_the_text_under_both_names(tmp_path):
    paths = ("isarcasm/train.En.csv", "isarcasm/task_A_En_test.csv")
    lines = [*rows_of(paths[0], {"": "0", "tweet": "Lovely\nweather", "sarcastic": "1", "rephrase": "bad"},
                      {"": "1", "tweet": "", "sarcastic": "0", "rephrase": ""}),
             *rows_of(paths[1], {"text": 'It is "fine".', "sarcastic": "0"})]
    tables = read(tmp_path, lines, task_of("isarcasm", *paths))
    assert tables["train"]["text"].tolist() == ["Lovely\nweather", ""]
    assert tables["test"][["text", "sarcastic"]].to_numpy().tolist() == [['It is "fine".', "0"]]


def test_pcl_counts_two_points_as_pcl_and_splits_by_the_lists(tmp_path):
    paths = ("pcl/dontpatronizeme_pcl.tsv", "pcl/train_semeval_parids-labels.csv", "pcl/dev_semeval_parids-labels.csv")
    notice = ["-" * 20, "Please do not share.", "", "-" * 20]
    rows = [f'{i}\t@@{i}\twomen\tus\ta "text\t{points}' for i, points in enumerate([0, 1, 2, 3, 4])]
    lists = [*rows_of(paths[1], *({"par_id": i, "label": "[0, 0]"} for i in (0, 1, 2))),
             *rows_of(paths[2], *({"par_id": i, "label": "[0, 0]"} for i in (3, 4)))]
    tables = read(tmp_path, [*lines_of(paths[0], *notice, *rows), *lists], task_of("pcl", *paths))
    assert tables["train"]["label"].tolist() == [0, 0, 1]
    assert tables["dev"]["label"].tolist() == [1, 1]
    assert set(tables["train"]["text"]) == {'a "text'}


def test_peerread_reads_title_abstract_and_decision_alone(tmp_path):
    papers = {"train": [{"accepted": True, "title": "T", "abstract": "A", "reviews": [{"comments": "accept!"}],
                         "histories": ["ACL 2017"], "conference": "ICLR"}, {"title": "no decision", "abstract": "A"},
                        {"accepted": "False", "title": "a word, not a truth value", "abstract": "A"}],
              "dev": [{"accepted": False, "title": "D", "abstract": None}], "test": [
                  {"accepted": False, "title": "E", "abstract": "B"}]}
    lines = [{"file": f"peerread/data/iclr_2017/{name}/reviews/{i}.json", "json": paper}
             for name, split in papers.items() for i, paper in enumerate(split)]
    tables = read(tmp_path, lines, task_of("peerread", "peerread/data/iclr_2017"))
    assert tables["train"].to_dict("records") == [{"title": "T", "abstract": "A", "accepted": 1}]
    assert tables["train"].attrs["dropped"] == {"without a decision": 2}
    assert tables["dev"]["accepted"].tolist() == tables["test"]["accepted"].tolist() == [0]


def vote(post, worker, offensive, intent="", lewd="0.0", target="", stereotype=""):
    return {"whoTarget": target, "intentYN": intent, "sexYN": lewd, "offensiveYN": offensive, "WorkerId": worker,
            "post": post, "targetStereotype": stereotype}


def test_sbic_counts_one_vote_per_annotator_and_asks_what_blanks_mean(tmp_path):
    posts = [
        # w1's three stereotypes are one vote: (1 + 0 + 0) / 3 is not offensive; three votes it would be 3 / 5
        *(vote("a", "w1", "1.0", "1.0", target="1.0", stereotype=text) for text in ("x", "y", "z")),
        vote("a", "w2", "0.0"), vote("a", "w3", "0.0"),
        vote("b", "w1", "1.0", "0.66", "1.0", "1.0"), vote("b", "w2", "0.0", lewd=""),  # 0.5 counts as yes
        vote("c", "w1", "0.5", "0.33", "0.0", "0.0"),
        vote("d", "w1", "1.0", "1.0", "0.5", ""),  # offensive, but no answer on the target: no vote
        vote("e", "w1", "", "0.0", "1.0", "")]  # no answer at all on what decides
    lines = [line for path in SBIC for line in rows_of(path, *posts)]
    train = read(tmp_path, lines, task_of("sbic", *SBIC))["train"].set_index("post")
    nan = float("nan")
    expected = pd.DataFrame(
        [[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, nan], [nan, 0.0, 1.0, nan]],
        index=pd.Index(list("abcde"), name="post"), columns=["offensive", "intent", "lewd", "group"])
    pd.testing.assert_frame_equal(train, expected, check_index_type=False)
    assert train.attrs["dropped"] == {"further rows of the same annotator": 2}


def test_xslue_reads_sockets_text_files(tmp_path):
    paths = [f"xslue/SOCKET_DATA/sarc/{name}_{what}.txt" for name in ("train", "val", "test")
             for what in ("text", "labels")]
    lines = [line for texts, labels in zip(paths[::2], paths[1::2], strict=True)
             for line in [*lines_of(texts, 'a "\u2028b', "c"), *lines_of(labels, "sarcastic", "literal")]]
    task = task_of("xslue", *paths)
    tables = read(tmp_path, lines, task)
    assert sizes(tables) == {"train": 2, "val": 2, "test": 2}
    assert tables["val"].to_numpy().tolist() == [['a "\u2028b', "sarcastic"], ["c", "literal"]]
    (tmp_path / paths[1]).write_text("sarcastic\n")
    with pytest.raises(UserError, match=r"xslue\.example"):
        read_files(task, tmp_path)


@pytest.mark.parametrize(("paths", "lines", "expected"), [
    ("PASTEL/{}_age.tsv", ['7\t25-34\tHe said "no', "2\t18-24\tyes"], [['He said "no', "25-34"], ["yes", "18-24"]]),
    ("SARC/{}-pol.tsv", ["1\t0\tso", "much for that"], [["so", "0"]]),
    ("ShortRomance/{}.tsv", ["0\tx\t1\tmy love"], [["my love", "1"]]),
    ("VUA/{}.tsv", ["0\ta flood of words\t1"], [["a flood of words", "1"]])])
def test_xslue_reads_its_own_columns(tmp_path, paths, lines, expected):
    paths = [f"xslue/{paths.format(name)}" for name in ("train", "dev", "test")]
    tables = read(tmp_path, [line for path in paths for line in lines_of(path, *lines)], task_of("xslue", *paths))
    assert list(tables) == ["train", "dev", "test"]
    assert tables["dev"].to_numpy().tolist() == expected
    assert tables["dev"].attrs["dropped"] == {"torn off by a line break": len(lines) - len(expected)}


# --- Sample files, broken files, dropped rows -----------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff"), max_size=12), min_size=1))
def test_a_sample_csv_reads_back_as_it_was(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("csv")
    write_sample_files(rows_of("a/b.csv", *({"text": text, "label": "x"} for text in texts)), folder)
    assert read_strings(folder / "a/b.csv")["text"].tolist() == texts


def test_read_raw_reads_sample_files_of_the_key_that_it_shares_them_with(tmp_path, monkeypatch):
    path = "edos/edos_labelled_aggregated.csv"
    lines = rows_of(path, *({"text": category, "label_sexist": "sexist", "label_category": category, "split": split}
                            for category in ("none", "3. animosity") for split in ("train", "dev", "test")))
    (tmp_path / "semeval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    a = {**task_of("edos", path, label="label_sexist"), "key": "edos-a", "row_file": "semeval"}
    b = {**a, "key": "edos-b", "label": "label_category", "sample": "edos-a"}
    monkeypatch.setattr(common, "CATALOG_DIR", tmp_path)
    monkeypatch.setattr(common, "catalog", lambda: {"edos-a": a, "edos-b": b})
    for task, rows in ((a, 2), (b, 1)):
        tables, origin = read_raw(task, argparse.Namespace(sample=True))
        assert sizes(tables) == {"train": rows, "dev": rows, "test": rows}
        assert origin["source"] == "catalog/semeval.jsonl, rows of our own writing"


def test_read_raw_reads_the_hub_sample_rows_of_its_own_key(tmp_path, monkeypatch):
    lines = [{"key": key, "split": "train", "row": {"text": key}} for key in ("one", "two", "one")]
    (tmp_path / "row.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    one = {"key": "one", "row_file": "row", "hub": "a/b", "splits": {"train": "train"}}
    monkeypatch.setattr(common, "CATALOG_DIR", tmp_path)
    monkeypatch.setattr(common, "catalog", lambda: {"one": one})
    for task in (one, {**one, "key": "three", "sample": "one"}):
        tables, _ = read_raw(task, argparse.Namespace(sample=True))
        assert tables["train"]["text"].tolist() == ["one", "one"]


@pytest.mark.parametrize(("reader", "paths", "fields"), [
    ("edos", ["edos/edos_labelled_aggregated.csv"], {"label": "label_sexist"}), ("nli4ct", NLI4CT, {}),
    ("dynasent", [DYNASENT], {"config": "round01-yelp"}), ("sbic", SBIC, {}),
    ("politeness", ["politeness/wikipedia.annotated.csv"], {"label": "quartile"}),
    ("afrisenti", ["afrisenti/hau/train.tsv"], {})])
def test_a_file_that_is_another_gives_one_line(tmp_path, reader, paths, fields):
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("<html>\n<body>Moved,\tsorry,\t1, 2</body>\n</html>\n")
    with pytest.raises(UserError) as error:
        read_files(task_of(reader, *paths, **fields), tmp_path)
    assert f"{reader}.example" in str(error.value) and paths[0] in str(error.value) and "\n" not in str(error.value)


def test_the_readers_dropped_rows_are_in_the_counts_of_clean(tmp_path):
    path = "edos/edos_labelled_aggregated.csv"
    rows = ({"text": text, "label_category": label, "split": "train"}
            for text, label in (("a", "none"), ("", "3"), ("b", "3"), ("c", "4")))
    task = task_of("edos", path, label="label_category", text=["text"], labels=["3", "4"])
    table, dropped = clean(read(tmp_path, rows_of(path, *rows), task)["train"], "train", task, KINDS["classification"])
    assert dropped == {"not sexist": 1, "without a label": 0, "without a text": 1}
    assert table["id"].tolist() == ["train-000002", "train-000003"]
    assert table["label"].tolist() == [0, 1]


# --- Fetching -------------------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    """A web server of {path: (status, body, announced length)}; what it was asked for is in `asked`."""
    class Handler(http.server.BaseHTTPRequestHandler):
        pages, asked = {}, []

        def do_GET(self):
            status, body, length = self.pages[self.path]
            self.asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    Handler.address = f"http://127.0.0.1:{running.server_port}"
    yield Handler
    running.shutdown()
    running.server_close()


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_fetch_downloads_once_and_keeps_what_is_there(tmp_path, server):
    server.pages["/b.csv"] = (200, b"x" * 70000, 70000)
    task = {"key": "k", "source": "s", "files": [{"path": "k/b.csv", "url": f"{server.address}/b.csv"}]}
    fetch(task, tmp_path)
    fetch(task, tmp_path)
    assert server.asked == ["/b.csv"]
    assert (tmp_path / "k/b.csv").stat().st_size == 70000
    (tmp_path / "k/b.csv").write_text("mine")
    fetch(task, tmp_path)
    assert (tmp_path / "k/b.csv").read_text() == "mine"
    assert files_in(tmp_path) == ["k/b.csv"]


@pytest.mark.parametrize(("page", "reason"), [
    ((404, b"", 0), "404"), ((204, b"", 0), "204"), ((200, b"short", 900), "5 of 900 bytes"), (None, "refused")])
def test_a_download_that_fails_leaves_nothing_and_names_address_and_place(tmp_path, server, page, reason):
    server.pages["/b.csv"] = page
    url = f"{server.address}/b.csv" if page else "http://127.0.0.1:1/b.csv"
    with pytest.raises(UserError) as error:
        fetch({"key": "k", "source": "s", "files": [{"path": "k/b.csv", "url": url}]}, tmp_path)
    assert all(part in str(error.value) for part in (url, str(tmp_path / "k/b.csv"), reason, "by hand", "--sample"))
    assert "\n" not in str(error.value) and files_in(tmp_path) == []


def test_a_file_without_an_address_is_asked_for_by_hand(tmp_path):
    file = {"path": "peerread/data/iclr_2017", "how": "git clone it"}
    with pytest.raises(UserError, match="is missing and can't be fetched; put it there by hand: git clone it"):
        fetch({"key": "k", "source": "github.com/x", "files": [file]}, tmp_path)
    with pytest.raises(UserError, match=r"by hand: github\.com/x"):
        fetch({"key": "k", "source": "github.com/x", "files": [{"path": "pcl/a.tsv"}]}, tmp_path)
    (tmp_path / file["path"]).mkdir(parents=True)
    fetch({"key": "k", "source": "github.com/x", "files": [file]}, tmp_path)


@pytest.mark.parametrize("archive", ["all.zip", "all.tgz"])
def test_files_are_taken_out_of_an_archive_that_is_fetched_once(tmp_path, server, archive):
    buffer, members = io.BytesIO(), {"top/a.csv": b"a", "top/._a.csv": b"junk", "b.csv": b"b"}
    if archive == "all.zip":
        with zipfile.ZipFile(buffer, "w") as opened:
            for name, content in members.items():
                opened.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as opened:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                opened.addfile(info, io.BytesIO(content))
    body = buffer.getvalue()
    server.pages[f"/{archive}"] = (200, body, len(body))
    source = {"archive": f"s/{archive}", "url": f"{server.address}/{archive}"}
    files = [{"path": "s/a.csv", **source}, {"path": "s/b.csv", **source}]
    fetch({"key": "k", "source": "s", "files": files}, tmp_path)
    assert [(tmp_path / f"s/{name}.csv").read_bytes() for name in "ab"] == [b"a", b"b"]
    assert server.asked == [f"/{archive}"]
    (tmp_path / "s/a.csv").unlink()
    (tmp_path / f"s/{archive}").write_bytes(body[:40])
    with pytest.raises(UserError, match=f"s/{archive}"):
        read_files({"key": "k", "source": "s", "reader": "edos", "files": files}, tmp_path)


# --- The hub --------------------------------------------------------------------------------------------------------

HUB_CHECK = """
import sys, common
part = lambda **fields: common.read_hub({"text": ["text"], "label": "label",
                                         "splits": {"train": "train", "test": "test"}, **fields})
tables, origin = part(hub="our/mage", data_files={"train": "train.csv", "test": "test.csv"})
print([tables[name]["text"].tolist() for name in ("train", "test")], len(origin["revision"]), origin["source"])
tables, origin = part(hub="our/parquet", revision="refs/convert/parquet", data_dir="default")
print([tables[name]["text"].tolist() for name in ("train", "test")], len(origin["revision"]), origin["source"])
"""


@pytest.mark.skipif(not (SHARED / "hub/hub.py").is_file(), reason="../shared/hub, the stand-in hub, is not here")
def test_hub_reads_the_files_named_and_the_branch_named(tmp_path):
    mage, parquet = (tmp_path / "root/datasets/our" / name for name in ("mage", "parquet"))
    (parquet / "default").mkdir(parents=True)
    mage.mkdir()
    for name in ("train", "test", "test_ood_set_gpt"):  # datasets' own guess puts the third into `test`
        (mage / f"{name}.csv").write_text(f"text,label\n{name},0\nNA,1\n")
    for name in ("train", "test"):
        pd.DataFrame({"text": [name]}).to_parquet(parquet / f"default/{name}-00000-of-00001.parquet")
    (parquet / "parquet.py").write_text("# a script of the repository's name stops load_dataset on main\n")
    hub = subprocess.Popen([sys.executable, SHARED / "hub/hub.py", tmp_path / "root", "--port", "0"],
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        address = hub.stdout.readline().strip()
        done = subprocess.run([sys.executable, "-c", HUB_CHECK], cwd=Path(common.__file__).parent, text=True,
                              capture_output=True, timeout=100, check=False, env={
                                  **os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"),
                                  "HF_HUB_OFFLINE": "0"})
    finally:
        hub.kill()
        hub.wait()
    assert done.stdout.splitlines() == [
        "[['train', 'NA'], ['test', 'NA']] 40 https://huggingface.co/datasets/our/mage",
        "[['train'], ['test']] 40 https://huggingface.co/datasets/our/parquet, default"], done.stderr
