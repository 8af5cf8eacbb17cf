// Elements. Whatever comes from the network becomes text of a node, never markup.

export const byId = (id) => document.getElementById(id);

/** What this browser keeps under a name, or null: some keep nothing. */
export function kept(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

/** Has the browser keep a text, or with null forget it. Where it keeps nothing, that lasts as long as the page. */
export function keep(name, value) {
  try {
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, value);
  } catch {
    // What was not kept is asked for again.
  }
}

/** Sets a text, if it is another: what has not changed is not read out again. */
export function say(target, text) {
  const node = typeof target === "string" ? byId(target) : target;
  const wanted = String(text);
  if (node.textContent !== wanted) node.textContent = wanted;
}

/** An element with properties and children; children that are no nodes become text. */
export function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Fills a list of names and values: `[[name, value]]`, where a value is a cell as in a table. */
export function facts(list, pairs) {
  while (list.children.length > pairs.length * 2) list.lastChild.remove();
  pairs.forEach(([name, value], index) => {
    const [dt, dd] = [list.children[index * 2] ?? list.appendChild(h("dt")), list.children[index * 2 + 1] ?? list.appendChild(h("dd"))];
    say(dt, name);
    cell(dd, value);
  });
}

/** Puts a cell into a node: a text, or `{text, href, title, kind, share}`. Nodes that are there are kept, and with them the focus. */
function cell(node, value) {
  const { text = value, href, title, kind = "", share } = value !== null && typeof value === "object" ? value : {};
  if (share !== undefined) {
    const bar = node.firstElementChild ?? node.appendChild(h("span", { className: "share" }));
    bar.style.width = `${(share * 7).toFixed(2)}rem`;
    return;
  }
  if (href === undefined) {
    say(node, text ?? "–");
  } else {
    if (node.firstElementChild?.localName !== "a") node.replaceChildren(h("a"));
    const link = node.firstElementChild;
    if (link.getAttribute("href") !== href) link.setAttribute("href", href);
    say(link, text ?? "–");
  }
  if (title !== undefined && node.title !== title) node.title = title;
  node.dataset.kind = kind;
}

/**
 * A table that changes in place. `columns` are `{name, key, kind, sort}`: kind is a class of its cells, sort says whether
 * it can be ordered by. `onSort` is told which.
 */
export class Table {
  constructor(place, caption, columns, onSort) {
    this.columns = columns;
    this.body = h("tbody");
    this.head = columns.map((column) => {
      const th = h("th", { scope: "col", className: column.kind ?? "" });
      if (column.sort && onSort) {
        const button = h("button", { type: "button" }, column.name);
        button.addEventListener("click", () => onSort(column.sort));
        th.append(button);
      } else {
        th.append(column.name);
      }
      return th;
    });
    const table = h("table", {}, h("caption", { className: "hidden" }, caption), h("thead", {}, h("tr", {}, ...this.head)), this.body);
    // What can be scrolled must be reached by the keyboard too.
    place.tabIndex = 0;
    place.setAttribute("role", "region");
    place.setAttribute("aria-label", caption);
    place.replaceChildren(table);
  }

  sorted(by, descending) {
    this.columns.forEach((column, index) => {
      if (column.sort === by) this.head[index].setAttribute("aria-sort", descending ? "descending" : "ascending");
      else this.head[index].removeAttribute("aria-sort");
    });
  }

  /** Rows are lists of cells, one for each column. */
  fill(rows, none = "Nothing yet.") {
    if (rows.length === 0) {
      this.body.replaceChildren(h("tr", {}, h("td", { className: "text soft", colSpan: this.columns.length }, none)));
      this.empty = true;
      return;
    }
    if (this.empty) this.body.replaceChildren();
    this.empty = false;
    while (this.body.children.length > rows.length) this.body.lastChild.remove();
    rows.forEach((row, index) => {
      let tr = this.body.children[index];
      if (!tr) tr = this.body.appendChild(h("tr", {}, ...this.columns.map(() => h("td"))));
      row.forEach((value, place) => {
        const td = tr.children[place];
        const kind = [this.columns[place].kind, value?.kind].filter(Boolean).join(" ");
        if (td.className !== kind) td.className = kind;
        cell(td, value);
      });
    });
  }
}

/** Buttons under a table: `previous` and `next` are called, or missing. */
export class Pager {
  constructor(place, previousName, nextName, onPrevious, onNext) {
    this.previous = h("button", { type: "button", className: "quiet" }, previousName);
    this.next = h("button", { type: "button", className: "quiet" }, nextName);
    this.text = h("span", { role: "status" });
    this.previous.addEventListener("click", onPrevious);
    this.next.addEventListener("click", onNext);
    this.node = h("div", { className: "pager" }, this.previous, this.next, this.text);
    place.after(this.node);
  }

  show(text, hasPrevious, hasNext) {
    say(this.text, text);
    this.previous.disabled = !hasPrevious;
    this.next.disabled = !hasNext;
    this.node.hidden = !text && !hasPrevious && !hasNext;
  }
}

/** A digest or key: short, whole in its title. */
export const digest = (value, href) => ({ text: value ? value.slice(0, 8) : "–", title: value ?? "", kind: "mono", href });
