// One request's votes, played slowly enough to be followed: copies arrive, the answer is decided, the rest is missing.
const PLAY_MS = 1100;
const HOLD_MS = 900; // how long a decided request stays before the next one is played

const votes = {
  frame: 0,
  until: 0, // when the next request may be played, of performance.now()

  get free() {
    return performance.now() >= this.until;
  },

  clear() {
    cancelAnimationFrame(this.frame);
    this.until = 0;
    for (const row of grid.rows) resetRow(row);
    for (const label of grid.labels) label.classList.remove("winner");
    $("workers").classList.remove("decided");
  },

  play(request) {
    this.clear();
    const last = Math.max(request.decided_ms, ...request.arrived.map((copies) => copies.arrived_ms), 0.001);
    const slower = still.matches ? 0 : PLAY_MS / last;
    const started = performance.now();
    this.until = started + (slower ? PLAY_MS : 0) + HOLD_MS;
    say($("axis"), `copies as they arrive${slower ? `, ${count(slower)} times slower` : ""}`);
    for (const { worker, why } of request.missing) if (why !== "not needed") showMissing(worker, why);
    const waiting = [...request.arrived];
    const step = () => {
      const now = slower ? (performance.now() - started) / slower : Infinity;
      while (waiting.length && waiting[0].arrived_ms <= now) showArrival(waiting.shift(), last);
      for (const copies of waiting) showProgress(copies, now, last);
      if (now < last) {
        this.frame = requestAnimationFrame(step);
      } else {
        this.decide(request, last);
      }
    };
    step();
  },

  decide(request, last) {
    const winners = grid.model.columns.flatMap((classes, at) => (classes.some((c) => request.winners.includes(c)) ? [at] : []));
    for (const winner of winners) grid.labels[winner]?.classList.add("winner");
    $("workers").classList.toggle("decided", winners.length === 1);
    $("workers").style.setProperty("--winner", winners[0] + 1);
    for (const { worker, why } of request.missing) showMissing(worker, why);
    for (const { track } of grid.rows) {
      track.decided.hidden = false;
      track.decided.style.left = percent(request.decided_ms, last);
    }
  },
};

const percent = (ms, last) => `${(100 * ms) / last}%`;

function resetRow({ cells, track }) {
  for (const cell of cells.values()) cell.removeAttribute("data-vote");
  track.queue.style.width = track.run.style.width = "0";
  track.decided.hidden = true;
  track.note.textContent = "";
}

function showProgress({ worker, arrived_ms, run_ms }, now, last) {
  const track = grid.rows[worker]?.track;
  if (!track) return;
  const began = Math.max(0, arrived_ms - run_ms);
  track.queue.style.width = percent(Math.min(now, began), last);
  track.run.style.left = percent(began, last);
  track.run.style.width = percent(Math.min(Math.max(now - began, 0), arrived_ms - began), last);
}

function showArrival(copies, last) {
  const row = grid.rows[copies.worker];
  if (!row) return;
  showProgress(copies, copies.arrived_ms, last);
  row.track.note.textContent = `${milliseconds(copies.arrived_ms)} ms`;
  [...row.cells].forEach(([at, cell], number) => {
    const score = copies.scores[number] ?? 0;
    cell.dataset.vote = score >= grid.model.thresholds[at] ? "yes" : "no";
    cell.style.setProperty("--score", score);
    cell.title = `worker ${copies.worker}, ${columnName(grid.model, at)}: ${score.toFixed(3)}`;
  });
}

function showMissing(worker, why) {
  const row = grid.rows[worker];
  if (!row) return;
  for (const [at, cell] of row.cells) {
    cell.dataset.vote = why === "not needed" ? "spare" : "lost";
    cell.title = `worker ${worker}, ${columnName(grid.model, at)}: ${why}`;
  }
  row.track.note.textContent = why;
}
