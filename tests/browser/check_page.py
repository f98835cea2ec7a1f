#!/usr/bin/env python3
"""Check the page of `--html` in a browser: it shows what the JSON of the same run says.

    python check_page.py VELORA-OPT [TEST...]

Needs Chromium at /usr/bin/chromium (Debian's package) and the packages of requirements.txt. SHOTS=FOLDER keeps
pictures of every page: light, dark, narrow and printed. Nothing is loaded from anywhere: a request stops the test.
"""

import json
import os
import pathlib
import re
import sys
import tempfile
import unittest

from playwright.sync_api import sync_playwright

import graphs
from reports import CATEGORIES, ROOT, Run, amount

TOOL = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release/velora-opt").resolve()
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()

#: Both dialects; with sizes and without; what a rewrite did and what one would do.
RUNS = {
    "aot-llama": ["models/aot/llama_tiny.onnx"],
    "aot-mlp": ["models/aot/mlp.onnx", "--dim", "batch=64"],
    "ort-llama": ["models/ort/llama_tiny.onnx", "--dim", "batch=8", "--dim", "seq=16", "--dim", "rows=128"],
    "ort-cnn": ["models/ort/cnn_bn.onnx"],
    "aot-sgd": ["models/aot/digits_sgd.onnx", "--dim", "batch=48"],
    "factored": ["models/aot/llama_tiny.onnx", "--gradients", "factored", "--dim", "batch=4"],
    "inspected": ["inspect", "models/ort/digits_vit.onnx"],
    "measured": [
        *["inspect", "models/aot/digits_mlp.onnx", "--data", "models/data/digits_test.npz"],
        *["--batch", "64", "--sweep", "4,16", "--dim", "batch=64"],
    ],
    "probe": ["models/aot/vit_tiny_probe.onnx"],
}
#: Which pins are worth it depends on the sizes; without them more orders are the same at others.
RUNS |= {f"{name}-unpinned": [*RUNS[name], "--no-pin"] for name in ("aot-llama", "aot-mlp", "ort-llama", "aot-sgd", "ort-cnn")}
#: Runs whose pages are worth a look of their own.
SHOWN = [name for name in RUNS if not name.endswith("-unpinned")]

#: A run, and sizes to type into its page, which must say then what a run with these sizes says.
WHAT_IF = [
    ("aot-llama", {"batch": 16, "seq": 32}),
    ("aot-llama", {"batch": 1, "seq": 1}),
    ("aot-llama", {"batch": 100, "seq": 31}),
    ("aot-llama-unpinned", {"batch": 31, "seq": 20}),
    ("aot-llama-unpinned", {"batch": 7, "seq": 32}),
    ("aot-mlp", {"batch": 80}),
    ("aot-mlp-unpinned", {"batch": 73}),
    ("aot-mlp-unpinned", {"batch": 1000000007}),
    ("ort-llama", {"batch": 32, "seq": 24, "rows": 768}),
    ("ort-llama-unpinned", {"batch": 9, "seq": 17, "rows": 153}),
    ("aot-sgd", {"batch": 96}),
    ("aot-sgd-unpinned", {"batch": 49}),
    ("factored", {"batch": 9}),
    ("ort-cnn", {"batch": 33}),
    ("ort-cnn-unpinned", {"batch": 61}),
    ("inspected", {"batch": 60}),
]


