"""The page about a model: complete, harmless whatever the names are, and alive in a browser."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from countvae import MultinomialVAE, network, report, store
from countvae.cli import main
from countvae.simulate import simulate
from countvae.table import CountTable, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = '<script>document.title="taken"</script>&"\''


def run(*arguments, code=0):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(name="folder", scope="module")
def folder_with_a_fit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    truth = simulate(120, 30, 3, 1000, rng=np.random.default_rng(0))
    ids = truth.sample_ids.astype(object)
    features = truth.feature_ids.astype(object)
    ids[0], features[0] = f"s{HOSTILE}", f"f{HOSTILE}"
    metadata = pd.DataFrame(
        {
            "site": np.where(truth.z[:, 0] > 0, f"gut{HOSTILE}", "skin"),
            "age": np.where(np.arange(120) % 10 == 0, np.nan, truth.z[:, 1]),
            "barcode": [f"b{i}" for i in range(120)],
            "study": f"one{HOSTILE}",
            "subject": [f"p{i % 50}" for i in range(120)],
            "unknown": np.nan,
        },
        index=ids,
    )
    lineages = [None if j % 2 else f"k__A; g__{j}{HOSTILE}" for j in range(30)]
    taxonomy = pd.DataFrame({"taxonomy": lineages}, features)
    table = CountTable(truth.counts, ids, features, metadata, taxonomy)
    write(table, folder / "table.h5ad")
    run("fit", folder / "table.h5ad", "-o", folder / "model", "-k", 3, "--max-epochs", 8,
        "--min-feature-samples", 110, "--quiet")  # fmt: skip
    run("report", folder / "model", "-o", folder / "report.html")
    return folder


@pytest.fixture(name="page", scope="module")
def page_of_the_fit(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def data_of(page):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])


def test_it_says_what_went_in_and_what_was_dropped(folder, page):
    made = json.loads((folder / "model" / "run.json").read_text())
    for shape in (made["before_filters"], made["after_filters"]):
        assert f'<td class="number">{shape["features"]:,}</td>' in page
    assert "Filters left out 0 samples and" in page
    assert made["input"]["sha256"][0] in page
    assert made["versions"]["torch"] in page
    assert len(page) < 5_000_000


def test_it_fetches_nothing(page):
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
    assert "@import" not in page and "url(" not in page.replace("url(#", "")


def test_names_are_text_never_markup(page):
    assert "<script>document" not in page
    assert page.count("&lt;script&gt;document") > 1
    assert data_of(page)["samples"][0] == f"s{HOSTILE}"


def test_samples_can_be_coloured_by_groups_and_numbers_but_not_by_what_each_has_alone(folder, page):
    columns = {column["name"]: column for column in data_of(page)["columns"]}
    assert set(columns) == {"site", "age"}
    assert columns["age"]["values"].count(None) == 12
    assert set(columns["site"]["levels"]) == {f"gut{HOSTILE}", "skin"}
    coordinates = np.array(data_of(page)["coordinates"])
    written = pd.read_csv(folder / "model" / "samples.tsv", sep="\t")[["F1", "F2", "F3"]]
    np.testing.assert_allclose(coordinates.T, written, rtol=1e-3, atol=1e-6)


def test_a_column_that_colours_nothing_is_named_with_the_reason(page):
    said = html.unescape(re.search(r"Not to colour by: ([^\n]*)</p>", page)[1])
    assert said == (
        f"barcode (another in every sample); study (one{HOSTILE} in every sample that has a value);"
        " subject (50 groups); unknown (without a value)."
    )


def test_columns_beyond_the_first_are_named():
    groups = pd.DataFrame({f"c{i}": list("aabb") for i in range(report.COLUMNS + 1)})
    found, left_out = report._columns(groups)
    assert len(found) == report.COLUMNS
    assert left_out == [f"c{report.COLUMNS} (beyond {report.COLUMNS} columns)"]


def test_a_feature_without_a_lineage_goes_by_its_id(folder, page):
    features = pd.read_csv(folder / "model" / "features.tsv", sep="\t", index_col=0)
    assert features["taxonomy"].isna().any()
    assert not re.search(r"\bnan\b", page.partition("<script")[0])
    assert "<td>unassigned<br>" in page
    model = MultinomialVAE.load(folder / "model")
    called = report._called(model, features)
    assert all(called[name] == name for name in features.index[features["taxonomy"].isna()])
    long = features.set_axis([f"{'0123456789abcdef'}{name}" for name in features.index])
    model.feature_names_in_ = long.index.to_numpy()
    unknown = long.index[long["taxonomy"].isna()]
    assert {report._called(model, long)[name] for name in unknown} == {"unassigned (012345)"}


def test_modules_have_two_features_or_more_and_the_others_are_counted(folder, page):
    pytest.importorskip("igraph")
    part = page[page.index("<th>module</th>") : page.index("<h2>Checks")]
    sizes = re.findall(r'<td>(\d+)</td><td class="number">(\d+)</td>', part)
    assert [int(number) for number, _ in sizes] == list(range(1, len(sizes) + 1))
    assert all(int(size) >= 2 for _, size in sizes)
    edges = network.edges(MultinomialVAE.load(folder / "model"), partners=report.TOP, fdr=0.05)[
        : report.EDGES
    ]
    drawn = len(set(edges["feature_1"]) | set(edges["feature_2"]))
    alone = drawn - sum(int(size) for _, size in sizes)
    assert f"{alone} of the features drawn are in none" in part


def test_each_factor_shows_its_longest_loadings(folder, page):
    features = pd.read_csv(folder / "model" / "features.tsv", sep="\t", index_col=0)
    for c in ("F1", "F2", "F3"):
        assert f"{features[c][features[c].abs().idxmax()]:+.2f}" in page
    assert page.count("<details") >= 3 and "g__" in page


def test_without_its_table_it_says_so_and_shows_the_rest(folder, tmp_path):
    table = folder / "table.h5ad"
    arguments = ("report", folder / "model", "-o", tmp_path / "r.html", "--force")
    table.rename(tmp_path / "moved.h5ad")
    try:
        run(*arguments)
        page = (tmp_path / "r.html").read_text()
        assert "is not there any more; --table names it" in page
        assert "There are no metadata" in page and data_of(page)["columns"] == []
        table.write_text("another")
        run(*arguments)
        assert "is not what it was when it was fitted" in (tmp_path / "r.html").read_text()
        run(*arguments, "--table", tmp_path / "moved.h5ad")
        assert data_of((tmp_path / "r.html").read_text())["columns"]
    finally:
        (tmp_path / "moved.h5ad").rename(table)


def test_another_table_or_a_spoilt_folder_is_refused(folder, tmp_path):
    truth = simulate(150, 30, 3, 10**5, rng=np.random.default_rng(1))
    write(CountTable(truth.counts, truth.sample_ids, truth.feature_ids), tmp_path / "t.biom")
    arguments = ("report", folder / "model", "-o", tmp_path / "r.html")
    said = run(*arguments, "--table", tmp_path / "t.biom", code=3)
    assert "its samples are not those that were fitted" in said
    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "model" / "run.json").write_text("{}")
    said = run("report", tmp_path / "model", "-o", tmp_path / "r.html", code=3)
    assert "does not match the SHA-256" in said
    MultinomialVAE.load(folder / "model").save(tmp_path / "alone")
    said = run("report", tmp_path / "alone", "-o", tmp_path / "r.html", code=3)
    assert "run.json: cannot be read; countvae fit writes it" in said
    extra = {"run.json": lambda path: path.write_text(json.dumps({"command": "fit"}))}
    MultinomialVAE.load(folder / "model").save(tmp_path / "odd", extra_files=extra)
    said = run("report", tmp_path / "odd", "-o", tmp_path / "r.html", code=3)
    assert "run.json: is not what countvae fit writes" in said
    assert not (tmp_path / "r.html").exists()


def test_the_static_part_has_a_picture_of_the_samples_where_scripts_are_off(page):
    without = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert '<div id="ordination" hidden>' in without
    still = re.search(r"<noscript>(.*?)</noscript>", without, re.DOTALL)[1]
    assert 'src="data:image/png;base64,' in still and "first two factors" in still
    assert without.count("<img") >= 4 and without.count("<svg") >= 2


PROBE = """<script>
const change = (id, value) => {
  const select = document.getElementById(id);
  select.value = value;
  select.dispatchEvent(new Event("change"));
};
const seen = () => [...document.querySelectorAll("#plot circle")].map((c) => [
  c.getAttribute("cx"), c.getAttribute("fill")]);
