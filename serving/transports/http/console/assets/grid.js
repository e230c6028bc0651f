// The grid: a row for each worker, a column for each class (or for classes that the same workers cover).
const LABELLED = 24; // more columns have no room for labels
const SPACIOUS = 12; // beside more columns the buttons have no room for words

const grid = {
  model: null,
  rows: [],
  labels: [],
  left: [],

  build(model, onFault) {
    this.model = model;
    const table = $("workers");
    table.style.setProperty("--columns", model.columns.length);
    table.classList.toggle("many", model.columns.length > LABELLED);
    table.classList.toggle("crowded", model.columns.length > SPACIOUS);
    table.classList.toggle("breakable", model.allows_faults);
    this.labels = model.columns.map((classes, at) => {
      const name = columnName(model, at);
      return make("span", { title: name }, make("span", { textContent: name }));
    });
    $("labels").replaceChildren(...this.labels);
    this.rows = model.workers.map((worker, id) => makeRow(model, worker, id, onFault));
    $("rows").replaceChildren(...this.rows.map((row) => row.element));
    this.left = model.columns.map((_, at) => {
      const all = model.workers.filter((worker) => worker.columns.includes(at)).length;
      const pips = Array.from({ length: all }, () => make("i"));
      return make("span", { role: "img" }, ...pips);
    });
    $("left").replaceChildren(...this.left);
    say($("break-note"), model.allows_faults ? "" : "To break workers from here, start the server with --allow-faults.");
  },

  update(workers) {
    workers.forEach((worker, id) => this.rows[id]?.update(worker));
    this.left.forEach((element, at) => {
      const holders = this.model.workers.flatMap((worker, id) => (worker.columns.includes(at) ? [id] : []));
      const live = holders.filter((id) => workers[id]?.state === "live").length;
      const text = `${live} of ${holders.length} copies left of ${columnName(this.model, at)}`;
      if (element.title === text) return;
      element.title = text;
      element.ariaLabel = text;
      mark(element, "level", live === 0 ? "none" : 2 * live <= holders.length ? "few" : "enough");
      [...element.children].forEach((pip, number) => pip.classList.toggle("there", number < live));
    });
  },
};

function columnName(model, at) {
  const classes = model.columns[at];
  const name = model.labels[classes[0]];
  return classes.length > 1 ? `${name} and ${classes.length - 1} more` : name;
}

function makeRow(model, worker, id, onFault) {
  const cells = new Map();
  const holder = make("div", { className: "columns cells" });
  for (const at of worker.columns) {
    const cell = make("i", { className: "cell", title: columnName(model, at) });
    cell.style.gridColumn = at + 1;
    cells.set(at, cell);
    holder.append(cell);
  }
  const covers = worker.columns.map((at) => columnName(model, at));
  holder.role = "img";
  holder.ariaLabel = `covers ${listed(covers, 8)}`;
  const state = make("span", { className: "state" });
  const queue = make("i", { className: "queue" });
  const run = make("i", { className: "run" });
  const decided = make("b", { hidden: true });
  const note = make("span", { className: "when" });
  const track = make("div", { className: "track" }, queue, run, decided, note);
  const latency = make("td", { className: "figure" });
  const load = make("meter", { max: 1, value: 0, ariaLabel: `Load of worker ${id}` });
  const buttons = model.allows_faults ? faultButtons(id, onFault) : [];
  const element = make(
    "tr",
    {},
    make("th", { scope: "row", title: worker.device }, make("span", { className: "number", textContent: id }), state),
    make("td", {}, holder),
    make("td", { className: "arrivals" }, track),
    latency,
    make("td", { className: "figure wide" }, load),
    make("td", { className: "breaking" }, ...buttons.map((button) => button.element)),
  );
  return {
    element,
    cells,
    track: { queue, run, decided, note },
    update(now) {
      mark(element, "state", now.state);
      say(state, now.state);
      say(latency, now.latency_ms === null ? "–" : `${milliseconds(now.latency_ms)} ms`);
      load.value = now.load;
      load.title = `inside its subnet ${Math.round(now.load * 100)}% of the time; ${count(now.runs)} runs`;
      for (const button of buttons) button.update(now);
    },
  };
}
