"""Every board in a real JupyterLab, driven in a real Chromium, in both themes.

Needs playwright (the extra `browser`) and a Chromium; `make browser` installs both. With BOARD_SHOTS
set, the pictures that were taken are kept in that folder.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
TESTS = Path(__file__).parent
CELLS = dict(
    start=f"""
import sys, os
sys.path.insert(0, {str(TESTS)!r})
import torch
import interpkit
from interpkit.core.views import board
from small_boards import large_dictionary, many_sequences
""",
    browser="large_dictionary().browse()",
    graph="""
from interpkit.data.demo import demo_folder, demo_rows
from interpkit.explain.graph import attribution_graph
import interpkit.explain.graph_figure
release = interpkit.Release.load(demo_folder() / "releases" / "v1", device="cpu")
clt = interpkit.Dictionary.load(demo_folder() / "clt")
row = demo_rows("v1", 200).iloc[[3]]
attribution_graph(release, clt, row).show(clt, release=release, row=row)
""",
    verdict="""
from interpkit.drift.measure import measure
from interpkit.drift.plan import plan_check
from interpkit.drift.simulate import small_world
from interpkit.drift.statements import decide
from interpkit.drift.verdict import judge
world = small_world(n=1000)
plan, _ = plan_check(world.old, world.dictionary, world.rows, new=dict(name="v2"))
table = measure(world.old, world.new, world.dictionary, world.rows, plan)
kept = table.statement.isin(["effect", "inputs", "decisions", "effect: unit 12", "effect: unit 0"])
judge(decide(table, plan), plan, table).explore(many_sequences(table[kept], 100))
""",
    training="""
import tempfile
from pathlib import Path
from interpkit.training.fit import fit
from interpkit.training.recipe import recipe
torch.manual_seed(0)
parts = torch.randn(64, 16)
batches = [torch.relu(torch.randn(256, 64) - 1.2) @ parts for _ in range(60)] * 20
folder = Path(tempfile.mkdtemp()) / "run"
def train(watch):
    return fit(batches, recipe(128, 6, 256 * 1200, 256), "layers.1:out", folder=folder, watch=watch)
board("training")(train)
""",
    budget="""
from interpkit.serve.costs import Cost, Costs
from interpkit.serve.levels import Budget
size = dict(batch=1, tokens=32, calls=3000, bare_p50_us=1900.0, bare_p99_us=2600.0)
def cost(level, n, c, cpu, **more):
    about = dict(cpu_pct_lower=0.85 * cpu, cpu_pct_upper=1.2 * cpu, added_us=19 * cpu)
    return Cost(level, **size, features=n, coverage=c, cpu_pct=cpu, added_p99_us=30 * cpu, **about, **more)
