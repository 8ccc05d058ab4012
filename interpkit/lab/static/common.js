// What all boards share: elements, themes, questions to Python, and a table of any length.
// No text of a model or of data ever becomes markup: it is set as text.

const SVG = "http://www.w3.org/2000/svg";

function put(node, attrs, kids) {
  for (const [key, value] of Object.entries(attrs || {})) {
    if (value === undefined || value === null || (value === false && !key.startsWith("aria-"))) continue;
    if (key === "text") node.textContent = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style" && typeof value === "object") {
      for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
    } else if (["value", "checked", "disabled", "hidden"].includes(key)) node[key] = value;
    else node.setAttribute(key, value === true && !key.startsWith("aria-") ? "" : value);
  }
  // Lumino, which JupyterLab is built on, leaves the keys of an element with this mark alone, if it
  // is the focused one itself: else 'x' cuts the cell in which a board lies
  if (node.matches("button, select, input, [tabindex]")) node.setAttribute("data-lm-suppress-shortcuts", "true");
  for (const kid of kids.flat(3)) if (kid !== null && kid !== undefined && kid !== "") node.append(kid);
  return node;
}
const h = (tag, attrs, ...kids) => put(document.createElement(tag), attrs, kids);
const s = (tag, attrs, ...kids) => put(document.createElementNS(SVG, tag), attrs, kids);

// Numbers as a person writes them

function number(x, digits = 3) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (!Number.isFinite(x)) return "no bound";
  if (Number.isInteger(x) && Math.abs(x) < 1e15) return x.toLocaleString("en");
  const size = Math.abs(x);
  if (size >= 1e5) return Math.round(x).toLocaleString("en");
  if (size < 1e-4) return x.toExponential(1);
  return String(Number(x.toPrecision(digits)));
}
const signed = (x, digits = 3) => x === null || x === undefined ? "–" : (x > 0 ? "+" : x < 0 ? "−" : "") + number(Math.abs(x), digits);
function percent(x) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (x >= 2) return number(x, 2) + "x";
  const p = 100 * x;
  return (p === 0 ? "0" : p < 0.1 ? "<0.1" : p < 9.95 ? p.toFixed(1) : p.toFixed(0)) + " %";
}
const plural = (n, one, many) => `${number(n)} ${n === 1 ? one : many || one + "s"}`;

// Light or dark, by the paper that the board lies on: right in JupyterLab, VS Code and a file alike

