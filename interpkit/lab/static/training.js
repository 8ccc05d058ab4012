// A training while it runs: its curves, how long it will take, stop and go on.

function render({ model, el }) {
  const state = model.get("state"), root = frame(el, state.title, "training"), ask = asking(model, root.busy);
  let rows = state.rows.slice(), now = state.now;
  const CURVES = [["fvu", "FVU, unexplained", true, percent], ["l0", "L0, active features", false, number], ["dead_share", "dead features", false, percent], ["loss", "loss", true, (x) => number(x, 2)]];
  const figures = CURVES.map(([key, name, log, show]) => {
    const value = h("b"), plot = s("svg", { viewBox: "0 0 320 170", role: "img", style: "width:100%" });
    return { key, log, show, name, value, plot, node: h("figure", {}, h("figcaption", {}, h("span", { text: name }), value), plot) };
  });
  const done = h("div", { class: "done", role: "progressbar", "aria-label": "How much is done", "aria-valuemin": 0, "aria-valuemax": 100 });
  const told = h("div", { class: "said" });
  const act = (what) => async () => { try { await ask(what); } catch (error) { root.say(error.message); } };
  const start = h("button", { class: "first", text: "Start", onclick: act("start") });
  const stop = h("button", { text: "Stop", title: "Stop after the next row of the log; what was learnt stays", onclick: act("stop") });

  function curve({ key, log, show, name, value, plot }) {
    const points = rows.filter((r) => Number.isFinite(r[key]) && (!log || r[key] > 0)).map((r) => [r.tokens, log ? Math.log10(r[key]) : r[key]]);
    const last = rows.at(-1);
    value.textContent = last ? show(last[key]) : "–";
    if (points.length < 1) { plot.replaceChildren(s("line", { class: "axis", x1: 40, x2: 316, y1: 148, y2: 148 })); return; }
    const xs = [0, Math.max(...points.map((p) => p[0]), last.all || 1)], ys = points.map((p) => p[1]);
    let low = Math.min(...ys), high = Math.max(...ys);
    if (!log) low = Math.min(low, 0);
    if (high - low < 1e-9) high = low + (log ? 0.3 : Math.max(Math.abs(low), 1e-3));
    const x = (t) => 44 + 270 * (t - xs[0]) / (xs[1] - xs[0] || 1), y = (v) => 146 - 138 * (v - low) / (high - low), back = (v) => show(log ? 10 ** v : v);
    const line = points.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("");
    const ticks = [low, (low + high) / 2, high];
    plot.setAttribute("aria-label", `${name}: ${back(points[0][1])} at first, ${back(points.at(-1)[1])} now`);
    plot.replaceChildren(
      ...ticks.flatMap((v) => [s("line", { class: "axis", x1: 44, x2: 314, y1: y(v), y2: y(v), "stroke-opacity": 0.55 }), s("text", { x: 40, y: y(v) + 3.5, "text-anchor": "end", text: back(v) })]),
      s("path", { d: `${line}L${x(points.at(-1)[0]).toFixed(1)} 146L${x(points[0][0]).toFixed(1)} 146Z`, fill: "var(--wash)" }),
      s("path", { d: line, fill: "none", stroke: "var(--cold)", "stroke-width": 1.9, "stroke-linejoin": "round" }),
      s("circle", { cx: x(points.at(-1)[0]), cy: y(points.at(-1)[1]), r: 3, fill: "var(--cold)" }),
      s("text", { x: 44, y: 163, text: "0" }), s("text", { x: 314, y: 163, "text-anchor": "end", text: `${short(xs[1])} tokens` }));
  }
  const short = (n) => (n >= 1e6 ? `${number(n / 1e6, 2)}M` : n >= 1e3 ? `${number(n / 1e3, 3)}k` : number(n));
  const duration = (t) => (t >= 5400 ? `${number(t / 3600, 2)} h` : t >= 90 ? `${Math.round(t / 60)} min` : `${Math.round(t)} s`);

  function draw() {
    const last = rows.at(-1), share = last ? last.step / last.steps : 0;
    figures.forEach(curve);
    done.style.setProperty("--w", `${100 * share}%`);
    done.setAttribute("aria-valuenow", Math.round(100 * share));
    const speed = last ? `${short(last.tokens)} of ${short(last.all)} tokens at ${last.site}, ${number(last.tokens_per_second)} tokens/s` : "Nothing was learnt yet.";
    told.textContent = last && now.status === "running" ? `${speed}, ${duration(last.seconds_left)} left` : speed;
    start.hidden = !now.can_start;
    stop.hidden = !now.can_start && !now.can_stop;
    start.disabled = now.status === "running" || now.status === "stopping" || now.status === "done";
    start.textContent = now.status === "stopped" || now.status === "failed" ? "Go on" : "Start";
    stop.disabled = now.status !== "running";
    root.dataset.status = now.status;
    root.say(now.words);
    root.querySelector(".head").classList.toggle("FAIL", now.status === "failed");
  }
  const pushed = (message) => {
    if (message.push === "row") rows = [...rows.filter((r) => r.step < message.row.step || r.site !== message.row.site), message.row].filter((r) => r.site === message.row.site);
    else if (message.push === "now") now = message.now;
    else return;
    draw();
  };
  model.on("msg:custom", pushed);
  root.append(h("div", { class: "head" }, h("h2", {}, state.title, h("small", { text: state.about })), start, stop), done, told, h("div", { class: "curves" }, figures.map((f) => f.node)), root.foot);
  const calm = themed(root);
  draw();
  ask("rows").then((answer) => { rows = answer.rows; now = answer.now; draw(); }, () => {});  // what came since this view was made
  return () => { calm(); ask.close(); model.off("msg:custom", pushed); };
}

const answers = { rows: (state) => ({ rows: state.rows, now: state.now }), start: () => { throw new Error("a file can't train"); }, stop: () => null };

export default { render };
