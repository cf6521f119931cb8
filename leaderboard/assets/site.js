/* What a reader does with a page: theme, tables (sort, filter, search, columns, permalink, downloads), copying.
   Every page can be read without it. The four formats are those of leaderboard/exports.py, byte for byte. */
(function () {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");

  /* ---- theme: set before the page is drawn ---- */
  const THEMES = ["auto", "light", "dark"];
  let theme = "auto";
  try { theme = localStorage.getItem("kdbench-theme") || "auto"; } catch (error) { /* storage is switched off */ }
  if (theme !== "auto") root.dataset.theme = theme;

  function themeButton() {
    const button = document.getElementById("theme");
    const show = () => { button.textContent = "Theme: " + theme; };
    button.hidden = false;
    show();
    button.addEventListener("click", () => {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
      try { localStorage.setItem("kdbench-theme", theme); } catch (error) { /* kept for this page only */ }
      show();
    });
  }

  /* ---- formats ---- */
  const NONE = "–";
  const csvValue = (value) => {
    let text = value.text;
    if (!value.number && /^[=+\-@\t\r]/.test(text)) text = "'" + text;
    return /[",\r\n]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
  };
  const JSON_NAMES = { '"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f" };
  const jsonString = (text) => '"' + text.replace(/["\\\u0000-\u001f]/g, (c) =>
    JSON_NAMES[c] || "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0")) + '"';
  const squeeze = (text) => text.replace(/\s+/g, " ");
  const markdown = (text) => squeeze(text).replace(/([\\`*_[\]<>|#&~])/g, "\\$1");
  const LATEX = {
    "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}",
    ">": "\\textgreater{}", "|": "\\textbar{}", '"': "\\textquotedbl{}", "±": "$\\pm$", "−": "$-$", "×": "$\\times$",
    "Δ": "$\\Delta$", "·": "$\\cdot$", "↑": "$\\uparrow$", "↓": "$\\downarrow$", "≥": "$\\geq$", "–": "--",
    "…": "\\ldots{}", "µ": "\\textmu{}",
  };
  const latex = (text) => squeeze(text).replace(/[\\~^<>|"±−×Δ·↑↓≥–…µ&%$#_{}]/g, (c) => LATEX[c] || "\\" + c);

  const FORMATS = {
    csv: (view) => [view.keys.map((k) => csvValue({ text: k })), ...view.rows.map((r) => r.values.map(csvValue))]
      .map((line) => line.join(",") + "\n").join(""),
    json: (view) => view.rows.length ? "[\n" + view.rows.map((r) => " {" + view.keys.map((k, i) => jsonString(k) + ": " +
      (r.values[i].number ? r.values[i].text : r.values[i].text ? jsonString(r.values[i].text) : "null")).join(", ") +
      "}").join(",\n") + "\n]\n" : "[]\n",
    md: (view) => [view.heads.map(markdown), view.kinds.map((k) => k === "text" ? "---" : "---:"),
      ...view.rows.map((r) => r.texts.map(markdown))].map((line) => "| " + line.join(" | ") + " |\n").join(""),
    tex: (view) => "% " + latex(view.caption) + "\n\\begin{tabular}{" +
      view.kinds.map((k) => k === "text" ? "l" : "r").join("") + "}\n\\toprule\n" +
      view.heads.map(latex).join(" & ") + " \\\\\n\\midrule\n" +
      view.rows.map((r) => r.texts.map(latex).join(" & ") + " \\\\\n").join("") + "\\bottomrule\n\\end{tabular}\n",
  };
  const TYPES = { csv: "text/csv", json: "application/json", md: "text/markdown", tex: "application/x-tex" };

  function save(name, format, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: TYPES[format] + ";charset=utf-8" }));
    link.download = name + "." + format;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  /* ---- tables ---- */
  /* absent values come last in both directions */
  const compare = (sign) => (a, b) => {
    const x = parseFloat(a), y = parseFloat(b);
    if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
    return sign * (x - y);
  };
  const bare = (html) => html.replace(/<[^>]*>/g, "").trim();
  const words = (sign) => (a, b) => (a === NONE) - (b === NONE) ||
    sign * a.localeCompare(b, "en", { numeric: true, sensitivity: "base" });

  const ended = (column) => column.kind === "estimate" || column.kind === "range"; /* two more values, low and high */
  const tables = [];

  /* A cell as the build packed it (leaderboard/exports.py): its text, or a list of which what is absent was left off. */
  const cellOf = (packed) => {
    const [text, order, low, high, note, css, href] = Array.isArray(packed) ? packed : [packed];
    return { text, order: order || "", low: low || "", high: high || "", note, css: css || "", href };
  };
  const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;" };
  const escaped = (text) => text.replace(/[&<>"']/g, (c) => ESCAPES[c]);

  /* How DataTables makes the cells of a column from packed ones, as to_html does. */
  const made = (column, i, base) => ({
    data: i, cellType: i ? "td" : "th", searchable: column.kind === "text",
    render: (packed, purpose) => {
      const cell = cellOf(packed);
      if (purpose !== "display") return purpose === "sort" && column.kind !== "text" ? cell.order : cell.text;
      const text = column.code ? "<code>" + escaped(cell.text) + "</code>" : escaped(cell.text);
      return cell.href ? '<a href="' + escaped(base + cell.href) + '">' + text + "</a>" : text;
    },
    createdCell: (td, packed) => {
      const cell = cellOf(packed);
      td.className = [column.kind === "text" ? "" : "n", column.wrap ? "wrap" : "", cell.css].filter(Boolean).join(" ");
      if (!i) td.scope = "row";
      if (column.kind !== "text") td.dataset.order = cell.order;
      if (cell.low) Object.assign(td.dataset, { low: cell.low, high: cell.high });
      if (cell.note) td.title = cell.note;
    },
  });

  function enhance(section, packed) {
    const element = section.querySelector("table");
    const name = element.id;
    const heads = [...element.tHead.rows[0].cells];
    const columns = heads.map((th) => ({
      key: th.dataset.key, kind: th.dataset.kind, better: th.dataset.better || "", head: th.textContent.trim(),
      shown: !("hidden" in th.dataset), facet: "facet" in th.dataset, code: "code" in th.dataset, wrap: "wrap" in th.dataset,
    }));
    const rows = packed ? packed.rows : [...element.tBodies[0].rows];
    const text = (row, column) => packed ? cellOf(rows[row][column]).text : rows[row].cells[column].textContent.trim();
    const facets = columns.map((column, i) => column.facet ? rows.map((_, row) => text(row, i)) : null);
    const chosen = {};
    const options = {
      paging: false, autoWidth: false, orderClasses: false, info: false, order: [],
      layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
      columns: columns.map((column, i) => ({
        type: column.kind === "text" ? "words" : "measured", visible: column.shown, name: column.key,
        orderSequence: column.better === "high" ? ["desc", "asc"] : ["asc", "desc"],
        ...(packed ? made(column, i, section.dataset.root) : {}),
      })),
      language: { emptyTable: "No rows", zeroRecords: "No row fits the filters" },
    };
    if (packed) {
      const grey = new Set(packed.grey);
      element.tBodies[0].replaceChildren();
      Object.assign(options, {
        data: rows, paging: true, pageLength: 100, layout: { ...options.layout, bottomStart: "paging" },
        createdRow: (tr, _, index) => { if (grey.has(index)) tr.className = "grey"; },
      });
    }
    const api = new DataTable(element, options);
    if (packed) {
      const paging = section.querySelector(".dt-paging");
      const label = () => paging.querySelector("nav").setAttribute("aria-label", "Pages of: " + element.caption.textContent.trim());
      section.querySelector(".rest").replaceWith(paging);
      api.on("draw", label);
      label();
      api.on("page", () => element.closest(".scroll").scrollTo(0, 0));
    }
    const search = section.querySelector("input[type=search]");
    const count = section.querySelector(".count");
    const selects = {};
    const boxes = {};

    api.search.fixed("facets", (_text, _data, index) =>
      columns.every((column, i) => !facets[i] || !chosen[column.key] || facets[i][index] === chosen[column.key]));

    const initial = JSON.parse(section.dataset.initial || "{}");
    const slots = section.querySelector(".facets");
    columns.forEach((column, i) => {
      if (!column.facet) return;
      const values = [...new Set(facets[i])].sort(words(1));
      if (values.length < 2) return;
      const label = document.createElement("label");
      const select = document.createElement("select");
      label.append(column.head + " ", select);
      select.append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
      select.addEventListener("change", () => { chosen[column.key] = select.value; draw(); remember(); });
      selects[column.key] = select;
      slots.append(label);
    });
    const picker = section.querySelector(".columns");
    columns.forEach((column, i) => {
      if (!i) return; /* the first column names the row */
      const label = document.createElement("label");
      const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: column.shown });
      label.append(box, " " + column.head);
      box.addEventListener("change", () => { api.column(i).visible(box.checked); remember(); });
      boxes[column.key] = box;
      picker.append(label);
    });
    const all = section.querySelector(".all");
    if (all) all.addEventListener("click", () => { set({ ...state(), cols: columns.map((c) => c.key) }); remember(); });

    function draw() {
      api.draw();
      const shown = api.rows({ search: "applied" }).count();
      if (count) count.textContent = shown === rows.length ? rows.length + " rows" : shown + " of " + rows.length + " rows";
    }
    function state() {
      return {
        q: search ? search.value : "",
        sort: api.order().filter(([, direction]) => direction).map(([i, direction]) => [columns[i].key, direction]),
        cols: columns.filter((_, i) => api.column(i).visible()).map((column) => column.key),
        facets: { ...chosen },
      };
    }
    const standard = { q: "", sort: [], cols: columns.filter((c) => c.shown).map((c) => c.key), facets: initial };
    function set(view) {
      if (search) search.value = view.q;
      api.search(view.q);
      const places = view.sort.map(([key, direction]) => [columns.findIndex((column) => column.key === key), direction]);
      api.order(places.filter(([i, direction]) => i >= 0 && /^(asc|desc)$/.test(direction)));
      columns.forEach((column, i) => {
        const visible = !i || view.cols.includes(column.key);
        if (api.column(i).visible() !== visible) api.column(i).visible(visible, false);
        if (boxes[column.key]) boxes[column.key].checked = visible;
        if (!column.facet) return;
        const wanted = view.facets[column.key] || "";
        chosen[column.key] = facets[i].includes(wanted) ? wanted : "";
        if (selects[column.key]) selects[column.key].value = chosen[column.key];
      });
      draw();
    }
    function read(row, i) {
      if (packed) return cellOf(rows[row][i]);
      const { dataset, textContent } = api.cell(row, i).node();
      return { text: textContent.trim(), order: dataset.order || "", low: dataset.low || "", high: dataset.high || "" };
    }
    function view() {
      const kept = columns.map((_, i) => i).filter((i) => api.column(i).visible());
      const order = api.rows({ search: "applied", order: "applied" }).indexes().toArray();
      const out = { caption: element.caption.textContent.trim(), keys: [], heads: [], kinds: [], rows: [] };
      kept.forEach((i) => {
        const column = columns[i];
        if (column.kind !== "range") out.keys.push(column.key);
        if (ended(column)) out.keys.push(column.key + "_low", column.key + "_high");
        out.heads.push(column.head);
        out.kinds.push(column.kind);
      });
      out.rows = order.map((row) => {
        const line = { values: [], texts: [] };
        kept.forEach((i) => {
          const cell = read(row, i);
          const shown = cell.text, raw = cell.order;
          line.texts.push(shown);
          if (columns[i].kind !== "range") {
            line.values.push(raw ? { text: raw, number: true } : { text: shown === NONE ? "" : shown, number: false });
          }
          if (ended(columns[i])) {
            for (const end of ["low", "high"]) line.values.push({ text: cell[end], number: !!cell[end] });
          }
        });
        return line;
      });
      return out;
    }
    if (search) {
      let timer;
      search.addEventListener("input", () => {
        clearTimeout(timer);
        timer = setTimeout(() => { api.search(search.value); draw(); remember(); }, 120);
      });
    }
    api.on("order", () => { if (ready) remember(); });
    section.querySelectorAll("button[data-format]").forEach((button) => button.addEventListener("click", () => {
      const format = button.dataset.format;
      const text = FORMATS[format](view());
      if (button.dataset.to === "clipboard") copy(text, button); else save(name, format, text);
    }));
    section.querySelectorAll(".controls[hidden]").forEach((part) => { part.hidden = false; });
    const table = { name, state, set, standard, view };
    tables.push(table);
    return table;
  }

  /* ---- permalink: what differs from the page as it opens ---- */
  let ready = false;
  const same = (a, b) => a.length === b.length && a.every((x) => b.includes(x));
  const coded = encodeURIComponent; /* keys are names of metrics and may hold a comma or a space */
  const decoded = (text) => { try { return decodeURIComponent(text); } catch (error) { return text; } };

  function remember() {
    const parts = new URLSearchParams();
    for (const table of tables) {
      const state = table.state();
      if (state.q) parts.set(table.name + ".q", state.q);
      if (state.sort.length) parts.set(table.name + ".sort", state.sort.map(([key, way]) => coded(key) + "." + way).join(","));
      if (!same(state.cols, table.standard.cols)) parts.set(table.name + ".cols", state.cols.map(coded).join(","));
      for (const key of Object.keys({ ...state.facets, ...table.standard.facets })) {
        const value = state.facets[key] || "";
        if (value !== (table.standard.facets[key] || "")) parts.set(table.name + ".f." + key, value);
      }
    }
    const hash = parts.toString();
    history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search);
  }

  function restore() {
    const parts = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
    for (const table of tables) {
      const facets = { ...table.standard.facets };
      for (const [key, value] of parts) {
        const start = table.name + ".f.";
        if (key.startsWith(start)) facets[key.slice(start.length)] = value;
      }
      const cols = parts.get(table.name + ".cols"), sort = parts.get(table.name + ".sort");
      table.set({
        q: parts.get(table.name + ".q") || "",
        sort: sort ? sort.split(",").map((part) => part.split(/\.(?=[^.]*$)/).map(decoded)) : [],
        cols: cols ? cols.split(",").map(decoded) : table.standard.cols, facets,
      });
    }
  }

  /* ---- copying ---- */
  async function copy(text, button) {
    let done = false;
    try { await navigator.clipboard.writeText(text); done = true; } catch (error) {
      const area = Object.assign(document.createElement("textarea"), { value: text, className: "off" });
      document.body.append(area);
      area.select();
      done = document.execCommand("copy");
      area.remove();
    }
    const before = button.dataset.label || button.textContent;
    button.dataset.label = before;
    button.textContent = done ? "Copied" : "Select and press Ctrl+C";
    setTimeout(() => { button.textContent = before; }, 1600);
  }

  // Points lead to their page by mouse and by keyboard, and what a mark says is shown below its chart.
  function marks(chart) {
    const said = document.createElement("output");
    const told = (mark) => mark.querySelector("title").textContent;
    chart.querySelectorAll("[data-href]").forEach((mark) => {
      const go = () => { location.href = mark.dataset.href; };
      mark.addEventListener("click", go);
      mark.addEventListener("keydown", (event) => { if (event.key === "Enter") go(); });
      mark.setAttribute("tabindex", "0");
      mark.setAttribute("role", "link");
      mark.setAttribute("aria-label", told(mark));
      chart.setAttribute("role", "group");  // an image has no parts to go to
    });
    const show = (event) => {
      const mark = event.target.closest("svg.chart *");
      if (mark && mark.querySelector(":scope > title")) said.textContent = told(mark);
    };
    chart.addEventListener("focusin", show);
    chart.addEventListener("pointerover", show);
    if (chart.querySelector(":scope > * > title")) chart.after(said);
  }

  /* ---- packed data: scripts, since a page that was opened from a file can load nothing else ---- */
  const awaited = {};

  function unpack(name, text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    awaited[name].resolve(new Response(plain).json());
  }
  function load(folder, name) {
    return new Promise((resolve, reject) => {
      if (!window.DecompressionStream) { reject(new Error("This browser is too old to unpack it.")); return; }
      awaited[name] = { resolve };
      const script = document.createElement("script");
      script.src = folder + encodeURIComponent(name) + ".js";
      script.addEventListener("error", () => reject(new Error("Its file is not there.")));
      document.head.append(script);
    });
  }

  /* The page of a specification that has no file of its own. */
  async function fill(place) {
    const asked = new URLSearchParams(location.search);
    const name = asked.get("s") || "", key = asked.get("g") || "";
    try {
      const pages = /^[\w+=,-]+$/.test(name) ? await load(place.dataset.folder, name) : {};
      if (!Object.hasOwn(pages, key)) throw new Error("There is no specification of this name.");
      const [title, html] = pages[key];
      document.title = title + " · kdbench";
      document.getElementById("content").innerHTML = html; /* as the build wrote it, escaped there */
    } catch (error) { place.textContent = error.message; }
  }

  async function start() {
    document.querySelectorAll("#content button.copy").forEach((button) => {
      button.hidden = false;
      button.addEventListener("click", () =>
        copy(button.dataset.copy === "view" ? location.href : button.parentElement.querySelector("code").textContent, button));
    });
    document.querySelectorAll("svg.chart").forEach(marks);
    if (window.DataTable) {
      DataTable.type("measured", "order", { asc: compare(1), desc: compare(-1) });
      DataTable.type("words", "order", { pre: bare, asc: words(1), desc: words(-1) });
      const sections = [...document.querySelectorAll(".table[data-rich]")];
      const packed = await Promise.all(sections.map(({ dataset }, i) => dataset.packed && load(dataset.packed,
        sections[i].querySelector("table").id).catch(() => null))); /* then the first rows stay alone */
      sections.forEach((section, i) => enhance(section, packed[i]));
      restore();
      addEventListener("hashchange", () => { ready = false; restore(); ready = true; });
    }
    ready = true;
    root.classList.add("ready");
  }

  window.kdbench = { tables, formats: FORMATS, unpack };
  document.addEventListener("DOMContentLoaded", async () => {
    themeButton();
    const place = document.getElementById("any");
    if (place) await fill(place);
    start();
  });
})();
