// What interpretation may cost, and which level of the ladder fits: cost against coverage.

const INKS = ["var(--cold)", "var(--warm)", "var(--green)", "#9a7bd0", "var(--grey)", "#b08d1f"];

function render({ model, el }) {
  const state = model.get("state"), root = frame(el, state.title, "budget"), ask = asking(model, root.busy);
  const bounds = { ...state.bounds }, rungs = state.rungs, known = rungs.filter((r) => r.cpu !== null);
  const toBound = (v) => (v >= 100 ? null : Number((10 ** (v / 100 * 5 - 2)).toPrecision(3))), toSlider = (x) => (x === null ? 100 : 100 * (Math.log10(Math.max(x, 0.01)) + 2) / 5);
  const shown = (x) => (x === null ? "no bound" : `${number(x, 3)} %`);
  function slider(key, name, about, log) {
    const out = h("output", { class: "right", text: log ? shown(bounds[key]) : percent(bounds[key]) });
    const input = h("input", { type: "range", min: 0, max: 100, step: log ? 0.5 : 1, "aria-label": about, oninput: (e) => {
      bounds[key] = log ? toBound(Number(e.target.value)) : Number(e.target.value) / 100;
      out.textContent = log ? shown(bounds[key]) : percent(bounds[key]);
      input.setAttribute("aria-valuetext", out.textContent);
      choose();
    } });
    input.value = log ? toSlider(bounds[key]) : 100 * bounds[key];
    return [h("span", { text: name }), input, out];
  }
  const sliders = h("div", { class: "sliders" },
    slider("cpu", "CPU time, at most", "Added CPU time on average, at most, percent", true),
    slider("latency", "latency at p99, at most", "Added latency at the 99th percentile, at most, percent", true),
    slider("coverage", "coverage, at least", "Share of attribution that is watched, at least, percent", false));
  const chosen = h("div", { class: "chosen" }), plot = s("svg", { viewBox: "0 0 640 300", role: "img", "aria-label": "Coverage of each level against the CPU time that it adds", style: "width:100%;max-width:820px" });

  const most = Math.max(...known.map((r) => r.cpuUpper ?? r.cpu), 1) * 1.5, at = (x) => 56 + 556 * Math.asinh(Math.max(x, 0) / 0.5) / Math.asinh(most / 0.5), up = (c) => 258 - 240 * c;
  const names = [...new Set(rungs.map((r) => r.name))];
  function draw(choice) {
    const fits = new Set(choice.fitting);
    const ticks = [0, 0.5, 1, 3, 10, 30, 100, 300].filter((t) => t <= most);
    const lines = names.map((name, i) => {
      const mine = known.filter((r) => r.name === name).sort((a, b) => a.features - b.features);
      return [mine.length > 1 ? s("path", { d: mine.map((r, k) => `${k ? "L" : "M"}${at(r.cpu)} ${up(r.coverage)}`).join(""), fill: "none", stroke: INKS[i % 6], "stroke-width": 1.3 }) : null, mine.map((r) => {
        const on = r.index === choice.index;
        return s("g", { opacity: fits.has(r.index) ? 1 : 0.32 },
          r.cpuLower !== null ? s("line", { x1: at(r.cpuLower), x2: at(r.cpuUpper), y1: up(r.coverage), y2: up(r.coverage), stroke: INKS[i % 6], "stroke-width": 3, "stroke-opacity": 0.45 }) : null,
          on ? s("circle", { cx: at(r.cpu), cy: up(r.coverage), r: 11, fill: "none", stroke: "var(--ink)", "stroke-width": 2 }) : null,
          s("circle", { cx: at(r.cpu), cy: up(r.coverage), r: 5.5, fill: INKS[i % 6] }, s("title", { text: r.words })),
          s("text", { x: at(r.cpu), y: up(r.coverage) + 20, "text-anchor": "middle", text: r.features ? number(r.features) : "" }));
      })];
    });
    const x = bounds.cpu === null ? null : at(Math.min(bounds.cpu, most));
    plot.replaceChildren(...[
      x === null ? null : s("rect", { x: 56, y: 18, width: Math.max(x - 56, 0), height: 240, fill: "var(--wash)" }),
      ...ticks.map((t) => [s("line", { class: "axis", x1: at(t), x2: at(t), y1: 18, y2: 258 }), s("text", { x: at(t), y: 274, "text-anchor": "middle", text: `${t} %` })]).flat(),
      ...[0, 0.25, 0.5, 0.75, 1].map((c) => [s("line", { class: "axis", x1: 56, x2: 612, y1: up(c), y2: up(c) }), s("text", { x: 49, y: up(c) + 4, "text-anchor": "end", text: percent(c) })]).flat(),
      x === null ? null : s("line", { x1: x, x2: x, y1: 18, y2: 258, stroke: "var(--ink)", "stroke-width": 1.3 }),
      s("line", { x1: 56, x2: 612, y1: up(bounds.coverage), y2: up(bounds.coverage), stroke: "var(--ink)", "stroke-width": 1.3, "stroke-dasharray": "4 3" }),
      ...lines.flat(3), s("text", { x: 612, y: 293, "text-anchor": "end", text: `added CPU time, ${state.size}` }), s("text", { x: 56, y: 11, text: "coverage; beside each point its number of features" })].filter(Boolean));
  }
  const key = h("div", { class: "key", style: "padding:0 14px;flex-wrap:wrap" }, names.map((name, i) => h("span", {}, h("i", { style: { "--c": INKS[i % 6], "border-radius": "50%", width: "9px", height: "9px" } }), name)), h("span", { text: "pale: does not fit" }));
  let asked = 0;
  async function choose() {
    const mine = ++asked;
    let choice;
    try { choice = await ask("choose", bounds); } catch (error) { root.say(error.message); return; }
    if (mine !== asked) return;
    const r = rungs.find((x) => x.index === choice.index);
    chosen.replaceChildren(h("h2", {}, r ? r.name : "off", r ? h("div", { class: "dim", style: "font-weight:400;font-size:13px", text: `${plural(r.features, "feature")}, coverage ${percent(r.coverage)}, ${r.cpu === null ? "CPU not measured" : `${number(r.cpu, 2)} % of CPU time`}${r.p99 === null ? "" : `, ${number(r.p99)} µs at p99`}` }) : null), choice.note ? h("p", { class: "dim", text: choice.note }) : "");
    root.dataset.level = r ? r.level : "off";
    root.say(r ? `${plural(choice.fitting.length, "way")} of interpreting fit${choice.fitting.length === 1 ? "s" : ""}, of ${rungs.length}` : "Nothing fits: watching nothing is what is left.");
    draw(choice);
  }
  const pending = settled(choose, 20);
  root.append(h("div", { class: "head" }, h("h2", {}, state.title, h("small", { text: state.about }))), h("div", { class: "beside" }, h("div", {}, sliders, chosen, key), h("div", { style: "padding:12px 14px 8px" }, plot)), root.foot);
  root.hint("the choice is that of a server");
  const calm = themed(root);
  pending();
  return () => { calm(); ask.close(); };
}

// The rule of `Costs.choose`, for a page without Python; a test compares both

const answers = {
  choose(state, { cpu, latency, coverage }) {
    const within = (x, bound) => bound === null || (x !== null && x <= bound);
    const fitting = state.rungs.filter((r) => r.all.every((c) => within(c.cpu, cpu) && within(c.latency, latency) && c.coverage >= coverage));
    const rank = (r) => [r.rank, r.coverage, -(r.cpu ?? Infinity)];
    const best = fitting.reduce((a, b) => { if (!a) return b; const [x, y] = [rank(a), rank(b)], i = x.findIndex((v, k) => v !== y[k]); return i >= 0 && y[i] > x[i] ? b : a; }, null);
    return { index: best ? best.index : null, fitting: fitting.map((r) => r.index), note: best ? "" : "No level fits this budget." };
  },
};

export default { render };
