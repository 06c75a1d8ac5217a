// Builds elements. Content of documents and errors becomes text, never markup.

export const byId = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(made.dataset, value);
    else if (value !== undefined && value !== null) made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// Words with more characters may break, but only after one of these characters.
const LONG_WORD = 16;
const AFTER = /(?<=[./:,@#~-])(?=[^./:,@#~-])/;

// A text as nodes. Words never break in the middle: a long name breaks only after a dot, a slash or the like.
export function breakable(text) {
  return text.split(/(\s+)/).flatMap((word) => {
    if (word.length <= LONG_WORD) return [word];
    return word.split(AFTER).flatMap((part, number) => (number ? [document.createElement("wbr"), part] : [part]));
  });
}

// Only changed texts are written, so that a selection of the user stays.
export function write(node, text) {
  const wanted = text ?? "";
  if (node.textContent !== wanted) node.replaceChildren(...breakable(wanted));
}

export function toast(text, kind = "good") {
  const shown = element("div", { class: `toast ${kind}` }, ...breakable(text));
  byId("toasts").append(shown);
  setTimeout(() => shown.remove(), kind === "bad" ? 9000 : 4500);
}

// A table that keeps the elements of a row while its key exists, so that a button does not vanish during a click.
export class Table {
  constructor(table, columns, emptyText) {
    this.columns = columns;
    this.emptyText = emptyText;
    this.rows = new Map();
    this.body = element("tbody");
    const head = columns.map((column) =>
      element("th", { scope: "col", class: column.number ? "number" : "" }, column.title),
    );
    table.replaceChildren(element("thead", {}, element("tr", {}, ...head)), this.body);
  }

  show(rows) {
    const kept = new Map();
    let place = this.body.firstChild;
    for (const row of rows) {
      const shown = this.rows.get(row.key) ?? this.make();
      kept.set(row.key, shown);
      this.columns.forEach((column, number) => column.fill(shown.cells[number], row));
      if (shown !== place) this.body.insertBefore(shown, place);
      else place = place.nextSibling;
    }
    for (const [key, shown] of this.rows) if (!kept.has(key)) shown.remove();
    this.rows = kept;
    this.body.querySelector(".none")?.parentNode.remove();
    if (!rows.length) {
      const none = element("td", { class: "none", colSpan: this.columns.length }, this.emptyText);
      this.body.append(element("tr", {}, none));
    }
  }

  make() {
    const cells = this.columns.map((column) =>
      element("td", {
        class: [column.number ? "number" : "", column.kind ?? ""].join(" ").trim(),
        dataset: { label: column.title },
      }),
    );
    return element("tr", {}, ...cells);
  }
}

// A column of text. `text` makes the text of a row, `tone` a class, and `hint` a tooltip.
export function column(title, text, { number = false, tone = () => "", hint = () => "", kind = "" } = {}) {
  const fill = (cell, row) => {
    write(cell, text(row));
    cell.title = hint(row);
    for (const each of ["good", "warn", "bad", "quiet"]) cell.classList.toggle(each, tone(row) === each);
  };
  return { title, number, kind, fill };
}
