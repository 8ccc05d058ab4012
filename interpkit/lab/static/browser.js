// Features of a dictionary: searched, sorted, filtered, and each with its page.

const COLUMNS = {
  feature: { key: "feature", title: "#", width: "46px", right: true, about: "Number over all sites" },
  label: { key: "label", title: "label", width: "minmax(0, 3fr)", show: (r) => h("span", { text: r.label, title: r.label, class: r.named ? "" : "dim" }) },
  site: { key: "site", title: "site", width: "minmax(0, .9fr)", show: (r) => h("span", { class: "dim", text: brief(r.site), title: r.site }) },
  fires_on: { key: "fires_on", title: "fires on", width: "minmax(84px, .8fr)", about: "Share of sequences on which it fires" },
  share: { key: "share", title: "attribution", width: "minmax(84px, .8fr)", about: "Share of all attribution that it carries" },
  precision: { key: "precision", title: "precision", width: "74px", right: true, about: "Of the places where its label holds, where it fires", show: (r) => number(r.precision, 2) },
  recall: { key: "recall", title: "recall", width: "44px", right: true, about: "Of the places where it fires, where its label holds", show: (r) => number(r.recall, 2) },
};

// Sites of one model begin alike; what tells them apart stands at the end
let shared = "";
const brief = (site) => site.slice(shared.length);
function beginning(sites) {
  const parts = sites.map((x) => x.split(".")), n = Math.min(...parts.map((p) => p.length)) - 1;
  let i = 0;
  while (sites.length > 1 && i < n && parts.every((p) => p[i] === parts[0][i])) i++;
  return i > 1 ? parts[0].slice(0, i - 1).join(".") + "." : "";
}

function render({ model, el }) {
  const state = model.get("state"), root = frame(el, state.title, "browser"), ask = asking(model, root.busy);
  shared = beginning(state.sites);
  const asked = { query: "", sort: state.sort, down: state.down, site: "", kind: "all", least: 0 };
  const columns = state.columns.map((key) => ({ ...COLUMNS[key], key }));
  for (const c of columns) if (c.key === "fires_on" || c.key === "share") c.show = (r) => shareBar(r[c.key], state.most[c.key]);

  const search = h("input", { type: "search", placeholder: "Search labels, or a number", "aria-label": "Search features by words of their labels, or by number", oninput: () => later() });
  const pick = (name, options, label) => h("select", { "aria-label": label, onchange: (e) => { asked[name] = e.target.value; again(); } }, options.map(([value, text]) => h("option", { value, text })));
  const kinds = pick("kind", [["all", "all features"], ["named", "with a label"], ["unnamed", "without a label"], ["silent", "never fire"]], "Which features");
  const sites = state.sites.length > 1 ? pick("site", [["", "all sites"], ...state.sites.map((x) => [x, brief(x)])], "At which site") : null;
  const least = h("label", {}, "fire on at least", h("input", { type: "number", min: 0, max: 100, step: "any", value: "", placeholder: "0", style: { width: "62px" }, "aria-label": "Fire on at least so many percent of the sequences", oninput: (e) => { asked.least = Number(e.target.value) / 100 || 0; later(); } }), "%");

  const page = h("div", { class: "pane", tabindex: "0", "aria-label": "The page of one feature", "aria-live": "off" });
  const grid = gridOf({
    columns, label: "Features", nothing: "No feature fits. Fewer words, or all features?",
    fetch: (from, to) => ask("rows", { ...asked, from, to }),
    picked: (row) => open(row.feature),
    sorted: (key) => { asked.down = asked.sort === key ? !asked.down : !["label", "feature", "site"].includes(key); asked.sort = key; again(); },
  });
  async function again(choice = -1) {
    grid.order(asked.sort, asked.down);
    asked.query = search.value;
    try {
      const answer = await grid.again(choice);
      if (answer) root.say(`${number(answer.total)} of ${plural(state.total, "feature")}`);
    } catch (error) { root.say(error.message); }
  }
  const later = settled(() => again(), 35);

  const trail = [];
  let opened = null;
  async function open(feature, back) {
    if (opened !== null && !back && opened !== feature) trail.push(opened);
    opened = feature;
    try {
      const told = await ask("page", { feature });
      if (opened !== feature) return;
      const goBack = trail.length ? h("button", { text: `← ${trail.at(-1)}`, title: "Back", onclick: () => open(trail.pop(), true) }) : null;
      page.replaceChildren(
        h("div", { style: "display:flex;gap:10px;justify-content:space-between;align-items:flex-start" },
          h("h2", {}, h("span", { class: "dim", text: `${feature}  ` }), told.label), goBack),
        ...partsOf(told.parts, (f) => open(f)).flat(3).filter(Boolean));
      page.scrollTop = 0;
      root.dataset.open = feature;
      grid.mark((row) => row.feature === feature);
    } catch (error) { page.replaceChildren(h("p", { class: "warm", text: error.message })); }
  }

  search.addEventListener("keydown", (e) => { if (e.key === "ArrowDown" || e.key === "Enter") { e.preventDefault(); grid.focus(); grid.choose(0); } });
  root.addEventListener("keydown", (e) => { if (e.key === "/" && !/INPUT|SELECT/.test(e.target.tagName)) { e.preventDefault(); search.focus(); } });
  root.append(
    h("div", { class: "head" }, h("h2", {}, state.title, h("small", { text: state.about })), search, kinds, sites, least),
    h("div", { class: "panes" }, h("div", { class: "pane tight" }, grid), page), root.foot);
  root.hint("/ search · ↑ ↓ from feature to feature");
  const calm = themed(root);
  page.append(h("p", { class: "dim", text: "Choose a feature to see its page." }));
  again(state.first ?? 0);
  return () => { calm(); ask.close(); grid.close(); };
}

// The same answers where there is no Python: `state.table` holds columns, `state.pages` the pages

const answers = {
  rows(state, { query, sort, down, site, kind, least, from, to }) {
    const t = state.table, words = query.toLowerCase().split(/\s+/).filter(Boolean);
    const asNumber = /^#?\d+$/.test(query.trim()) ? Number(query.trim().replace("#", "")) : null;
    const fits = (i) => (!site || t.site[i] === site) && (t.fires_on[i] ?? 0) >= least
      && (kind === "all" || (kind === "silent" ? t.fires_on[i] === 0 : (kind === "named") === t.named[i]))
      && (asNumber !== null ? t.feature[i] === asNumber : words.every((w) => t.searched[i].includes(w)));
    const found = t.feature.map((_, i) => i).filter(fits), by = t[sort], way = down ? -1 : 1;
    const below = (a, b) => (by[a] < by[b] ? -1 : by[a] > by[b] ? 1 : 0);
    found.sort((a, b) => (by[a] === null) - (by[b] === null) || way * below(a, b) || a - b);
    const row = (i) => Object.fromEntries(Object.keys(t).map((key) => [key, t[key][i]]));
    return { total: found.length, rows: found.slice(from, to).map(row) };
  },
  page(state, { feature }) {
    const page = state.pages[feature];
    if (page) return page;
    const i = state.table.feature.indexOf(feature), told = "This file holds the pages of the first features only. In the notebook, each has its own.";
    return { label: state.table.label[i], parts: [{ kind: "text", text: told }] };
  },
};

export default { render };
