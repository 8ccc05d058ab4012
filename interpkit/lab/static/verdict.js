// A verdict, followed down: question, statement, feature or input, sequences, old beside new.

const MARK = { PASS: "●", FAIL: "■", INCONCLUSIVE: "◆" };

function render({ model, el }) {
  const state = model.get("state"), root = frame(el, state.title, "verdict"), ask = asking(model, root.busy);
  let chosen = null, feature = null, sequence = null;
  const asked = { name: "", segment: "", query: "", sort: "lost", down: true };

  // statements, by question
  const most = Math.max(...state.statements.map((x) => Math.max(x.limit, Math.min(x.upper ?? 0, 2.5), x.ratio ?? 0)), 0.1);
  const at = (x) => 2 + 96 * Math.sqrt(Math.min(Math.max(x ?? most, 0), most) / most);  // a root: small shares keep their width
  function interval(x) {
    const y = 9, known = x.ratio !== null && x.lower !== null;
    return s("svg", { viewBox: "0 0 100 18", preserveAspectRatio: "none", style: "width:100%;height:18px", "aria-hidden": "true" },
      s("line", { class: "axis", x1: 2, x2: 98, y1: y, y2: y }),
      known ? s("line", { x1: at(x.lower), x2: Math.max(at(x.upper), at(x.lower) + 0.8), y1: y, y2: y, stroke: "var(--c)", "stroke-width": 5 }) : null,
      known ? s("line", { x1: at(x.ratio), x2: at(x.ratio), y1: y - 5, y2: y + 5, stroke: "var(--ink)", "stroke-width": 2, "vector-effect": "non-scaling-stroke" }) : null,
      s("line", { x1: at(x.limit), x2: at(x.limit), y1: 1, y2: 17, stroke: "var(--dim)", "stroke-width": 1.4, "stroke-dasharray": "2 2", "vector-effect": "non-scaling-stroke" }));
  }
  const where = (segment) => (segment ? `, ${segment}` : "");
  const inWords = (x) => `${x.name}${where(x.segment)}: ${percent(x.ratio)} (${percent(x.lower)} to ${x.upper === null ? "no bound" : percent(x.upper)}), at most ${percent(x.limit)}: ${x.outcome}`;
  const buttons = [];
  function stated(x) {
    const button = h("button", { class: `stated ${x.outcome}`, "aria-pressed": "false", "aria-label": inWords(x), title: inWords(x), onclick: () => choose(x) },
      h("span", {}, x.name, x.segment ? h("span", { class: "dim", text: ` · ${x.segment}` }) : null), interval(x), h("span", { class: "right", text: `${MARK[x.outcome] || ""} ${percent(x.ratio)}` }));
    buttons.push([x, button]);
    return button;
  }
  // at first the whole set, so that both questions are in sight, unless only a segment failed
  const WHOLE = "the whole set", failed = state.statements.filter((x) => x.outcome !== "PASS");
  const whole = state.segments.length && (!failed.length || failed.some((x) => !x.segment));
  const only = h("select", { "aria-label": "Which statements", onchange: () => list() }, [...(whole ? [WHOLE] : []), "all statements", "not passed", ...state.segments.map((x) => `segment: ${x}`)].map((text) => h("option", { value: text, text })));
  const left = h("div", { class: "pane", "aria-label": "Statements" });
  function list() {
    buttons.length = 0;
    const fits = (x) => only.value === "all statements" || (only.value === WHOLE ? !x.segment : only.value === "not passed" ? x.outcome !== "PASS" : x.segment === only.value.slice(9));
    left.replaceChildren(...state.questions.flatMap((q) => {
      const mine = state.statements.filter((x) => x.question === q.key && fits(x));
      return mine.length ? [h("div", { class: `asked ${q.outcome}` }, h("span", {}, h("b", { text: q.name }), " ", h("span", { class: "dim", text: q.about })), h("span", { class: "outcome", text: q.outcome ? `${MARK[q.outcome] || ""} ${q.outcome}` : "" })), ...mine.map(stated)] : [];
    }));
    if (!buttons.length) left.append(h("div", { class: "nothing", text: "No statement fits." }));
    press();
  }
  const press = () => buttons.forEach(([x, b]) => b.setAttribute("aria-pressed", x === chosen));
  left.addEventListener("keydown", (e) => {
    const i = buttons.findIndex(([, b]) => b === root.ownerDocument.activeElement), step = { ArrowDown: 1, ArrowUp: -1 }[e.key];
    if (i < 0 || !step) return;
    e.preventDefault();
    buttons[Math.min(Math.max(i + step, 0), buttons.length - 1)][1].focus();
  });

  // what holds the change
  const middle = h("div", { class: "pane", "aria-label": "What holds the change" });
  function choose(x) {
    chosen = x;
    feature = x.watched ? x.name.split(": ").slice(1).join(": ") : null;
    Object.assign(asked, { name: x.name, segment: x.segment, query: "" });
    search.value = "";
    sequence = null;
    delete root.dataset.sequence;
    root.dataset.open = `${x.name}/${x.segment}`;
    press();
    reasons();
    again(0);
    root.say(inWords(x));
  }
  function reasons() {
    const x = chosen, family = x.name.split(": ")[0], parts = [];
    parts.push(h("h2", {}, x.name, x.segment ? h("span", { class: "dim", text: ` · ${x.segment}` }) : null));
    parts.push(h("p", { class: x.outcome }, h("span", { class: "outcome", text: `${MARK[x.outcome] || ""} ${x.outcome}. ` }), x.words), x.reason ? h("p", { class: "dim", text: x.reason }) : null);
    const keys = family === "inputs" ? ["inputs"] : family === "effect" || family === "activation" ? ["effect"] : ["effect", "inputs"];
    for (const key of keys) {
      const rows = state.reasons[`${key}/${x.segment}`] || state.reasons[`${key}/`] || [];
      if (!rows.length) continue;
      const part = PARTS.pairs({ old: `in ${state.old}`, new: `in ${state.new}`, rows: rows.map((r) => ({ name: r.name, was: r.was, now: r.now, text: `${percent(r.was)} → ${percent(r.now)}` })) });
      parts.push(h("h3", { text: `${key === "effect" ? "Features" : "Inputs"} that hold most of the change${state.reasons[`${key}/${x.segment}`] && x.segment ? `, ${x.segment}` : ""}` }), ...part);
      const bars = part[1];
      [...bars.children].forEach((node, i) => { if (i % 3 === 0) node.replaceChildren(h("button", { class: "plain", text: rows[(i / 3) | 0].name, title: `${rows[(i / 3) | 0].name}: ${percent(rows[(i / 3) | 0].lost)} of the change`, onclick: () => follow(key, rows[(i / 3) | 0].name) })); });
    }
    if (parts.length <= 3) parts.push(h("p", { class: "dim", text: "What holds this change was not kept, feature by feature." }));
    if (state.labels[feature]) parts.push(h("h3", { text: feature }), PARTS.facts({ rows: state.labels[feature] }));
    middle.replaceChildren(...parts.filter(Boolean));
    middle.scrollTop = 0;
  }
  function follow(family, name) {
    feature = name;
    reasons();
    const full = `${family}: ${name}`;
    if (state.kept.includes(full)) { Object.assign(asked, { name: full, segment: "", query: "" }); again(0); root.say(`Sequences by ${full}`); } else root.say(`Of “${name}” alone no sequences were kept: name it in watched=[…] and they are.`);
  }

  // sequences
  const search = h("input", { type: "search", placeholder: "Search sequences", "aria-label": "Search sequences by id", oninput: () => later() });
  const head = h("h3", { style: "margin:0", text: "Sequences" });
  const columns = [
    { key: "sequence", title: "sequence", width: "minmax(0, 1.3fr)", show: (r) => h("span", { class: "mono", text: r.sequence, title: r.sequence }) },
    { key: "lost", title: "of the change", width: "minmax(66px, 1fr)", about: "Its part of all that is not shared", show: (r) => shareBar(r.part, state.mostPart, percent(r.part)) },
    { key: "was", title: "old", width: "54px", right: true, show: (r) => signed(r.was, 2) }, { key: "now", title: "new", width: "54px", right: true, show: (r) => signed(r.now, 2) }];
  const grid = gridOf({
    columns, label: "Sequences", nothing: state.sequences ? "No sequence fits." : "A verdict alone holds no sequences: explore a result, or give the table.",
    fetch: async (from, to) => { const answer = await ask("sequences", { ...asked, from, to }); state.mostPart = answer.most; return answer; },
    picked: (row) => beside(row.sequence),
    sorted: (key) => { asked.down = asked.sort === key ? !asked.down : key !== "sequence"; asked.sort = key; again(); },
  });
  async function again(choice = -1) {
    grid.order(asked.sort, asked.down);
    asked.query = search.value;
    head.textContent = asked.name ? `Sequences, by ${asked.name}${where(asked.segment)}` : "Sequences";
    try { const answer = await grid.again(choice); if (answer && !answer.total) below.replaceChildren(); } catch (error) { root.say(error.message); }
  }
  const later = settled(() => again(), 35);
  const below = h("div", { class: "pane", tabindex: "0", "aria-label": "Old beside new for one sequence", style: "flex:0 0 46%;border-top:1px solid var(--line)" });
  async function beside(id) {
    sequence = id;
    try {
      const told = await ask("sequence", { sequence: id });
      if (sequence !== id) return;
      below.replaceChildren(h("h2", { class: "mono", text: id }), ...partsOf(told.parts).flat(3).filter(Boolean));
      root.dataset.sequence = id;
    } catch (error) { below.replaceChildren(h("p", { class: "warm", text: error.message })); }
  }

  root.append(
    h("div", { class: `head ${state.outcome}` }, h("span", { class: "badge", text: `${MARK[state.outcome] || ""} ${state.outcome}` }), h("h2", {}, state.title, h("small", { text: state.about })), only),
    h("div", { class: "said", text: state.lead }),
    h("div", { class: "three" }, left, middle, h("div", { class: "pane tight" }, h("div", { style: "padding:8px 12px 6px;display:flex;gap:8px;align-items:center" }, head, search), grid, below)), root.foot);
  root.hint("share and interval on a root scale, limit dashed");
  const calm = themed(root);
  list();
  if (state.statements.length) choose(["same", "valid"].map((q) => state.statements.find((x) => x.question === q && x.outcome === "FAIL")).find(Boolean) || state.statements[0]);
  return () => { calm(); ask.close(); grid.close(); };
}

const answers = {
  sequences(state, { name, segment, query, sort, down, from, to }) {
    const t = state.table[`${name}/${segment}`];
    if (!t) return { total: 0, rows: [], most: 1 };
    const found = t.sequence.map((_, i) => i).filter((i) => t.sequence[i].toLowerCase().includes(query.trim().toLowerCase())), by = t[sort === "lost" ? "part" : sort];
    found.sort((a, b) => (down ? -1 : 1) * (by[a] < by[b] ? -1 : by[a] > by[b] ? 1 : 0) || a - b);
    return { total: found.length, most: Math.max(...t.part, 1e-12), rows: found.slice(from, to).map((i) => ({ sequence: t.sequence[i], part: t.part[i], was: t.was[i], now: t.now[i] })) };
  },
  sequence: (state, { sequence }) => state.beside[sequence] || { parts: [{ kind: "text", text: "This file holds the first sequences of each statement only." }] },
};

export default { render };
