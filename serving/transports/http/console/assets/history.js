// What happened: changes of workers' states and faults, told in words and marked in the curves.
const MOST_ENTRIES = 60;

const happened = {
  before: null, // state and fault of each worker

  clear() {
    this.before = null;
    $("history").replaceChildren();
  },

  tell(level, text) {
    const time = new Date().toLocaleTimeString("en-GB");
    $("history").prepend(make("li", {}, make("time", { textContent: time }), make("span", { textContent: text })));
    $("history").firstChild.dataset.level = level;
    while ($("history").children.length > MOST_ENTRIES) $("history").lastChild.remove();
    curves.mark(level, text);
  },

  compare(workers) {
    const now = workers.map(({ state, fault }) => ({ state, fault }));
    const before = this.before;
    this.before = now;
    if (!before || before.length !== now.length) return;
    now.forEach(({ state, fault }, id) => {
      if (fault !== before[id].fault) {
        this.tell(fault ? "broken" : "mended", fault ? `worker ${id}: ${FAULT_WORDS[fault] ?? fault}` : `worker ${id}: sound again`);
      }
      if (state !== before[id].state) {
        const again = state === "live" ? " again" : "";
        this.tell(state === "live" ? "mended" : "broken", `worker ${id} is ${state}${again}`);
      }
    });
  },
};
