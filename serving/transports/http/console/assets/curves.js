// p50 and p99 of the last two minutes, on a logarithmic scale, with a mark where something happened.
const WINDOW_S = 120;
const SHORTEST_S = 30; // what is shown at first
const EDGE = { left: 44, right: 8, top: 8, bottom: 20 };

const curves = {
  points: [], // {at, p50, p99} of each snapshot; `at` of performance.now(), in seconds
  marks: [], // {at, level, text}

  add(snapshot) {
    const at = performance.now() / 1000;
    this.points.push({ at, p50: snapshot.p50_ms, p99: snapshot.p99_ms });
    while (this.points.length && this.points[0].at < at - WINDOW_S) this.points.shift();
    while (this.marks.length && this.marks[0].at < at - WINDOW_S) this.marks.shift();
  },

  mark(level, text) {
    this.marks.push({ at: performance.now() / 1000, level, text });
  },

  clear() {
    this.points = [];
    this.marks = [];
  },

  draw() {
    const picture = $("curves");
    const { width, height } = picture.getBoundingClientRect();
    if (!width) return;
    const now = performance.now() / 1000;
    const known = this.points.filter((point) => point.p50 !== null);
    const low = Math.max(1e-3, Math.min(...known.map((point) => point.p50), 1));
    const high = Math.max(...known.map((point) => point.p99), low * 10);
    const bottom = 10 ** Math.floor(Math.log10(low));
    const top = Math.max(high * 1.2, bottom * 10);
    const shown = Math.min(WINDOW_S, Math.max(SHORTEST_S, now - (known[0]?.at ?? now)));
    const x = (at) => EDGE.left + (1 - (now - at) / shown) * (width - EDGE.left - EDGE.right);
    const scale = (height - EDGE.top - EDGE.bottom) / Math.log(top / bottom);
    const y = (ms) => height - EDGE.bottom - Math.log(Math.max(ms, bottom) / bottom) * scale;
    this.x = x;
    const parts = [...ticks(bottom, top, x, y, width, height, now, shown)];
    for (const { at, level, text } of this.marks.filter((each) => each.at > now - shown)) {
      parts.push(svg("g", { class: `mark ${level}` }, svg("title", {}, text), svg("path", { d: `M${x(at)} ${EDGE.top}V${height - EDGE.bottom}` })));
    }
    const runs = withoutGaps(this.points);
    for (const run of runs) {
      const upper = run.map((point) => `${x(point.at).toFixed(1)} ${y(point.p99).toFixed(1)}`);
      const lower = run.map((point) => `${x(point.at).toFixed(1)} ${y(point.p50).toFixed(1)}`);
      parts.push(svg("path", { class: "between", d: `M${upper.join("L")}L${[...lower].reverse().join("L")}Z` }));
      parts.push(svg("path", { class: "p99", d: `M${upper.join("L")}` }), svg("path", { class: "p50", d: `M${lower.join("L")}` }));
    }
    const last = known.at(-1);
    const text = last
      ? `p50 ${milliseconds(last.p50)} ms, p99 ${milliseconds(last.p99)} ms`
      : "no requests yet";
    if (!known.length) parts.push(svg("text", { class: "empty", x: width / 2, y: height / 2 }, "no requests in the last two minutes"));
    picture.replaceChildren(svg("title", { id: "curves-text" }, text), ...parts);
  },

  // What the curves say at a place of the pointer.
  read(clientX) {
    const left = $("curves").getBoundingClientRect().left;
    const known = this.points.filter((point) => point.p50 !== null);
    if (!known.length || !this.x) return "";
    const near = known.reduce((a, b) => (Math.abs(this.x(a.at) - clientX + left) < Math.abs(this.x(b.at) - clientX + left) ? a : b));
    const ago = Math.round(performance.now() / 1000 - near.at);
    return `${ago} s ago: p50 ${milliseconds(near.p50)} ms, p99 ${milliseconds(near.p99)} ms`;
  },
};

function* ticks(bottom, top, x, y, width, height, now, shown) {
  for (let power = bottom; power <= top; power *= 10) {
    for (const factor of top / bottom > 300 ? [1] : [1, 2, 5]) {
      const ms = power * factor;
      if (ms > top) break;
      yield svg("path", { class: factor === 1 ? "line strong" : "line", d: `M${EDGE.left} ${y(ms)}H${width - EDGE.right}` });
      yield svg("text", { class: "tick", x: EDGE.left - 6, y: y(ms) + 4, "text-anchor": "end" }, `${Number(ms.toPrecision(1))} ms`);
    }
  }
  const every = shown > 60 ? 30 : shown > 40 ? 15 : 10;
  for (let ago = 0; ago <= shown; ago += every) {
    const place = x(now - ago);
    const anchor = ago === 0 ? "end" : place < EDGE.left + 20 ? "start" : "middle";
    yield svg("text", { class: "tick", x: place, y: height - 4, "text-anchor": anchor }, ago ? `${ago} s ago` : "now");
  }
}

function withoutGaps(points) {
  const runs = [];
  let run = null;
  for (const point of points) {
    if (point.p50 === null) {
      // A snapshot without a request is no gap in a slow stream of them.
      if (run && point.at - run.at(-1).at > 2) run = null;
    } else if (run) {
      run.push(point);
    } else {
      runs.push((run = [point]));
    }
  }
  return runs;
}
