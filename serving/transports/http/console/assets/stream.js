// Talks to the server: every request goes through `request`, events come through `watch`.
const RETRY_MS = 1000;

async function request(path, options = {}) {
  const reply = await fetch(path, options);
  if (!reply.ok) {
    const text = await reply.text();
    let message = `${reply.status} ${reply.statusText}`;
    try {
      message = JSON.parse(text).error ?? message;
    } catch {
      // Not ours: a proxy's page, say.
    }
    throw new Error(message);
  }
  return reply;
}

const query = (parameters) => new URLSearchParams(parameters).toString();

// Calls `handle(event, data)` for each event about a model, and `handle("lost", reason)` when the connection is lost,
// which is made again. Returns a function that ends it.
function watch(model, handle) {
  const ending = new AbortController();
  (async () => {
    while (!ending.signal.aborted) {
      let reason = "the server has ended the connection";
      try {
        const reply = await request(`console/events?${query({ model })}`, { signal: ending.signal });
        await readEvents(reply.body, handle);
      } catch (error) {
        reason = error.message;
      }
      if (ending.signal.aborted) return;
      handle("lost", reason);
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  })();
  return () => ending.abort();
}

async function readEvents(body, handle) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (waiting + value).split("\n\n");
    waiting = events.pop();
    for (const event of events) {
      const [name, data] = event.split("\n");
      handle(name.slice("event: ".length), JSON.parse(data.slice("data: ".length)));
    }
  }
}