sizes = ((16, 0.31), (64, 0.52), (128, 0.68), (512, 0.86))
rows = [cost("monitor-last", n, 0.97 * c, 0.5 + n / 200, deferred=True) for n, c in sizes]
rows += [cost("monitor", n, c, 3 + n / 40) for n, c in sizes] + [cost("full", 4096, 0.93, 28.0)]
costs = Costs(tuple(rows), machine=dict(device="cpu"), release=dict(name="fraud"))
board("budget")(costs, Budget(cpu_pct_mean=8, added_latency_pct=12))
""",
)


def chromium_path() -> str | None:
    "A Chromium of this machine; None where playwright's own has to do."
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def chromium():
    "A browser that is running."
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: make browser")
    with api.sync_playwright() as playwright:
        path = chromium_path()
        if path is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium: make browser")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def notebook(cells: dict[str, str]) -> dict:
    "A notebook of these cells."
    empty = dict(cell_type="code", metadata={}, outputs=[], execution_count=None)
    made = [empty | dict(id=name, source=text.strip()) for name, text in cells.items()]
    kernel = dict(name="python3", display_name="Python 3", language="python")
    return dict(cells=made, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "The address of a JupyterLab with a notebook of boards."
    at = tmp_path_factory.mktemp("lab")
    (at / "work").mkdir()
    (at / "work" / "boards.ipynb").write_text(json.dumps(notebook(CELLS)))
    settings = at / "settings" / "@jupyterlab"
    for plugin, told in {
        "apputils-extension/notification": dict(fetchNews="false", checkForUpdates=False),
        "notebook-extension/tracker": dict(windowingMode="none"),
    }.items():
        (settings / plugin).parent.mkdir(parents=True, exist_ok=True)
        (settings / f"{plugin}.jupyterlab-settings").write_text(json.dumps(told))
    port = free_port()
    env = os.environ | dict(
        JUPYTERLAB_SETTINGS_DIR=str(at / "settings"),
        JUPYTERLAB_WORKSPACES_DIR=str(at / "workspaces"),
        JUPYTER_CONFIG_DIR=str(at / "config"),
        JUPYTER_DATA_DIR=str(at / "data"),
        JUPYTER_RUNTIME_DIR=str(at / "runtime"),
        IPYTHONDIR=str(at / "ipython"),
        JUPYTER_PREFER_ENV_PATH="1",
    )
    env.pop("IPK_PROGRESS", None)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    options = ["--IdentityProvider.token=", "--ServerApp.password=", "--expose-app-in-browser"]
    log = open(at / "log", "w")
    server = subprocess.Popen(
        [*command, *options], cwd=at / "work", env=env, stdout=log, stderr=subprocess.STDOUT
    )
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(f"{address}/api"), 60)
        yield address
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=2).status == 200
    except OSError:
        return False


def until(test, seconds: float):
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def page(chromium, lab):
    "JupyterLab with all cells run, and no error in the browser at the end."
    page = chromium.new_page(viewport=dict(width=1500, height=1000))
    page.set_default_timeout(20_000)
    errors = []
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.goto(f"{lab}/lab/tree/boards.ipynb?reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
    page.wait_for_function("window.jupyterapp !== undefined")
    if page.locator("#jp-left-stack").is_visible():
        run(page, "application:toggle-left-area")
    page.wait_for_function(CONNECTED, timeout=90_000)
    run(page, "notebook:run-all-cells")
    for name in ("browser", "graph", "verdict", "training", "budget"):
        page.wait_for_selector(f".ipk-{name}", timeout=120_000)
    yield page
    ours = [e for e in errors if "ipk" in e or "render" in e]
    assert not ours, ours


CONNECTED = """() => {
  const kernel = window.jupyterapp.shell.currentWidget?.context?.sessionContext?.session?.kernel;
  return kernel?.connectionStatus === 'connected' && kernel.status === 'idle';
}"""


def run(page, command: str, **args):
    "Begin a command of JupyterLab."
    page.evaluate("([c, a]) => { window.jupyterapp.commands.execute(c, a); }", [command, args])


def board_in(page, name: str, theme: str):
    "One board in sight, in a theme."
    run(page, "apputils:change-theme", theme=THEMES[theme])
    wanted = "true" if theme == "light" else "false"
    page.wait_for_selector(f"body[data-jp-theme-light='{wanted}']", state="attached")
    board = page.locator(f".ipk-{name}").first
    board.scroll_into_view_if_needed()
    page.wait_for_selector(f".ipk-{name}[data-theme='{theme}']")
    return board


def keep(board, name: str):
    "Keep a picture where BOARD_SHOTS says so."
    if "BOARD_SHOTS" in os.environ:
        board.page.wait_for_timeout(250)
        Path(os.environ["BOARD_SHOTS"]).mkdir(parents=True, exist_ok=True)
        board.screenshot(path=Path(os.environ["BOARD_SHOTS"]) / f"{name}.png")


both = pytest.mark.parametrize("theme", THEMES)


def background(board) -> list[int]:
    "The red, green and blue of what a board is drawn on."
    colour = board.evaluate("el => getComputedStyle(el).backgroundColor")
    return [int(x) for x in colour.strip("rgba()").split(",")[:3]]


@both
def test_features_are_searched_sorted_and_opened(page, theme):
    board = board_in(page, "browser", theme)
    assert (sum(background(board)) > 380) == (theme == "light")
    search = board.locator("input[type=search]")
    search.fill("abroad takeover")
    status = board.locator(".status")
    page.wait_for_function(
        "el => !el.textContent.startsWith('16,384')", arg=status.element_handle()
    )
    rows = board.locator(".gridrow")
    assert all("abroad" in text and "takeover" in text for text in rows.all_inner_texts()[:5])
    search.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.wait_for_timeout(300)
    opened = board.get_attribute("data-open")
    assert rows.nth(1).locator("[role=gridcell]").first.inner_text() == opened
    assert board.locator(".pane h2").last.inner_text().startswith(opened)
    keep(board, f"browser-{theme}")
    search.fill("")
    board.locator(".gridhead button", has_text="fires on").click()
    page.wait_for_function(
        "el => el.textContent.startsWith('16,384 of')", arg=status.element_handle()
    )
    assert board.locator("[aria-sort]").inner_text().startswith("fires on")


@both
def test_a_circuit_is_pruned_pinned_and_moved(page, theme):
    board = board_in(page, "graph", theme)
    level = board.locator(".head input[type=range]")
    before = board.locator(".node[transform]").count()
    first = level.input_value()
    level.fill("4")
    more = "n => document.querySelectorAll('.ipk-graph .node[transform]').length > n"
    page.wait_for_function(more, arg=before)
    level.fill(first)
    page.wait_for_function(more.replace("> n", "=== n"), arg=before)
    feature = board.locator(".node.feature[transform]").first
    feature.dispatch_event("click")
    opened = board.get_attribute("data-open")
    assert opened.startswith("f")
    page.keyboard.press("p")
    board.locator("h3", has_text="Pinned").wait_for()
    board.locator("button", has_text="off").click()
    page.wait_for_selector(".ipk-graph [data-measured]")
    moved = board.locator("[data-measured]")
    assert float(moved.get_attribute("data-measured")) != float(moved.get_attribute("data-moved"))
    keep(board, f"graph-{theme}")
    board.locator("button", has_text="as is").click()
    board.locator("button[aria-pressed]", has_text="pinned").click()
    board.locator("svg[role=group]").focus()
    page.keyboard.press("Escape")


@both
def test_a_verdict_leads_to_sequences_old_beside_new(page, theme):
    board = board_in(page, "verdict", theme)
    board.locator(".stated", has_text="effect: unit 12").first.click()
    assert board.get_attribute("data-open") == "effect: unit 12/"
    grid = board.locator("[role=grid]")
    page.wait_for_function(
        "el => el.getAttribute('aria-rowcount') > 10000", arg=grid.element_handle()
    )
    page.wait_for_function("el => el.dataset.sequence", arg=board.element_handle())
    first = board.get_attribute("data-sequence")
    assert board.locator(".gridrow").first.inner_text().startswith(first)
    shown = "el => el.dataset.sequence"
    board.locator(".stated", has_text="inputs").first.click()
    page.wait_for_function(shown, arg=board.element_handle())
    assert grid.get_attribute("aria-rowcount") == "100001"
    grid.evaluate("el => { el.scrollTop = el.scrollHeight / 2; }")
    middle = "() => [...document.querySelectorAll('.ipk-verdict .gridrow')].some(r => r.getAttribute('aria-rowindex') > 49000 && r.innerText.includes('-'))"
    page.wait_for_function(middle)
    assert board.locator(".gridrow").count() < 60  # only what is in sight is drawn
    grid.evaluate("el => { el.scrollTop = 0; }")
    board.locator(".stated", has_text="effect").first.click()
    page.wait_for_function(shown, arg=board.element_handle())
    assert board.locator(".both").count() >= 4
    keep(board, f"verdict-{theme}")


@both
def test_a_training_is_started_stopped_and_gone_on_with(page, theme):
    board = board_in(page, "training", theme)
    if theme == "light":
        board.locator("button", has_text="Start").click()
        page.wait_for_selector(".ipk-training[data-status='running']")
        page.wait_for_function(
            "el => Number(el.getAttribute('aria-valuenow')) > 0",
            arg=board.locator(".done").element_handle(),
            timeout=60_000,
        )
        board.locator("button", has_text="Stop").click()
        page.wait_for_selector(".ipk-training[data-status='stopped']", timeout=60_000)
        assert "Stopped" in board.locator(".status").inner_text()
        board.locator("button", has_text="Go on").click()
    page.wait_for_selector(".ipk-training[data-status='done']", timeout=90_000)
    assert board.locator(".done").get_attribute("aria-valuenow") == "100"
    keep(board, f"training-{theme}")


@both
def test_a_budget_chooses_a_level(page, theme):
    board = board_in(page, "budget", theme)
    page.wait_for_selector(".ipk-budget[data-level]")
    slider = board.locator("input[type=range]").first
    slider.fill("100")
    board.locator("input[type=range]").nth(1).fill("100")
    page.wait_for_selector(".ipk-budget[data-level='full']")
    slider.fill("58")
    page.wait_for_selector(".ipk-budget[data-level='monitor']")
    keep(board, f"budget-{theme}")
    slider.fill("0")
    page.wait_for_selector(".ipk-budget[data-level='off']")
    slider.fill("58")


def test_keys_of_a_board_are_not_those_of_the_notebook(page):
    board, cells = board_in(page, "browser", "light"), page.locator(".jp-Notebook .jp-Cell").count()
    board.locator(".grid").focus()
    for key in ("x", "d", "d", "a", "b", "m"):
        page.keyboard.press(key)
    assert page.locator(".jp-Notebook .jp-Cell").count() == cells
    page.keyboard.press("/")
    assert board.locator("input[type=search]").evaluate("el => el === document.activeElement")


TIMED = """async ([ask, done]) => {
  const root = document.querySelector('.ipk-browser'), times = [];
  const next = () => new Promise(requestAnimationFrame);
  for (let i = 0; i < 12; i++) {
    const begun = performance.now();
    eval(ask)(root, i);
    while (!eval(done)(root, i)) await next();
    times.push(performance.now() - begun);
  }
  return times.sort((a, b) => a - b);
}"""


def test_search_and_click_in_sixteen_thousand_features(page):
    "Measured and printed; whether 200 ms hold is a bar of the benchmark, not of a busy machine."
    board_in(page, "browser", "light")
    words = "['abroad', 'night', 'mule refund', 'gift', 'travel', '16000', 'crypto online', 'new', 'unnamed', 'amount', 'refund', 'salary']"
    search = f"(root, i) => {{ const s = root.querySelector('input[type=search]'); s.value = {words}[i]; root.seen = root.querySelector('.status').textContent; s.dispatchEvent(new Event('input')); }}"
    found = "(root) => root.querySelector('.status').textContent !== root.seen"
    click = "(root, i) => { const row = root.querySelectorAll('.gridrow')[i + 1]; root.wanted = row.firstChild.textContent; row.click(); }"
    opened = "(root) => root.dataset.open === root.wanted && root.querySelectorAll('.pane h2')[0].textContent.startsWith(root.wanted)"
    searched = page.evaluate(TIMED, [search, found])
    page.locator(".ipk-browser input[type=search]").fill("")
    page.wait_for_timeout(500)
    clicked = page.evaluate(TIMED, [click, opened])
    for what, times in (("search", searched), ("click", clicked)):
        print(f"{what}: median {times[6]:.0f} ms, largest {times[-1]:.0f} ms")
    assert searched[0] < 2000 and clicked[0] < 2000


def test_a_page_that_is_loaded_again_shows_the_boards_again(page):
    run(page, "docmanager:save")
    page.wait_for_timeout(1500)
    page.reload()
    page.wait_for_selector(".ipk-browser .gridrow", timeout=90_000)
    page.wait_for_selector(".ipk-training[data-status='done']")
    board = page.locator(".ipk-browser")
    board.locator("input[type=search]").fill("#77")
    page.wait_for_selector(".ipk-browser[data-open]")
    page.wait_for_function(
        "document.querySelector('.ipk-browser .status').textContent.startsWith('1 of')"
    )