const before = seen();
change("x", "2");
const moved = seen().some((point, i) => point[0] !== before[i][0]);
change("colour", "1");
const legend = [...document.querySelectorAll("#legend li")].map((li) => li.textContent);
const recoloured = seen().some((point, i) => point[1] !== before[i][1]);
document.querySelector("#plot circle").dispatchEvent(new Event("click"));
const found = JSON.stringify({
  points: before.length, moved, recoloured, legend, title: document.title,
  said: document.getElementById("said").textContent,
  wide: document.documentElement.scrollWidth - window.innerWidth, width: window.innerWidth,
});
window.parent.postMessage(found, "*");
</script></body>"""

FRAME = """<!doctype html><body><script>
window.addEventListener("message", (event) => {
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = event.data;
  document.body.append(out);
});
</script><iframe src="probed.html" width="WIDTH" height="844" style="border: 0"></iframe></body>"""
"""A browser without a screen takes no window narrower than half a thousand pixels."""


def browse(path, *flags):
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         "--virtual-time-budget=5000", *flags, "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    return done.stdout


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to look with")


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_controls_work_in_a_browser_at_the_width_of_desk_and_phone(page, tmp_path, width):
    (tmp_path / "probed.html").write_text(page.replace("</body>", PROBE), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    shown = browse(tmp_path / "frame.html", "--window-size=1400,900")
    found = json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', shown)[1]))
    assert found["points"] == 120
    assert found["moved"] and found["recoloured"]
    assert found["legend"][-1] == "missing"
    assert found["said"].startswith(f"s{HOSTILE}; age: missing")
    assert found["title"] == "model"
    assert found["width"] == width and found["wide"] <= 0


def sealed_with(folder, to, name, content):
    """Copy a model with another file in it, and with hashes that fit."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files = {n: c for n, c in files.items() if n not in (store.CONFIG, store.MODEL)}
    extra = {n: lambda path, c=c: path.write_bytes(c) for n, c in (files | {name: content}).items()}
    store.save(to, *store.load(folder), extra_files=extra)