function dark(node) {
  for (let at = node.parentElement; at; at = at.parentElement) {
    const [r, g, b, a = 1] = (getComputedStyle(at).backgroundColor.match(/[\d.]+/g) || []).map(Number);
    if (a > 0.5) return 0.299 * r + 0.587 * g + 0.114 * b < 128;
  }
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

function themed(root) {
  const look = () => { if (root.isConnected) root.dataset.theme = dark(root) ? "dark" : "light"; };
  const later = () => { requestAnimationFrame(look); setTimeout(look, 250); };
  const seen = new MutationObserver(later);
  const watched = { attributes: true, attributeFilter: ["class", "style", "data-jp-theme-light", "data-jp-theme-name", "theme"] };
  for (const node of [document.documentElement, document.body]) seen.observe(node, watched);
  const media = matchMedia("(prefers-color-scheme: dark)");
  media.addEventListener("change", later);
  look();
  later();
  return () => { seen.disconnect(); media.removeEventListener("change", later); };
}

// The frame of a board

function frame(el, label, kind) {
  const root = h("section", { class: `ipk ipk-${kind}`, "aria-label": label });
  const status = h("span", { class: "status", role: "status", "aria-live": "polite" });
  const busy = h("span", { class: "busy", text: "waiting for the kernel", hidden: true });
  const hint = h("span", { class: "hint" });
  root.foot = h("div", { class: "foot" }, status, busy, hint);
  root.say = (text) => { if (status.textContent !== text) status.textContent = text; };
  root.busy = busy;
  root.hint = (text) => { hint.textContent = text; };
  el.append(root);
  return root;
}

// A question to Python, or to the page itself where it is a file

function asking(model, busy) {
  const waiting = new Map(), tag = Math.random().toString(36).slice(2);
  let n = 0, timer = null;
  const settle = () => { if (!waiting.size) { clearTimeout(timer); timer = null; busy.hidden = true; } };
  const heard = (message) => {
    const [yes, no] = waiting.get(message.id) || [];
    if (!yes) return;
    waiting.delete(message.id);
    settle();
    message.error ? no(new Error(message.error)) : yes(message.answer);
  };
  model.on("msg:custom", heard);
  const ask = (what, args = {}) => new Promise((yes, no) => {
    const id = `${tag}.${++n}`;
    waiting.set(id, [yes, no]);
    timer = timer || setTimeout(() => { busy.hidden = false; }, 400);
    model.send({ id, what, args });
  });
  ask.close = () => { model.off("msg:custom", heard); clearTimeout(timer); };
  return ask;
}

// Only the last of many calls, once they pause

function settled(call, pause) {
  let timer;
  return (...args) => { clearTimeout(timer); timer = setTimeout(() => call(...args), pause); };
}

// A table of any length: rows are asked for by the hundred, and only those in sight are drawn

const TALL = 29, PAGE = 100;

function gridOf({ columns, label, fetch, picked, sorted, nothing = "Nothing fits." }) {
  const widths = columns.map((c) => c.width || "minmax(0, 1fr)").join(" ");
  const grid = h("div", { class: "grid", role: "grid", tabindex: "0", "aria-label": label, style: { "--columns": widths } });
  const heads = columns.map((c, i) => {
    const sortable = sorted && c.sort !== false;
    return h("div", { role: "columnheader", "aria-colindex": i + 1, class: c.right ? "right" : "" },
      sortable ? h("button", { tabindex: "-1", title: c.about || `Sort by ${c.title}`, text: c.title, onclick: () => sorted(c.key) })
               : h("span", { title: c.about || c.title, text: c.title }));
  });
  const body = h("div", { class: "gridbody", role: "rowgroup" });
  const empty = h("div", { class: "nothing", text: nothing, hidden: true });
  grid.append(h("div", { role: "rowgroup", class: "gridhead" }, heads), body, empty);
  grid.firstChild.setAttribute("role", "row");
  const id = "ipk" + Math.random().toString(36).slice(2);
  let pages = new Map(), total = 0, chosen = -1, version = 0, drawn = new Map();

  const rowAt = (i) => { const page = pages.get(Math.floor(i / PAGE)); return Array.isArray(page) ? page[i % PAGE] : null; };
  function need(from, to) {
    for (let p = Math.floor(from / PAGE); p <= Math.floor(Math.max(to - 1, 0) / PAGE); p++) {
      if (pages.has(p)) continue;
      pages.set(p, "asked");
      const asked = version;
      fetch(p * PAGE, (p + 1) * PAGE).then((answer) => {
        if (asked !== version) return;
        pages.set(p, answer.rows);
        resize(answer.total);
        draw();
      }, () => { if (asked === version) pages.delete(p); });
    }
  }
  const needSoon = settled(need, 45);
  function resize(n) {
    total = n;
    body.style.height = `${n * TALL}px`;
    grid.setAttribute("aria-rowcount", n + 1);
    empty.hidden = n > 0;
  }
  function fill(node, row, i) {
    node.id = `${id}-${i}`;
    node.setAttribute("aria-rowindex", i + 2);
    node.setAttribute("aria-selected", i === chosen);
    node.style.top = `${i * TALL}px`;
    if (node.row === row && node.at === i) return;
    node.row = row;
    node.at = i;
    node.replaceChildren(...columns.map((c, k) =>
      h("div", { role: "gridcell", "aria-colindex": k + 1, class: c.right ? "right" : "" },
        row === null ? (k === 0 ? "…" : "") : c.show ? c.show(row) : String(row[c.key] ?? "–"))));
  }
  function draw() {
    const first = Math.max(Math.floor(grid.scrollTop / TALL) - 4, 0);
    const last = Math.min(first + Math.ceil((grid.clientHeight || 400) / TALL) + 9, total);
    for (const [i, node] of drawn) if (i < first || i >= last) { node.remove(); drawn.delete(i); }
    for (let i = first; i < last; i++) {
      let node = drawn.get(i);
      if (!node) {
        node = h("div", { class: "gridrow", role: "row", onclick: () => choose(i) });
        drawn.set(i, node);
        body.append(node);
      }
      fill(node, rowAt(i), i);
    }
    return [first, last];
  }
  function choose(i, silent) {
    if (i < 0 || i >= total) return;
    chosen = i;
    grid.setAttribute("aria-activedescendant", `${id}-${i}`);
    const top = i * TALL, sight = grid.clientHeight - 32;
    if (top < grid.scrollTop) grid.scrollTop = top;
    else if (top + TALL > grid.scrollTop + sight) grid.scrollTop = top + TALL - sight;
    draw();
    const row = rowAt(i);
    if (row && !silent) picked(row, i);
    else if (!row) need(i, i + 1);
  }
  grid.addEventListener("scroll", () => { const sight = draw(); if (sight.some((i) => rowAt(Math.min(i, total - 1)) === null)) needSoon(...sight); });
  grid.addEventListener("keydown", (event) => {
    const page = Math.max(Math.floor(grid.clientHeight / TALL) - 2, 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -total, End: total };
    if (event.key === "Enter" && chosen >= 0) { choose(chosen); return; }
    if (!(event.key in steps)) return;
    event.preventDefault();
    choose(Math.min(Math.max(chosen + steps[event.key], 0), total - 1));
  });
  const seen = new ResizeObserver(() => draw());
  seen.observe(grid);
  grid.close = () => seen.disconnect();
  grid.again = async (choice = -1) => {  // ask anew from the top
    const mine = ++version;
    pages = new Map();
    const answer = await fetch(0, PAGE);
    if (mine !== version) return null;
    pages.set(0, answer.rows);
    chosen = -1;
    grid.removeAttribute("aria-activedescendant");
    grid.scrollTop = 0;
    resize(answer.total);
    for (const [, node] of drawn) node.remove();
    drawn = new Map();
    draw();
    if (choice >= 0) choose(choice);
    return answer;
  };
  grid.mark = (test) => {  // select the first row in sight that fits, without a question
    chosen = -1;
    for (const [i, node] of drawn) if (node.row && test(node.row)) chosen = i;
    draw();
  };
  grid.order = (key, down) => heads.forEach((head, i) =>
    columns[i].key === key ? head.setAttribute("aria-sort", down ? "descending" : "ascending") : head.removeAttribute("aria-sort"));
  grid.choose = choose;
  return grid;
}

const shareBar = (x, most, text) =>
  h("div", { class: "bar" }, h("i", { style: { "--w": `${Math.min(100 * (x || 0) / (most || 1), 100)}%` } }), h("b", { text: text ?? percent(x) }));

// Parts of a page: each is a kind and its data, so that Python says what is shown and this says how

const PARTS = {
  facts: (part) => h("dl", { class: "facts" }, part.rows.map(([name, value]) => [h("dt", { text: name }), h("dd", { text: typeof value === "number" ? number(value) : value })])),
  text: (part) => h("p", { text: part.text }),
  bars: (part) => {
    const most = part.most || Math.max(...part.rows.map((r) => Math.abs(r.value)), 1e-12);
    return h("div", { class: "bars" }, part.rows.map((r) => [
      h("span", { text: r.name, title: r.name }),
      h("i", { style: { "--w": `${100 * Math.min(Math.abs(r.value) / most, 1)}%`, "--c": r.value < 0 ? "var(--warm)" : "var(--cold)" } }),
      h("span", { class: "right", text: r.text ?? percent(r.value) })]));
  },
  pairs: (part) => {
    const most = Math.max(...part.rows.flatMap((r) => [Math.abs(r.was), Math.abs(r.now)]), 1e-12);
    const bar = (x, c) => h("i", { style: { "--w": `${100 * Math.abs(x) / most}%`, "--c": c } });
    return [
      h("div", { class: "key" }, h("span", {}, h("i", { style: { "--c": "var(--grey)" } }), part.old || "old"), h("span", {}, h("i", { style: { "--c": "var(--cold)" } }), part.new || "new")),
      h("div", { class: part.rows.some((r) => r.name.length > 14) ? "bars named" : "bars" }, part.rows.map((r) => [
        h("span", { text: r.name, title: r.name }),
        h("div", { class: "both" }, bar(r.was, "var(--grey)"), bar(r.now, r.was * r.now < 0 ? "var(--warm)" : "var(--cold)")),
        h("span", { class: "right", text: r.text ?? `${signed(r.was, 2)} → ${signed(r.now, 2)}` })]))];
  },
  histogram: (part) => histogram(part),
  sequences: (part) => h("div", {}, part.rows.map((row) => tokensOf(row))),
  links: (part, go) => h("div", { class: "links" }, part.rows.map((r) =>
    h("button", { onclick: () => go(r.feature), title: `${r.feature}: ${r.label}` },
      h("span", { class: "dim", text: r.feature }), h("span", { text: r.label }), h("span", { class: "dim", text: r.text ?? number(r.value, 2) })))),
  table: (part) => h("div", { style: { "overflow-x": "auto" } }, h("table", {},
    h("thead", {}, h("tr", {}, part.columns.map((c) => h("th", { text: c, style: { "text-align": "left", "padding-right": "12px" } })))),
    h("tbody", {}, part.rows.map((r) => h("tr", {}, r.map((x) => h("td", { text: typeof x === "number" ? number(x) : x ?? "–", style: { "padding-right": "12px" } }))))))),
};

function tokensOf(row) {
  const most = Math.max(...row.weights.map(Math.abs), 1e-12);
  return h("div", { class: "tokens" },
    h("div", { class: "who" }, h("span", { text: row.id }), h("span", { text: row.text || "" })),
    row.tokens.map((token, i) => {
      const w = row.weights[i] / most;
      const colour = w ? `rgba(var(--${w > 0 ? "hot" : "cool"}), ${(0.12 + 0.6 * Math.abs(w)).toFixed(2)})` : "none";
      const apart = i + 1 < row.tokens.length && !/^\s|\s$/.test(token) ? " " : null;
      return [h("span", { class: "t mono", text: token, title: w ? number(row.weights[i]) : null, style: { background: colour } }), apart];
    }));
}

function histogram(part) {
  const wide = 300, tall = 78, low = 18, n = part.counts.length, most = Math.max(...part.counts, 1);
  const step = wide / n, edges = part.edges, zero = edges ? edges.findIndex((e) => e >= 0) : -1;
  const bars = part.counts.map((count, i) => {
    const high = count ? Math.max((tall - low - 4) * count / most, 1.5) : 0;
    const below = edges && edges[i + 1] <= 1e-12 && edges[0] < 0;
    const name = part.names ? part.names[i] : `${number(edges[i], 2)} to ${number(edges[i + 1], 2)}`;
    return s("rect", { x: i * step + 0.5, y: tall - low - high, width: Math.max(step - 1, 0.8), height: high, rx: 1, fill: below ? "var(--warm)" : "var(--cold)" },
      s("title", { text: `${name}: ${number(count)}` }));
  });
  const ends = part.ends || (edges ? [number(edges[0], 2), number(edges[n], 2)] : [part.names[0], part.names[n - 1]]);
  const at0 = zero > 0 && zero < n && edges[0] < 0 ? s("text", { x: zero * step, y: tall - 5, "text-anchor": "middle", text: "0" }) : null;
  return s("svg", { viewBox: `0 0 ${wide} ${tall}`, role: "img", "aria-label": `${part.title}: ${n} bars from ${ends[0]} to ${ends[1]}`, style: "width:100%;max-width:420px" },
    bars, s("line", { class: "axis", x1: 0, x2: wide, y1: tall - low, y2: tall - low }),
    s("text", { x: 0, y: tall - 5, text: ends[0] }), at0, s("text", { x: wide, y: tall - 5, "text-anchor": "end", text: ends[1] }));
}

function partsOf(parts, go) {
  const out = [];
  let beside = null;  // histograms that follow each other stand side by side
  for (const part of parts) {
    const drawn = [part.title ? h("h3", { text: part.title }) : null, part.about ? h("p", { class: "dim note", text: part.about }) : null, PARTS[part.kind] ? PARTS[part.kind](part, go) : null];
    if (part.kind !== "histogram") { beside = null; out.push(drawn); continue; }
    if (!beside) { beside = h("div", { class: "beside-each" }); out.push(beside); }
    beside.append(h("div", {}, drawn));
  }
  return out;
}

// A page that is a file answers its own questions; `answers` is what a board's module offers

function fileModel(state, answers) {
  const heard = [];
  return {
    get: () => state,
    on: (name, call) => { if (name === "msg:custom") heard.push(call); },
    off: (name, call) => heard.splice(heard.indexOf(call) >>> 0, 1),
    send: ({ id, what, args }) => Promise.resolve().then(() => {
      let reply;
      try { reply = { id, answer: answers[what](state, args) }; } catch (error) { reply = { id, error: error.message }; }
      heard.slice().forEach((call) => call(reply));
    }),
  };
}