class Pages(unittest.TestCase):
    """One browser for all tests, and one run of the tool for each page."""

    maxDiff = 4000

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.playwright = sync_playwright().start()
        cls.browser = cls.playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        cls.runs = {}

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        cls.playwright.stop()
        cls.folder.cleanup()

    def run_of(self, name, arguments=None):
        if name not in self.runs:
            arguments = RUNS[name] if arguments is None else arguments
            self.runs[name] = Run(TOOL, pathlib.Path(self.folder.name), name, arguments)
        return self.runs[name]

    def open(self, path, width=1280, **options):
        """A page in a context of its own. Requests are refused and, like errors, fail the test."""
        context = self.browser.new_context(viewport={"width": width, "height": 900}, **options)
        self.addCleanup(context.close)
        page = context.new_page()
        self.complaints = []
        own = path.resolve().as_uri()

        def route(request):
            if request.request.url == own:
                request.continue_()
            else:
                self.complaints.append(f"request of {request.request.url}")
                request.abort()

        context.route("**/*", route)
        page.on("console", lambda message: self.complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.goto(own)
        self.addCleanup(lambda: self.assertEqual(self.complaints, []))
        return page

    # What the page shows.

    def cells(self, page, table):
        """A table's cells: text, and the exact number where there is one."""
        script = """table => [...table.tBodies[0].rows].map(row => [...row.cells].map(
            cell => [cell.textContent, cell.dataset.v === undefined ? null : cell.dataset.v]))"""
        rows = page.locator(table).first.evaluate(script)
        return [[(text, None if number is None else int(number)) for text, number in row] for row in rows]

    def live(self, page, side):
        script = "side => velora.state.measured[side].live.map(share => [...share])"
        steps = len(page.evaluate("side => [...velora.state.measured[side].total]", side))
        series = page.evaluate(script, side)
        return [dict(zip(CATEGORIES, (share[step] for share in series))) for step in range(steps)]

    def check_courses(self, page, run, sides=(0, 1)):
        for side, course in enumerate(run.courses):
            if side in sides:
                live = course.live()
                self.assertEqual(self.live(page, side), live)
                peak = max(range(len(live)), key=lambda step: (sum(live[step].values()), -step))
                self.assertEqual(page.evaluate("side => velora.state.measured[side].peak", side), peak)
                base = page.evaluate("side => velora.state.measured[side].base", side)
                self.assertEqual(dict(zip(CATEGORIES, base)), course.held)

    def check_totals(self, page, run):
        keys = {"saved for backward": "saved_bytes", "peak": "peak_bytes", "gradients": "gradient_bytes"}
        keys |= {"weight-gradient operations": "weight_grad_flops", "AdamW state": "adamw_bytes"}
        keys |= {"all that a step holds": "step_bytes"}
        rows = self.cells(page, "table.totals")
        self.assertGreaterEqual(len(rows), 3)
        for (name, _), (_, before), (_, after), (ratio, _) in rows:
            expected = [run.total(f"{keys[name]}_{when}") for when in ("before", "after")]
            self.assertEqual([before, after], expected, name)
            self.assertEqual(ratio, f"{100 * after / before:.1f}%" if before else "")

    def check_layers(self, page, run):
        rows = self.cells(page, "[aria-label=Layers] table")
        measured = "data" in run.json
        self.assertEqual(len(rows), len(run.json["layers"]))
        for row, layer in zip(rows, run.json["layers"]):
            texts = [text for text, _ in row]
            self.assertEqual(texts[0], layer["param"])
            self.assertEqual([texts[1], texts[3], texts[4]], [layer["kind"], layer["activation"], layer["decision"]])
            self.assertEqual(row[5][1], amount(layer, "freed_bytes", run.sizes))
            if measured:
                fidelity = layer.get("fidelity") or {"cosine": None, "norm_ratio": None}
                shown = ["–" if part is None else f"{part:.4f}" for part in fidelity.values()]
                self.assertEqual(texts[6:8], shown)
            keepers = [f"{k['node']} ({k['op']})" if k["node"] else k["why"] for k in layer["kept_alive_by"]]
            self.assertEqual(texts[-2], ", ".join(keepers))
            self.assertEqual(texts[-1], layer["message"])

    def check_saved(self, page, run):
        rows = self.cells(page, "[aria-label='Tensors saved for backward'] table")
        expected = [(saved["tensor"], amount(saved, "bytes", run.sizes)) for saved in run.json["saved"]]
        self.assertEqual([(row[2][0], row[1][1]) for row in rows], expected)

    def check_alive(self, page, run, side, step):
        """The list of what is alive in a step, which was asked for."""
        course = run.courses[side]
        numbers = course.alive(step)
        rows = self.cells(page, ".alive table")
        buffers = [course.buffers[number] for number in numbers]
        titles = dict(page.evaluate("velora.data.categories.map(c => [c.key, c.title])"))
        expected = [
            (b["tensor"], course.bytes[n], titles[b["category"]], b["dtype"] or "") for n, b in zip(numbers, buffers)
        ]
        self.assertEqual([(row[2][0], row[1][1], row[3][0], row[5][0]) for row in rows], expected)
        for row, buffer in zip(rows, buffers):
            node, op, _ = course.steps[buffer["born"]]
            self.assertTrue(row[6][0].startswith(f"{node} ({op})"))
            readers = [course.steps[r] for r in buffer["readers"] if r >= step]
            for node, op, _ in readers[:3]:
                self.assertIn(f"{node} ({op})", row[7][0])
            if buffer["last"] == len(course.steps):
                self.assertIn("leaves the graph", row[7][0])
        summary = page.locator(".alive .note").first.text_content()
        self.assertTrue(summary.startswith(f"{len(numbers)} tensors, "), summary)

    # Tests.

    def test_every_value_is_that_of_the_json(self):
        for name in SHOWN:
            with self.subTest(name):
                run = self.run_of(name)
                page = self.open(run.page)
                self.check_totals(page, run)
                self.check_courses(page, run)
                self.check_layers(page, run)
                self.check_saved(page, run)
                for side, course in enumerate(run.courses):
                    peak = course.course["peak_step"]
                    page.locator(".to-peak").nth(side).click()
                    self.check_alive(page, run, side, peak)
                    alive = page.locator("[data-key=alive] td").nth(side).get_attribute("data-v")
                    key = f"peak_bytes_{('before', 'after')[side]}"
                    self.assertEqual(int(alive), run.total(key))
                    self.assertEqual(int(alive), sum(course.bytes[n] for n in course.alive(peak)))
                    live = course.live()[peak]
                    for category in CATEGORIES:
                        shown = page.locator(f"[data-key={category}] td").nth(side).get_attribute("data-v")
                        self.assertEqual(int(shown), live[category] + course.held[category], category)
                    self.assertEqual(course.saved(), run.total(f"saved_bytes_{('before', 'after')[side]}"))

    def test_other_sizes_say_what_another_run_says(self):
        """Where that run has the same layers rewritten and the same order, every number of it."""
        orders, layers = 0, 0
        for name, sizes in WHAT_IF:
            with self.subTest(name, **sizes):
                page = self.open(self.run_of(name).page)
                for symbol, size in sizes.items():
                    page.get_by_label(symbol, exact=True).fill(str(size))
                kept = [part for part in RUNS[name]]
                while "--dim" in kept:
                    place = kept.index("--dim")
                    symbol = kept[place + 1].split("=")[0]
                    sizes.setdefault(symbol, int(kept[place + 1].split("=")[1]))
                    del kept[place : place + 2]
                given = [part for symbol, size in sizes.items() for part in ("--dim", f"{symbol}={size}")]
                other = self.run_of(f"{name}-{'-'.join(map(str, sizes.values()))}", kept + given)
                was = self.run_of(name)
                same = [len(was.courses) == len(other.courses) and was.courses[0].steps == other.courses[0].steps]
                same.append(same[0] and was.courses[-1].steps == other.courses[-1].steps)
                self.check_courses(page, other, [side for side in (0, 1) if same[side]])
                orders += sum(same)
                decisions = lambda run: [(layer["param"], layer["decision"]) for layer in run.json["layers"]]
                # What is saved depends on the layers alone; the peak on the order, too.
                if decisions(was) == decisions(other) and len(was.json["hoisted"]) == len(other.json["hoisted"]):
                    layers += 1
                    self.check_layers(page, other)
                    rows = self.cells(page, "table.totals")
                    saved = [other.total(f"saved_bytes_{when}") for when in ("before", "after")]
                    flops = [other.total(f"weight_grad_flops_{when}") for when in ("before", "after")]
                    self.assertEqual([rows[0][1][1], rows[0][2][1]], saved)
                    self.assertEqual([rows[2][1][1], rows[2][2][1]], flops)
                if all(same):
                    self.check_totals(page, other)
        # So that not every pair is let off.
        self.assertGreaterEqual(orders, 18)
        self.assertGreaterEqual(layers, 11)

    def test_expressions_are_what_the_tool_evaluates(self):
        page = self.open(self.run_of("aot-mlp").page)
        cases = json.loads((ROOT / "tests/browser/expressions.json").read_text())
        script = """cases => cases.map(({ text, tries }) => {
            const expression = velora.parseExpression(text);
            return tries.map(({ sizes }) => velora.evaluate(expression, sizes.map(BigInt))?.toString() ?? null);
        })"""
        for case, values in zip(cases, page.evaluate(script, cases), strict=True):
            self.assertEqual(values, [one["value"] for one in case["tries"]], case["text"])

    def test_sizes_that_cannot_be_added_up_are_refused(self):
        page = self.open(self.run_of("aot-llama").page)
        page.get_by_label("batch").fill("9007199254740993")
        self.assertEqual(page.locator(".is-too-large").count(), 2)
        self.assertEqual(self.cells(page, "table.totals")[1][1][0], "?")
        for refused in ("", "0", "-3", "1.5", "1e3"):
            page.get_by_label("seq").fill(refused)
        page.get_by_role("button", name="Reset").click()
        self.assertEqual(page.locator(".is-too-large").count(), 0)
        self.check_totals(page, self.run_of("aot-llama"))

    def test_charts_answer_to_pointer_and_keyboard(self):
        run = self.run_of("aot-llama")
        page = self.open(run.page)
        for side, course in enumerate(run.courses):
            plot = page.get_by_role("slider").nth(side)
            now = lambda: int(plot.get_attribute("aria-valuenow")) - 1
            self.assertEqual(now(), course.course["peak_step"])
            self.assertEqual(int(plot.get_attribute("aria-valuemax")), len(course.steps))
            plot.focus()
            for key, step in [("Home", 0), ("ArrowRight", 1), ("ArrowUp", 2), ("ArrowLeft", 1), ("End", -1)]:
                page.keyboard.press(key)
                self.assertEqual(now(), step % len(course.steps), key)
            page.keyboard.press("PageDown")
            step = now()
            self.assertLess(step, len(course.steps) - 2)
            self.assertIn(course.steps[step][0], plot.get_attribute("aria-valuetext"))
            page.keyboard.press("Enter")
            self.check_alive(page, run, side, step)
            page.keyboard.press("p")
            self.assertEqual(now(), course.course["peak_step"])
            # A third of the way in: the place of a step, by the chart's own scale.
            box = plot.bounding_box()
            script = "([side, x]) => velora.state.panels[side].drawing.step(x)"
            step = page.evaluate(script, [side, 1 / 3])
            self.assertGreater(step, len(course.steps) / 5)
            plot.hover(position={"x": box["width"] / 3, "y": 100})
            readout = page.locator(".readout").nth(side).text_content()
            self.assertTrue(readout.startswith(f"step {step + 1} of {len(course.steps)}: {course.steps[step][0]} "))
            shown = page.locator("[data-key=alive] td").nth(side).get_attribute("data-v")
            self.assertEqual(int(shown), sum(course.live()[step].values()))
            plot.click(position={"x": box["width"] / 3, "y": 100})
            # A click is at a whole pixel, which may be the next step's.
            self.assertLessEqual(abs(now() - step), 1)
            self.check_alive(page, run, side, now())

    def test_the_base_can_be_left_out(self):
        run = self.run_of("aot-mlp")
        page = self.open(run.page)
        page.get_by_role("checkbox").uncheck()
        self.assertFalse(page.locator("[data-key=parameters]").first.is_visible())
        shown = page.locator("[data-key=alive] td").first.get_attribute("data-v")
        self.assertEqual(int(shown), run.total("peak_bytes_before"))

    def test_tables_can_be_sorted(self):
        run = self.run_of("aot-llama")
        page = self.open(run.page)
        layers = page.get_by_role("region", name="Layers")
        column = lambda place: [row[place] for row in self.cells(page, "[aria-label=Layers] table")]
        freed = layers.get_by_role("columnheader", name="freed")
        freed.get_by_role("button").click()
        numbers = [number for _, number in column(5)]
        self.assertEqual(numbers, sorted(numbers, reverse=True))
        self.assertGreater(len(set(numbers)), 2)
        self.assertEqual(freed.get_attribute("aria-sort"), "descending")
        freed.get_by_role("button").press("Enter")
        numbers = [number for _, number in column(5)]
        self.assertEqual(numbers, sorted(numbers))
        self.assertEqual(freed.get_attribute("aria-sort"), "ascending")
        layers.get_by_role("columnheader", name="parameter").get_by_role("button").click()
        self.assertEqual(freed.get_attribute("aria-sort"), None)
        names = [text for text, _ in column(0)]
        digits = lambda text: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]
        self.assertEqual(names, sorted(names, key=digits))
        # Other sizes keep the order that was asked for, and rows stay whole.
        rows = {row[0][0]: row[5][1] for row in self.cells(page, "[aria-label=Layers] table")}
        expected = {layer["param"]: amount(layer, "freed_bytes", run.sizes) for layer in run.json["layers"]}
        self.assertEqual(rows, expected)
        page.locator(".alive").get_by_role("columnheader", name="tensor").get_by_role("button").click()
        names = [row[2][0] for row in self.cells(page, ".alive table")]
        self.assertEqual(names, sorted(names, key=digits))

    def test_nothing_but_the_page_s_own_script_runs(self):
        page = self.open(self.run_of("aot-mlp").page)
        self.assertEqual(page.evaluate("fetch('https://example.com').then(() => 'sent', () => 'refused')"), "refused")
        inject = """text => {
            const script = document.createElement('script');
            script.textContent = text;
            document.body.append(script);
            document.body.insertAdjacentHTML('beforeend', '<img src="https://example.com/x.png" onerror="globalThis.pwned = 1">');
            return globalThis.pwned ?? null;
        }"""
        self.assertIsNone(page.evaluate(inject, "globalThis.pwned = 1"))
        page.wait_for_timeout(100)
        self.assertIsNone(page.evaluate("globalThis.pwned ?? null"))
        # The policy says so on the console; it asked nobody.
        self.assertTrue(self.complaints)
        self.assertFalse([text for text in self.complaints if "Content Security Policy" not in text])
        self.complaints.clear()

    def test_names_are_text(self):
        path = graphs.save(graphs.hostile(), pathlib.Path(self.folder.name) / "names.onnx")
        run = self.run_of("hostile", [str(path)])
        self.assertGreater(run.json["totals"]["sites_rewritten"], 3)
        page = self.open(run.page)
        page.wait_for_timeout(100)
        self.assertIsNone(page.evaluate("globalThis.pwned ?? null"))
        self.assertEqual(page.locator("b, img").count(), 0)
        self.check_courses(page, run)
        self.check_alive(page, run, 0, run.courses[0].course["peak_step"])
        self.assertEqual(page.locator(".sizes label code").first.text_content(), graphs.HOSTILE[0])
        layers = self.cells(page, "[aria-label=Layers] table")
        self.assertEqual([row[0][0] for row in layers], [layer["param"] for layer in run.json["layers"]])

    def test_without_the_script_the_tables_are_there(self):
        for name in ("aot-mlp", "measured"):
            run = self.run_of(name)
            plain = self.open(run.page, java_script_enabled=False)
            self.assertTrue(plain.get_by_text("The charts are drawn by a script").is_visible())
            rows = lambda page, table: page.locator(f"{table} tbody tr").all_inner_texts()
            scripted = self.open(run.page)
            for table in ("table.totals", "[aria-label=Layers] table"):
                # Where sizes are given the script writes amounts as the tool does.
                self.assertEqual(rows(plain, table), rows(scripted, table))
            self.assertEqual(len(rows(plain, "[aria-label=Layers] table")), len(run.json["layers"]))

    def test_text_can_be_read_in_light_and_dark(self):
        script = (ROOT / "tests/browser/contrast.js").read_text()
        grounds = set()
        for scheme in ("light", "dark"):
            for name in ("aot-llama", "measured"):
                page = self.open(self.run_of(name).page, color_scheme=scheme)
                found = page.evaluate(script)
                self.assertGreater(len(found["texts"]), 50)
                poor = [text for text in found["texts"] if text["contrast"] < 4.5]
                self.assertEqual(poor, [])
                # Neighbours in a stack differ in more than their patterns.
                self.assertGreater(min(found["bands"]), 1.25, found["bands"])
                grounds.add(found["ground"])
        self.assertEqual(len(grounds), 2)

    def test_narrow_screens_are_not_scrolled_sideways(self):
        for name in ("aot-llama", "ort-llama", "measured", "hostile", "probe"):
            path = pathlib.Path(self.folder.name) / "names.onnx"
            if name == "hostile":
                graphs.save(graphs.hostile(), path)
            run = self.run_of(name, [str(path)] if name == "hostile" else None)
            for width in (400, 320):
                page = self.open(run.page, width=width)
                wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                self.assertLessEqual(wide, 0, (name, width))
                outside = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, svg')
                    && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).length"""
                self.assertEqual(page.evaluate(outside), 0, (name, width))

    def test_paper_is_light_and_has_every_column(self):
        for name in ("ort-llama", "measured", "aot-llama"):
            page = self.open(self.run_of(name).page, width=688, color_scheme="dark")
            page.emulate_media(media="print")
            page.evaluate("dispatchEvent(new Event('beforeprint'))")
            cut = """[...document.querySelectorAll('table, svg')].filter(e => e.getBoundingClientRect().right
                > document.querySelector('main').getBoundingClientRect().right + 1).length"""
            self.assertEqual(page.evaluate(cut), 0, name)
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            self.assertEqual(ground, "rgb(255, 255, 255)")
            self.assertEqual(page.locator("[aria-label=Layers] tbody tr:visible").count(), len(self.run_of(name).json["layers"]))
            self.assertTrue(page.pdf(format="A4").startswith(b"%PDF"))

    def test_a_large_graph_makes_a_page_of_a_few_megabytes(self):
        path = graphs.save(graphs.chain(2550, 64), pathlib.Path(self.folder.name) / "large.onnx")
        run = self.run_of("large", [str(path), "--no-pin", "--dim", "batch=64"])
        self.assertGreater(len(run.courses[0].steps), 20000)
        size = run.page.stat().st_size
        self.assertLess(size, 8 << 20)
        page = self.open(run.page)
        # As the browser counts it: from the request to the drawn page.
        took = page.evaluate("performance.now()")
        print(f"page of {len(run.courses[0].steps)} steps: {size / 2**20:.1f} MiB, shown after {took:.0f} ms")
        self.check_totals(page, run)
        self.assertEqual(page.locator(".band").count() > 4, True)

    def test_pictures(self):
        """No check: with SHOTS, a picture of every page to look at."""
        shots = os.environ.get("SHOTS")
        if not shots:
            self.skipTest("SHOTS names no folder")
        folder = pathlib.Path(shots)
        folder.mkdir(parents=True, exist_ok=True)
        for name in SHOWN:
            for scheme, width in [("light", 1280), ("dark", 1280), ("light", 400)]:
                page = self.open(self.run_of(name).page, width=width, color_scheme=scheme)
                page.screenshot(path=folder / f"{name}-{scheme}-{width}.png", full_page=True)
            page.pdf(path=folder / f"{name}.pdf", format="A4")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
