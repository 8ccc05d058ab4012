// The circuit of one decision: inputs below, the decision on top, what feeds what between them.

const LEFT = 104;  // room for the names of rows

function render({ model, el }) {
  const state = model.get("state"), root = frame(el, state.title, "graph"), ask = asking(model, root.busy);
  const nodes = state.nodes.map((n, i) => ({ ...n, i, near: [] })), byId = new Map(nodes.map((n) => [n.id, n]));
  const edges = state.edges.map(([a, b, weight, level]) => ({ a: byId.get(a), b: byId.get(b), weight, level }));
  for (const e of edges) { e.a.near.push(e); e.b.near.push(e); }
  const heaviest = Math.max(...edges.map((e) => Math.abs(e.weight)), 1e-12);
  const strongest = Math.max(...nodes.filter((n) => n.kind === "feature").map((n) => n.influence || 0), 1e-12);
  const pinned = new Set(state.pinned || []), factors = new Map();
  // as much as reads well at first: some forty features
  const crowd = (level) => nodes.filter((n) => n.kind === "feature" && n.level <= level + 1e-9).length;
  let keep = state.levels.filter((level) => crowd(level) <= 40).at(-1) ?? state.levels[0], onlyPinned = false, picked = null, focused = null, view = { x: 0, y: 0, k: 1 }, shown = [], places = new Map();

  // what is in sight
  const inSight = (n) => n.kind === "decision" || pinned.has(n.id) || (!onlyPinned && n.level <= keep + 1e-9);

  // layout: one row per site, one column per position, side by side where several share a place
  function layout() {
    const near = new Set(nodes.filter(inSight)), fed = new Set();
    for (const e of edges) if (e.level <= keep + 1e-9 && near.has(e.a) && near.has(e.b)) fed.add(e.a);
    // inputs are always kept by a graph; those that feed nothing in sight are left out here
    shown = [...near].filter((n) => n.kind === "feature" || n.kind === "decision" || pinned.has(n.id) || fed.has(n));
    const rows = [...new Set(shown.map((n) => n.row))].sort((a, b) => a - b);
    const columns = new Map(), box = canvas.getBoundingClientRect();
    for (const n of shown) {
      const key = `${n.row}/${n.column}`;
      columns.set(key, [...(columns.get(key) || []), n]);
    }
    const width = new Map();
    for (const [key, group] of columns) {
      const column = Number(key.split("/")[1]);
      if (!group.some((n) => n.kind === "decision")) width.set(column, Math.max(width.get(column) || 1, group.length));
    }
    const order = [...width.keys()].sort((a, b) => a - b), start = new Map();
    // as wide as the canvas where marks have room for it, and as high as it at the scale that follows
    const slots = [...width.values()].reduce((a, b) => a + b, 0), wideBox = (box.width || 700) - LEFT - 34;
    const between = order.length > 1 ? Math.min(14, wideBox / slots / 5) : 0;
    const gap = Math.max(13, Math.min((wideBox - between * order.length) / Math.max(slots, 1), 150)), wide = gap >= 66;
    const slanted = order.some((c) => (state.columns[c] || "").length * 6 > width.get(c) * gap + between), below = slanted ? 112 : 44;
    let x = LEFT;
    for (const c of order) { start.set(c, x); x += width.get(c) * gap + between; }
    const scale = Math.min((box.width || 700) / (x + 34), 1);
    const high = Math.max(64, ((box.height || 520) / scale - 64 - below) / Math.max(rows.length - 1, 1));
    const up = (n) => (rows.length - 1 - rows.indexOf(n.row)) * high + 34;
    places = new Map();
    for (const group of columns.values()) {
      group.sort((a, b) => b.influence - a.influence || a.i - b.i);
      const c = group[0].column, room = (width.get(c) || 1) * gap, middle = (start.get(c) ?? (LEFT + x) / 2) + room / 2;
      const held = Math.max(LEFT + 70, Math.min(middle, x - 62));  // the decision's name has to fit
      group.forEach((n, j) => places.set(n.id, n.kind === "decision" ? { x: held, y: up(n) } : { x: middle + (j - (group.length - 1) / 2) * gap, y: up(n) }));
    }
    return { rows, order, start, width, gap, x, high, wide, slanted, tall: (rows.length - 1) * high + 34 + below };
  }

  const canvas = h("div", { class: "canvas" });
  const scene = s("g"), svg = s("svg", { role: "group", "aria-label": `${state.title}. Arrow keys go from node to node, Enter opens one, P pins it.` }, scene);
  const tip = h("div", { class: "tip", hidden: true });
  const tools = h("div", { class: "tools" },
    h("button", { text: "+", title: "Nearer (+)", "aria-label": "Nearer", onclick: () => zoom(1.25) }),
    h("button", { text: "−", title: "Further (-)", "aria-label": "Further", onclick: () => zoom(0.8) }),
    h("button", { text: "⤢", title: "All of it (0)", "aria-label": "All of it", onclick: () => { fit(); } }));
  const mark = (kind) => s("svg", { width: 13, height: 13, viewBox: "-7 -7 14 14", "aria-hidden": "true" }, s("g", { class: `node ${kind}` }, shape({ kind, influence: 0 }, 5)));
  const line = (neg) => s("svg", { width: 22, height: 8, "aria-hidden": "true" }, s("path", { class: neg ? "edge neg" : "edge", d: "M1 4H21", "stroke-width": 2.2 }));
  const has = (kind) => nodes.some((n) => n.kind === kind);
  const legend = h("div", { class: "legend" },
    h("span", {}, mark("feature"), "feature"), has("input") ? h("span", {}, mark("input"), "input") : null, has("error") ? h("span", {}, mark("error"), "unexplained") : null,
    h("span", {}, line(false), "raises"), h("span", {}, line(true), "lowers"));
  canvas.append(svg, tip);

  function shape(n, r) {
    if (n.kind === "feature") return s("circle", { class: "shape", r });
    if (n.kind === "error") return s("path", { class: "shape", d: `M0 ${-r}L${r} 0L0 ${r}L${-r} 0Z` });
    if (n.kind === "input") return s("rect", { class: "shape", x: -r * 0.85, y: -r * 0.85, width: r * 1.7, height: r * 1.7, rx: 1.5 });
    return s("rect", { class: "shape", x: -66, y: -13, width: 132, height: 26, rx: 13 });
  }
  const short = (text, n) => (text.length > n ? text.slice(0, n - 1) + "…" : text);
  const called = (n) => n.label || n.id;
  const brief = (n) => called(n).replace(/^unnamed (feature \d+),.*$/, "$1");  // a number tells apart, "unnamed …" does not
  const told = (n) => `${n.kind === "error" ? "unexplained" : n.kind} ${called(n)}${n.token ? ` at “${n.token}”` : ""}, influence ${percent(n.influence)}${pinned.has(n.id) ? ", pinned" : ""}`;

  function draw(refit) {
    const map = layout(), { rows, order, start, width, gap, x, high, wide, slanted } = map;
    const ground = (i) => (rows.length - 1 - i) * high + 34;
    const bands = rows.map((row, i) => [
      i % 2 ? null : s("rect", { class: "band", x: -4000, width: 12000, y: ground(i) - high / 2, height: high }),
      s("text", { x: 8, y: ground(i) + 4, text: short(state.rows[row] ?? "", 15) }, s("title", { text: state.sites[row] ?? "" }))]);
    const tokens = order.filter((c) => state.columns[c]).map((c) => {
      const at = start.get(c) + width.get(c) * gap / 2, y = ground(0) + (slanted ? 18 : 26);
      return s("text", { x: at, y, "text-anchor": slanted ? "end" : "middle", transform: slanted ? `rotate(-48 ${at} ${y})` : null, text: short(state.columns[c], slanted ? 17 : 30) });
    });
    const sight = new Set(shown.map((n) => n.id));
    const lines = edges.filter((e) => sight.has(e.a.id) && sight.has(e.b.id) && (e.level <= keep + 1e-9 || (pinned.has(e.a.id) && (pinned.has(e.b.id) || e.b.kind === "decision")))).map((e) => {
      const a = places.get(e.a.id), b = places.get(e.b.id), size = Math.sqrt(Math.abs(e.weight) / heaviest), mid = (a.y - b.y) * 0.45;
      const path = s("path", { class: `edge${e.weight < 0 ? " neg" : ""}`, d: `M${a.x} ${a.y}C${a.x} ${a.y - mid} ${b.x} ${b.y + mid} ${b.x} ${b.y}`, "stroke-width": (0.5 + 4.2 * size).toFixed(2), "stroke-opacity": (0.13 + 0.5 * size).toFixed(2) });
      path.edge = e;
      return path;
    });
    const marks = shown.map((n) => {
      const p = places.get(n.id), r = Math.min(4 + 5.5 * Math.sqrt(Math.min((n.influence || 0) / strongest, 1)), Math.max(gap * 0.48, 4.5));
      const g = s("g", { class: `node ${n.kind}`, transform: `translate(${p.x} ${p.y})`, role: "button", tabindex: "-1", "aria-label": told(n) }, shape(n, r));
      g.style.setProperty("--full", `${Math.round(12 + 68 * Math.min((n.influence || 0) / strongest, 1))}%`);
      if (n.kind === "decision") g.append(s("text", { "text-anchor": "middle", y: 4, text: `decision ${signed(state.decision)}` }));
      else if (wide) g.append(s("text", { class: "name", "text-anchor": "middle", y: r + 14, text: n.kind === "input" && called(n) === state.columns[n.column] ? "" : short(brief(n), Math.floor(gap / 6.1)) }));
      else if (pinned.has(n.id)) g.append(s("text", { class: "name", "text-anchor": "middle", y: -r - 6, text: short(brief(n), 22) }));
      g.node = n;
      g.addEventListener("pointerenter", () => { over(n); });
      g.addEventListener("pointerleave", () => { over(null); });
      g.addEventListener("click", (event) => { event.stopPropagation(); open(n, g); });
      g.addEventListener("focus", () => { focused = n; over(n); });
      g.addEventListener("blur", () => over(null));
      return g;
    });
    scene.replaceChildren(...bands.flat().filter(Boolean), ...tokens, ...lines, ...marks);
    scene.map = map;
    const first = marks.find((g) => g.node === (focused || picked)) || marks.find((g) => g.node.kind === "decision") || marks[0];
    if (first) first.setAttribute("tabindex", "0");
    restyle();
    if (refit) fit();
    const features = shown.filter((n) => n.kind === "feature").length;
    root.say(`${plural(features, "feature")}, ${plural(shown.length - features, "other node")}, ${plural(lines.length, "edge")} in sight; of ${number(nodes.length)} nodes and ${number(edges.length)} edges`);
  }
  const each = (name) => scene.querySelectorAll(name);

  function restyle() {
    for (const g of each(".node")) {
      g.classList.toggle("pinned", pinned.has(g.node.id));
      g.classList.toggle("picked", g.node === picked);
      g.classList.toggle("moved", factors.has(g.node.id));
    }
    over(null);
  }
  function over(n) {
    const at = n || picked, near = new Set(at ? [at.id] : []);
    scene.classList.toggle("faded", Boolean(at));
    for (const path of each(".edge")) {
      const touches = at && (path.edge.a === at || path.edge.b === at);
      path.classList.toggle("near", Boolean(touches));
      if (touches) { near.add(path.edge.a.id); near.add(path.edge.b.id); }
    }
    for (const g of each(".node")) g.classList.toggle("near", near.has(g.node.id));
    tip.hidden = !n;
    if (!n) return;
    tip.replaceChildren(h("b", { text: called(n) }), h("div", { class: "dim", text: [n.kind === "error" ? "what the dictionary leaves out" : n.kind, n.site, n.token ? `“${n.token}”` : ""].filter(Boolean).join(" · ") }),
      h("div", {}, `influence ${percent(n.influence)}`, n.activation == null ? "" : `, activation ${number(n.activation)}`));
    const p = places.get(n.id);
    if (!p) { tip.hidden = true; return; }
    const x = p.x * view.k + view.x, y = p.y * view.k + view.y, box = canvas.getBoundingClientRect();
    tip.style.left = `${Math.max(6, Math.min(x + 14, box.width - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.max(6, y + 16 + tip.offsetHeight > box.height ? y - tip.offsetHeight - 14 : y + 16)}px`;
  }

  // pan and zoom
  function place() {  // texts keep their size where all else is far away
    scene.setAttribute("transform", `translate(${view.x.toFixed(1)} ${view.y.toFixed(1)}) scale(${view.k.toFixed(3)})`);
    scene.style.setProperty("--size", `${(10.5 / Math.min(Math.max(view.k, 0.45), 1)).toFixed(1)}px`);
  }
  function fit() {
    const { x, tall } = scene.map || layout(), box = canvas.getBoundingClientRect();
    if (!box.width) return;
    const k = Math.min((box.width - 4) / (x + 24), (box.height - 4) / tall, 1.25);
    view = { k, x: (box.width - (x + 24) * k) / 2, y: Math.max((box.height - tall * k) / 2, 2) };
    place();
  }
  function zoom(by, at) {
    const box = canvas.getBoundingClientRect(), [cx, cy] = at || [box.width / 2, box.height / 2], k = Math.min(Math.max(view.k * by, 0.08), 6);
    view = { k, x: cx - (cx - view.x) * k / view.k, y: cy - (cy - view.y) * k / view.k };
    place();
  }
  canvas.addEventListener("wheel", (e) => {
    if (!e.ctrlKey && !e.metaKey) return;  // else the notebook scrolls
    e.preventDefault();
    const box = canvas.getBoundingClientRect();
    zoom(Math.exp(-e.deltaY * 0.0022), [e.clientX - box.left, e.clientY - box.top]);
  }, { passive: false });
  let grabbed = null;
  canvas.addEventListener("pointerdown", (e) => { if (e.target.closest(".node")) return; grabbed = { x: e.clientX - view.x, y: e.clientY - view.y, far: false }; canvas.setPointerCapture(e.pointerId); canvas.classList.add("drag"); });
  canvas.addEventListener("pointermove", (e) => { if (!grabbed) return; grabbed.far ||= Math.hypot(e.clientX - view.x - grabbed.x, e.clientY - view.y - grabbed.y) > 3; view = { ...view, x: e.clientX - grabbed.x, y: e.clientY - grabbed.y }; place(); });
  canvas.addEventListener("pointerup", () => { const was = grabbed; grabbed = null; canvas.classList.remove("drag"); if (was && !was.far && picked) { picked = null; side(); restyle(); } });

  // keys
  svg.addEventListener("keydown", (e) => {
    const at = focused && places.get(focused.id);
    const go = (test, far) => {
      const best = shown.filter((n) => n !== focused && test(places.get(n.id))).sort((a, b) => far(places.get(a.id)) - far(places.get(b.id)))[0];
      if (best) [...each(".node")].find((g) => g.node === best).focus();
    };
    const keys = {
      ArrowRight: () => go((p) => p.y === at.y && p.x > at.x, (p) => p.x - at.x), ArrowLeft: () => go((p) => p.y === at.y && p.x < at.x, (p) => at.x - p.x),
      ArrowUp: () => go((p) => p.y < at.y, (p) => 4 * (at.y - p.y) + Math.abs(p.x - at.x)), ArrowDown: () => go((p) => p.y > at.y, (p) => 4 * (p.y - at.y) + Math.abs(p.x - at.x)),
      Enter: () => open(focused), " ": () => open(focused), p: () => pin(focused), "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), 0: () => fit(), Escape: () => { picked = null; side(); restyle(); },
    };
    if (!focused || !keys[e.key] || e.ctrlKey || e.metaKey) return;
    e.preventDefault();
    keys[e.key]();
  });

  // pins
  const chips = h("div", { class: "chips" });
  function pin(n) {
    if (!n || n.kind === "decision") return;
    pinned.has(n.id) ? pinned.delete(n.id) : pinned.add(n.id);
    if (!pinned.size) onlyPinned = false;
    draw(onlyPinned);
    side();
  }

  // interventions
  const base = state.decision, moved = () => base + [...factors].reduce((sum, [id, f]) => sum + (f - 1) * (byId.get(id).effect || 0), 0);
  let measured = null, asked = 0;
  const measure = settled(async () => {
    if (!state.live) return;
    const mine = ++asked;
    try {
      const answer = await ask("steer", { factors: [...factors] });
      if (mine !== asked) return;
      measured = answer.decision;
      meter();
    } catch (error) { if (mine === asked) meterBox.replaceChildren(h("p", { class: "warm", text: error.message })); }
  }, 60);
  const meterBox = h("div");
  function meter() {
    if (!factors.size) { meterBox.replaceChildren(); return; }
    const lines = [["as it is", base, "var(--grey)"], ["by the graph", moved(), "var(--cold)"]];
    if (state.live) lines.push(["measured", measured, "var(--warm)"]);
    const ends = [0, ...lines.map((l) => l[1]).filter((x) => x !== null)], low = Math.min(...ends), span = Math.max(...ends) - low || 1, at = (x) => 100 * (x - low) / span;
    meterBox.replaceChildren(h("div", { class: "meter" }, lines.map(([name, x, c]) => [
      h("span", { class: "dim", text: name }),
      h("div", { class: "track" }, x === null ? null : h("i", { style: { left: `${Math.min(at(0), at(x))}%`, width: `${Math.max(Math.abs(at(x) - at(0)), 0.6)}%`, "--c": c } }), h("em", { style: { left: `${at(0)}%` } })),
      h("span", { class: "right", text: x === null ? "…" : signed(x) })])));
    const words = `decision ${number(base)}, by the graph ${number(moved())}${measured === null ? "" : `, measured ${number(measured)}`}`;
    meterBox.dataset.moved = moved();
    if (measured !== null) meterBox.dataset.measured = measured;
    root.say(words);
  }
  function set(n, factor) {
    factor === 1 ? factors.delete(n.id) : factors.set(n.id, factor);
    measured = null;
    for (const g of each(".node")) g.classList.toggle("moved", factors.has(g.node.id));
    meter();
    if (factors.size) measure();
  }

  // the panel beside
  const panel = h("div", { class: "pane", tabindex: "0", "aria-label": "What was chosen" });
  const overview = () => {
    const top = nodes.filter((n) => n.kind === "feature").sort((a, b) => b.influence - a.influence).slice(0, 8);
    return [h("h2", { text: state.what }), h("dl", { class: "facts" }, state.facts.map(([k, v]) => [h("dt", { text: k }), h("dd", { text: v })])),
      top.length ? h("h3", { text: "Features with most influence" }) : null,
      ...listed(top.map((n) => [n, n.feature ?? "", percent(n.influence), "dim"]))];
  };
  const placed = new Set(nodes.map((n) => n.column)).size > 1;  // whether positions tell nodes apart
  const listed = (items) => [h("div", { class: "links" }, items.map(([n, first, last, look]) =>
    h("button", { onclick: () => open(n), title: told(n) }, h("span", { class: "dim", text: first }), h("span", { text: called(n) }), h("span", { class: look, text: last }))))];
  const flows = (title, list, other) => list.length ? [h("h3", { text: title }), ...listed(list.sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight)).slice(0, 7).map((e) => {
    const n = other(e);
    return [n, placed ? `at ${n.position}` : n.kind, signed(e.weight, 2), e.weight < 0 ? "warm" : "cold"];
  }))] : [];
  function doses() {
    return [...factors.keys()].filter((id) => !picked || id !== picked.id).map((id) => h("button", { text: `${short(called(byId.get(id)), 22)} × ${number(factors.get(id), 2)}  ✕`, title: "Leave it as it is", onclick: () => { set(byId.get(id), 1); side(); } }));
  }
  async function side() {
    const bar = [];
    if (pinned.size) bar.push(h("h3", { text: `Pinned (${pinned.size})` }), chips);
    chips.replaceChildren(
      h("button", { "aria-pressed": onlyPinned, text: "only these", onclick: () => { onlyPinned = !onlyPinned; draw(true); side(); } }),
      ...[...pinned].map((id) => h("button", { text: short(called(byId.get(id)), 26), title: told(byId.get(id)), onclick: () => open(byId.get(id)) })));
    const others = doses();
    const changed = others.length ? [h("h3", { text: "Changed as well" }), h("div", { class: "chips" }, others)] : [];
    if (!picked) {
      panel.replaceChildren(...overview().filter(Boolean), ...changed, ...(factors.size ? [meterBox] : []), ...bar);
      return;
    }
    const n = picked, dose = h("span", { class: "right", text: `× ${number(factors.get(n.id) ?? 1, 2)}` });
    const slider = h("input", { type: "range", min: -1, max: 3, step: 0.05, "aria-label": `Multiply the activation of ${called(n)}`, oninput: (e) => { set(n, Number(e.target.value)); dose.textContent = `× ${number(Number(e.target.value), 2)}`; } });
    slider.value = factors.get(n.id) ?? 1;
    const able = n.kind === "feature" && n.effect !== null;
    const box = able ? h("div", { class: "box" },
      h("div", { style: "display:flex;justify-content:space-between;align-items:center" }, h("b", { text: "What if it were stronger, or gone?" }),
        h("span", { class: "chips" }, h("button", { text: "off", title: "Multiply by 0", onclick: () => { set(n, 0); side(); } }), h("button", { text: "as is", onclick: () => { set(n, 1); side(); } }))),
      h("div", { class: "dose" }, slider, dose), h("div", { class: "scale", "aria-hidden": "true" }, [["× −1", 0], ["off", 25], ["as it is", 50], ["× 3", 100]].map(([text, x]) => h("span", { text, style: { left: `${x}%` } }))), meterBox,
      h("div", { class: "dim", style: "font-size:12px", text: state.live ? "“measured” runs the release with the feature changed." : "By the linear graph. In a notebook, graph.show(dictionary, release=release, row=row) measures it, too." })) : null;
    const head = [
      h("div", { style: "display:flex;gap:10px;justify-content:space-between;align-items:flex-start" }, h("h2", {}, n.kind === "feature" && n.feature !== null ? h("span", { class: "dim", text: `${n.feature}  ` }) : null, called(n)),
        n.kind === "decision" ? null : h("button", { "aria-pressed": pinned.has(n.id), text: pinned.has(n.id) ? "pinned" : "pin", title: "Keep it in sight (P)", onclick: () => pin(n) })),
      h("dl", { class: "facts" }, [["kind", n.kind === "error" ? "what the dictionary leaves out" : n.kind], n.site ? ["site", n.site] : null, n.token ? ["position", `${n.position}, “${n.token}”`] : null,
        n.kind === "decision" ? ["value", signed(state.decision)] : n.activation == null ? null : ["activation", number(n.activation)], n.kind === "decision" ? null : ["influence", percent(n.influence)], n.effect == null || n.kind === "decision" ? null : ["adds to the decision", signed(n.effect)]].filter(Boolean).map(([k, v]) => [h("dt", { text: k }), h("dd", { text: v })])),
      box, ...changed, ...flows("Fed by", n.near.filter((e) => e.b === n), (e) => e.a), ...flows("Feeds", n.near.filter((e) => e.a === n), (e) => e.b)].filter(Boolean);
    panel.replaceChildren(...head, ...bar);
    meter();
    if (!state.paged || n.kind !== "feature" || n.feature === null) return;
    try {
      const page = await ask("page", { feature: n.feature });
      if (picked === n) panel.append(...partsOf(page.parts, (f) => { const there = nodes.find((x) => x.feature === f); if (there) open(there); }).flat(3).filter(Boolean));
    } catch (error) { panel.append(h("p", { class: "dim", text: error.message })); }
  }
  function open(n, g) {
    picked = n;
    focused = n;
    root.dataset.open = n.id;
    if (!shown.includes(n)) { pinned.add(n.id); draw(false); }
    restyle();
    panel.scrollTop = 0;
    side();
    if (g) g.focus();
  }

  const amount = h("output", { text: percent(keep) });
  const slider = h("input", { type: "range", min: 0, max: state.levels.length - 1, step: 1, "aria-label": "Share of the influence that is kept in sight", style: { width: "170px" }, oninput: (e) => { keep = state.levels[Number(e.target.value)]; amount.textContent = percent(keep); redraw(); } });
  slider.value = state.levels.indexOf(keep) < 0 ? state.levels.length - 1 : state.levels.indexOf(keep);
  const redraw = settled(() => draw(true), 30);
  root.append(
    h("div", { class: "head" }, h("h2", {}, state.title, h("small", { text: state.about })), h("label", {}, "in sight", slider, amount, "of the influence")),
    h("div", { class: "panes", style: { "--tall": "var(--tall-graph, 560px)", "--first": "1.75fr" } }, h("div", { class: "pane tight" }, canvas, h("div", { class: "strip" }, legend, tools)), panel), root.foot);
  root.hint("click a feature to change it · drag to pan · Ctrl + wheel to zoom · arrows, Enter, P to pin");
  const calm = themed(root), seen = new ResizeObserver(settled(() => draw(true), 40));
  draw(true);
  side();
  seen.observe(canvas);
  return () => { calm(); ask.close(); seen.disconnect(); };
}

const answers = {
  page: (state, { feature }) => state.pages?.[feature] || { parts: [] },
  steer: () => { throw new Error("a file has no release: in the notebook it is measured"); },
};

export default { render };
