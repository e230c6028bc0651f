// Puts the page together: events come in, the parts are updated.
const OWN_MS = 2500; // for so long requests of others are not shown after one of this page's own
const THEMES = { auto: "Auto", light: "Light", dark: "Dark" };

let paused = false;
let endWatching = () => {};
let watched = "";
let others = null; // the newest request of another client that has not been shown

function showRequest(request, picture = null) {
  if (paused) return;
  votes.play(request);
  drawPicture($("picture"), picture);
  $("picture").ariaLabel = request.expected ? `A sample of ${request.expected}` : "The picture that was asked about";
  say($("label"), request.label ?? "no class");
  $("label").dataset.level = request.expected && request.expected !== request.label ? "bad" : "good";
  const chips = [
    request.winners.length > 1 ? "" : `${request.votes} of ${request.copies} votes`,
    `margin ${request.margin.toFixed(2)}`,
    request.elected ? "" : "not elected",
    request.complete ? "" : "incomplete",
    request.degraded ? "degraded" : "",
    request.expected && request.expected !== request.label ? `expected ${request.expected}` : "",
  ].filter(Boolean);
  $("verdict").replaceChildren(...chips.map((text) => make("span", { textContent: text })));
  $("top").replaceChildren(
    ...request.top.map(([name, score]) => {
      const bar = make("i");
      bar.style.width = `${100 * score}%`;
      return make("li", {}, make("span", { textContent: name, title: name }), make("div", {}, bar), make("b", { textContent: score.toFixed(3) }));
    }),
  );
  say($("story"), storyOf(request));
}

function storyOf(request) {
  const spare = request.missing.filter(({ why }) => why === "not needed").length;
  const lost = request.missing.filter(({ why }) => why !== "not needed").map(({ worker, why }) => `${worker} (${why})`);
  const all = request.arrived.length + request.missing.length;
  const parts = [`Decided after ${milliseconds(request.decided_ms)} ms by ${request.arrived.length} of ${all} workers`];
  if (spare) parts.push(`${spare} could not have changed it`);
  if (lost.length) parts.push(`missing: ${listed(lost, 6)}`);
  return `${parts.join("; ")}.`;
}

function showModel(model) {
  watched = model.model;
  document.title = `${model.model} – sensai-serve console`;
  $("model").replaceChildren(...model.models.map((name) => make("option", { value: name, textContent: name, selected: name === model.model })));
  say($("facts"), model.facts.join(" · "));
  $("guarantees").replaceChildren(...model.guarantees.map(([text, losses]) => make("li", { textContent: text, className: losses ? "" : "none" })));
  votes.clear();
  others = null;
  grid.build(model, (worker, fault) => attempt(() => setFault(worker, fault)));
  curves.clear();
  happened.clear();
  attempt(() => asking.start(model));
}

async function setFault(worker, fault) {
  await request(`v1/faults?${query({ model: watched })}`, { method: "POST", body: JSON.stringify({ worker, fault }) });
}

function showSnapshot(snapshot) {
  curves.add(snapshot);
  if (paused) return;
  happened.compare(snapshot.workers);
  grid.update(snapshot.workers);
  say($("per-s"), count(snapshot.per_s));
  const known = curves.points.findLast((point) => point.p50 !== null);
  say($("p50"), milliseconds(known?.p50));
  say($("p99"), milliseconds(known?.p99));
  say($("early"), snapshot.answers ? `${Math.round((100 * snapshot.decided_early) / snapshot.answers)}%` : "–");
  say($("incomplete"), count(snapshot.incomplete));
  showStatus(snapshot);
  curves.draw();
  if (performance.now() - asking.busy < OWN_MS) others = null;
  if (others && votes.free) {
    showRequest(others);
    others = null;
  }
}

function showStatus({ ready, workers }) {
  const lost = workers.flatMap(({ state }, id) => (state === "live" ? [] : [id]));
  const uncovered = grid.model.columns.flatMap((_, at) =>
    grid.model.workers.some((worker, id) => worker.columns.includes(at) && !lost.includes(id)) ? [] : [columnName(grid.model, at)],
  );
  if (!workers.length) setStatus("wait", ready ? "not in memory, loaded when a request needs it" : "loading");
  else if (uncovered.length) setStatus("bad", `no copy of ${listed(uncovered, 3)}`);
  else if (lost.length) setStatus("warn", `${lost.length} of ${workers.length} workers lost, every class has a copy`);
  else setStatus(ready ? "good" : "wait", ready ? `ready, all ${workers.length} workers live` : "not ready");
}

function setStatus(level, text) {
  say($("status"), text);
  mark($("status"), "level", level);
}

function connect(model) {
  endWatching();
  endWatching = watch(model, (event, data) => {
    if (event === "model") showModel(data);
    else if (event === "snapshot") showSnapshot(data);
    else if (event === "request") others = data;
    else if (event === "gone") {
      setStatus("bad", `model ${data.model || "none"} is not loaded`);
      $("model").replaceChildren(...["", ...data.models].map((name) => make("option", { value: name, textContent: name || "choose a model" })));
    } else if (event === "lost") setStatus("bad", `no connection: ${data}`);
  });
}

function startTheme() {
  const names = Object.keys(THEMES);
  const apply = (theme) => {
    document.documentElement.dataset.theme = theme;
    $("theme").textContent = THEMES[theme];
    $("theme").ariaLabel = `Theme: ${THEMES[theme]}`;
    curves.draw();
  };
  let theme = "auto";
  try {
    theme = localStorage.getItem("theme");
  } catch {
    // Storage may be off.
  }
  apply(theme in THEMES ? theme : "auto");
  $("theme").addEventListener("click", () => {
    const next = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
    apply(next);
    try {
      localStorage.setItem("theme", next);
    } catch {
      // It is then forgotten when the page is closed.
    }
  });
}

startTheme();
startAsking();
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").ariaPressed = String(paused);
  say($("pause"), paused ? "Go on" : "Pause");
});
$("model").addEventListener("change", () => connect($("model").value));
$("curves").addEventListener("pointermove", (event) => say($("reading"), curves.read(event.clientX)));
$("curves").addEventListener("pointerleave", () => say($("reading"), ""));
addEventListener("resize", () => curves.draw());
connect(new URLSearchParams(location.search).get("model") ?? "");