@pytest.mark.parametrize(
    ("room", "value"),
    [
        (("arguments", "tables"), "table.h5ad"),
        (("arguments", "metadata"), 3),
        (("arguments", "min_sample_count"), "many"),
        (("arguments", "tree"), ["a"]),
        (("arguments", "stream"), None),
        (("input", "source"), None),
        (("input", "sha256"), [1]),
        (("seconds", "fit"), "long"),
        (("seconds", "more"), "long"),
        (("versions", "torch"), [2]),
        (("before_filters", "reads"), "x"),
        (("after_filters", "reads"), 10**400),
        (("seconds", "fit"), float("nan")),
    ],
)
def test_of_an_altered_run_a_report_says_that_it_is_none(folder, tmp_path, room, value):
    run_json = json.loads((folder / "model" / "run.json").read_text())
    run_json[room[0]][room[1]] = value
    sealed_with(folder / "model", tmp_path / "m", "run.json", json.dumps(run_json).encode())
    said = run("report", tmp_path / "m", "-o", tmp_path / "r.html", code=3)
    assert said.strip().endswith("run.json: is not what countvae fit writes.")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("content", [b"id\tF1\na\tx\n", b"id\nF2\n", b"a\tb\n1\n2\t3\t4\n", b""])
def test_of_altered_coordinates_a_report_says_that_it_cannot_read_them(folder, tmp_path, content):
    sealed_with(folder / "model", tmp_path / "m", "samples.tsv", content)
    said = run("report", tmp_path / "m", "-o", tmp_path / "r.html", code=3)
    assert "samples.tsv: cannot be read; countvae fit writes it." in said
